#include "worker/driver/worker_metrics.h"

#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ringmaster::worker {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

v1::RingRef Ring() {
  v1::RingRef ring;
  ring.set_training_job("projects/p/trainingJobs/j");
  ring.set_rank(2);
  ring.set_generation(7);
  return ring;
}

v1::StepRecord Record(double loss) {
  v1::StepRecord record;
  record.set_step(3);
  record.set_loss(loss);
  record.set_tokens(100);
  record.set_seconds(0.5);
  return record;
}

constexpr WorkerMetrics::StepBytes kBytes = {.sent = 48, .busiest = 64, .planned = 65};

constexpr char kLabels[] = R"({rank="2",training_job="projects/p/trainingJobs/j"})";

TEST(WorkerMetricsTest, TrainingSeriesAreThereWhileARingRuns) {
  WorkerMetrics metrics;
  EXPECT_THAT(metrics.Text(), Not(HasSubstr("training_job=")));
  metrics.EnterRing(Ring());
  metrics.OnStep(Record(2.5), kBytes);
  EXPECT_THAT(metrics.Text(), HasSubstr(std::string("ringmaster_loss") + kLabels + " 2.5\n"));
  EXPECT_THAT(metrics.Text(),
              HasSubstr(std::string("ringmaster_worker_generation") + kLabels + " 7\n"));
  EXPECT_THAT(metrics.Text(),
              HasSubstr(std::string("ringmaster_exchange_bytes_per_step") + kLabels + " 64\n"));
  EXPECT_THAT(metrics.Text(), HasSubstr(std::string("ringmaster_planned_exchange_bytes_per_step") +
                                        kLabels + " 65\n"));
  EXPECT_THAT(metrics.Text(), Not(HasSubstr("ringmaster_validation_loss{")));
  metrics.LeaveRing();
  EXPECT_THAT(metrics.Text(), Not(HasSubstr("training_job=")));
  // Sums stay.
  EXPECT_THAT(metrics.Text(), HasSubstr("ringmaster_tokens_processed_total 100\n"));
  EXPECT_THAT(metrics.Text(), HasSubstr("ringmaster_step_duration_seconds_count 1\n"));
  EXPECT_THAT(metrics.Text(), HasSubstr("ringmaster_comm_bytes_total{op=\"exchange\"} 48\n"));
}

TEST(WorkerMetricsTest, NothingIsShownAsCurrentWithoutALease) {
  WorkerMetrics metrics;
  metrics.EnterRing(Ring());
  metrics.OnStep(Record(2.5), kBytes);
  metrics.SetPublishing(false);
  EXPECT_THAT(metrics.Text(), Not(HasSubstr("training_job=")));
  EXPECT_THAT(metrics.Text(), HasSubstr("ringmaster_worker_publishing 0\n"));
  metrics.OnStep(Record(2.25), kBytes);
  EXPECT_THAT(metrics.Text(), Not(HasSubstr("training_job=")));
  metrics.SetPublishing(true);
  EXPECT_THAT(metrics.Text(), HasSubstr(std::string("ringmaster_loss") + kLabels + " 2.25\n"));
}

TEST(WorkerMetricsTest, MemoryIsTheDevicesWhenItHasItsOwn) {
  WorkerMetrics metrics;
  EXPECT_GT(metrics.MemoryUsedBytes(), 0);
  EXPECT_THAT(metrics.Text(), Not(HasSubstr("ringmaster_cuda_memory_bytes{")));
  metrics.SetDeviceMemory([] {
    return WorkerMetrics::DeviceMemory{.allocated_bytes = 10,
                                       .reserved_bytes = 30,
                                       .peak_allocated_bytes = 20,
                                       .peak_reserved_bytes = 40,
                                       .limit_bytes = 50};
  });
  metrics.SampleDeviceMemory();
  EXPECT_EQ(metrics.MemoryUsedBytes(), 30);
  for (const char* shown : {"\"allocated\"} 10", "\"reserved\"} 30", "\"peak_allocated\"} 20",
                            "\"peak_reserved\"} 40", "\"limit\"} 50"}) {
    EXPECT_THAT(metrics.Text(),
                HasSubstr(absl::StrCat("ringmaster_cuda_memory_bytes{kind=", shown, "\n")));
  }
}

// Heartbeats and the abort of a ring are one thread's, which must not wait for the allocator.
TEST(WorkerMetricsTest, OnlyASampleAsksTheDevice) {
  WorkerMetrics metrics;
  std::optional<WorkerMetrics::DeviceMemory> memory;
  int asked = 0;
  metrics.SetDeviceMemory([&] {
    ++asked;
    return memory;
  });
  EXPECT_EQ(metrics.MemoryUsedBytes(), 0);
  metrics.Text();
  EXPECT_EQ(asked, 0);
  memory = {.allocated_bytes = 10, .reserved_bytes = 30, .peak_allocated_bytes = 20};
  metrics.SampleDeviceMemory();
  memory.reset();
  metrics.SampleDeviceMemory();
  EXPECT_EQ(metrics.MemoryUsedBytes(), 30) << "the last that could be read";
  metrics.Text();
  EXPECT_EQ(asked, 2);
}

TEST(WorkerMetricsTest, EveryMetricShownIsInTheTable) {
  WorkerMetrics metrics;
  metrics.EnterRing(Ring());
  metrics.OnStep(Record(2.5), kBytes);
  metrics.OnFault(v1::Fault::EXCEPTION);
  const std::string table = WorkerMetrics::Markdown();
  const std::string text = metrics.Text();
  int families = 0;
  for (size_t at = text.find("# TYPE "); at != std::string::npos;
       at = text.find("# TYPE ", at + 1)) {
    const size_t name = at + 7;
    const std::string family = text.substr(name, text.find(' ', name) - name);
    EXPECT_THAT(table, HasSubstr("| `" + family + "` |"));
    ++families;
  }
  EXPECT_GT(families, 15);
}

}  // namespace
}  // namespace ringmaster::worker
