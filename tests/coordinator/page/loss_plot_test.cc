#include "coordinator/page/loss_plot.h"

#include <cmath>
#include <limits>
#include <string>

#include "absl/strings/match.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ringmaster::coordinator {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

v1::StepRecord Record(int64_t step, double loss) {
  v1::StepRecord record;
  record.set_step(step);
  record.set_loss(loss);
  return record;
}

TEST(LossPointsTest, FewStepsAreAllThere) {
  const auto points = LossPoints({Record(1, 5), Record(2, 4)}, 10);
  ASSERT_THAT(points, SizeIs(2));
  EXPECT_EQ(points[1].step, 2);
  EXPECT_EQ(points[1].mean, 4);
  EXPECT_EQ(points[1].low, 4);
  EXPECT_THAT(LossPoints({}, 10), IsEmpty());
}

TEST(LossPointsTest, ManyStepsAreGroupedWithoutLosingAny) {
  std::vector<v1::StepRecord> records;
  double sum = 0;
  for (int step = 1; step <= 1003; ++step) {
    records.push_back(Record(step, step == 500 ? 1000 : step % 7));
    sum += records.back().loss();
  }
  const auto points = LossPoints(records, 17);
  ASSERT_THAT(points, SizeIs(17));
  double mean = 0;
  double high = 0;
  double before = 0;
  for (const LossPoint& point : points) {
    mean += point.mean / 17;
    high = std::max(high, point.high);
    EXPECT_EQ(point.low, 0);
    EXPECT_GT(point.step, before);
    before = point.step;
  }
  EXPECT_NEAR(mean, sum / 1003, 0.05);
  EXPECT_EQ(high, 1000);  // A spike is seen.
}

TEST(LossPointsTest, NumbersThatNoLossIsAreLeftOut) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const auto points =
      LossPoints({Record(-5, 1), Record(1, std::nan("")), Record(2, 3), Record(3, kInfinity),
                  Record(4, -1e300), Record(std::numeric_limits<int64_t>::max(), 1)},
                 10);
  ASSERT_THAT(points, SizeIs(1));
  EXPECT_EQ(points[0].step, 2);
}

TEST(LossPlotTest, DrawsCurveGridAndValidations) {
  std::vector<v1::StepRecord> records;
  for (int step = 1; step <= 1000; ++step) records.push_back(Record(step, 6 - step * 0.005));
  records[499].set_validation_loss(3.6);
  const std::string plot = LossPlot(records).markup();
  EXPECT_THAT(plot, HasSubstr("<polyline class=\"loss\""));
  EXPECT_THAT(plot, HasSubstr("<circle class=\"validation\" cx=\"41"));
  EXPECT_THAT(plot, HasSubstr(">200</text>"));
  EXPECT_THAT(plot, HasSubstr(">3</text>"));
  EXPECT_THAT(plot, Not(HasSubstr("nan")));
}

TEST(LossPlotTest, FlatAndHugeCurvesHaveAGridThatEnds) {
  for (const double loss : {0.0, 3.0, -2.5, 1e-12, 9e29}) {
    const std::string plot = LossPlot({Record(0, loss), Record(int64_t{1} << 40, loss)}).markup();
    EXPECT_TRUE(absl::StrContains(plot, "<polyline")) << loss;
    EXPECT_LT(plot.size(), 20'000) << loss;
    EXPECT_FALSE(absl::StrContains(plot, "nan") || absl::StrContains(plot, "inf")) << plot;
  }
  EXPECT_LT(LossPlot({Record(1, -9e29), Record(2, 9e29)}).markup().size(), 20'000);
}

TEST(LossPlotTest, SaysWhenThereIsNothingToDraw) {
  EXPECT_THAT(LossPlot({}).markup(), HasSubstr("no steps"));
  EXPECT_THAT(LossPlot({Record(1, 2)}).markup(), HasSubstr("no steps"));
}

TEST(LossPlotTest, SizeDoesNotGrowWithTheJob) {
  std::vector<v1::StepRecord> records;
  for (int step = 1; step <= 20'000; ++step) {
    records.push_back(Record(step, std::sin(step)));
    records.back().set_validation_loss(1);
  }
  EXPECT_LT(LossPlot(records).markup().size(), 60'000);
}

}  // namespace
}  // namespace ringmaster::coordinator
