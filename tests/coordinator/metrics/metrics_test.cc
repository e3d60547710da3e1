#include "coordinator/metrics/metrics.h"

#include <set>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ringmaster::coordinator {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(MetricTableTest, EntriesAreInOrderAndNamedByTheRules) {
  std::set<std::string> names;
  int index = 0;
  for (const MetricDescription& metric : MetricTable()) {
    const std::string name = metric.name;
    EXPECT_EQ(static_cast<int>(metric.id), index++) << name;
    EXPECT_TRUE(absl::StartsWith(name, "ringmaster_")) << name;
    EXPECT_EQ(absl::EndsWith(name, "_total"), metric.type == MetricType::kCounter) << name;
    EXPECT_TRUE(names.insert(name).second) << name;
    EXPECT_THAT(MetricTableMarkdown(), HasSubstr(absl::StrCat("| `", name, "` |")));
    // Prometheus sets the label "job" itself.
    EXPECT_THAT(absl::StrCat(",", metric.labels, ","), Not(HasSubstr(",job,"))) << name;
  }
}

TEST(MetricsTest, CountsSetsAndObserves) {
  Metrics metrics;
  metrics.Count(Metric::kGrpcRequests, {"JobService", "GetTrainingJob", "OK"});
  metrics.Count(Metric::kGrpcRequests, {"JobService", "GetTrainingJob", "OK"}, 2);
  metrics.Set(Metric::kEpoch, 7);
  metrics.Observe(Metric::kCommitRows, 3);
  const std::string text = metrics.Text();
  EXPECT_THAT(
      text,
      HasSubstr("ringmaster_grpc_requests_total{code=\"OK\",method=\"GetTrainingJob\",service="
                "\"JobService\"} 3"));
  EXPECT_THAT(text, HasSubstr("ringmaster_coordinator_epoch 7"));
  EXPECT_THAT(text, HasSubstr("ringmaster_db_group_commit_rows_bucket{le=\"4\"} 1"));
  EXPECT_THAT(text, HasSubstr("ringmaster_db_group_commit_rows_bucket{le=\"2\"} 0"));
}

TEST(MetricsTest, ReplacedSeriesEnd) {
  Metrics metrics;
  metrics.Replace(Metric::kJobStep, {{{"a"}, 1}, {{"b"}, 2}});
  metrics.Replace(Metric::kJobStep, {{{"b"}, 3}, {{"c"}, 4}});
  const std::string text = metrics.Text();
  EXPECT_THAT(text, Not(HasSubstr("training_job=\"a\"")));
  EXPECT_THAT(text, HasSubstr("ringmaster_job_step{training_job=\"b\"} 3"));
  EXPECT_THAT(text, HasSubstr("ringmaster_job_step{training_job=\"c\"} 4"));
}

}  // namespace
}  // namespace ringmaster::coordinator
