#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>
#include <vector>

#include "tests/coordinator/core/core_driver.h"

namespace ringmaster::coordinator {
namespace {

using Code = absl::StatusCode;

TEST(SnapshotTest, DoesNotCopyALongQueue) {
  CoreDriver d;
  for (int i = 0; i < 120; ++i) d.Create(absl::StrCat("job-", i));
  const CoreSnapshot queued = d.Core().Snapshot(d.now());
  EXPECT_EQ(queued.unfinished_jobs, 120);
  EXPECT_EQ(queued.active_jobs.size(), 100);
}

TEST(SnapshotTest, CountsWhatBecameOfTheLooksForWorkers) {
  CoreDriver d;
  const auto attempts = [&d] { return d.Core().Snapshot(d.now()).counters.placement_attempts; };
  d.Hello("a", 'a');
  d.Create("job-a");
  EXPECT_EQ(attempts(), (std::map<std::string, int64_t>{{"NOT_ENOUGH_WORKERS", 1}}));
  d.Hello("b", 'b');
  EXPECT_EQ(attempts(), (std::map<std::string, int64_t>{{"NOT_ENOUGH_WORKERS", 1}, {"PLACED", 1}}));
  d.Form("job-a");
  d.Exit("b", 9);
  d.Aborted("job-a", 0);
  EXPECT_EQ(attempts()["WAITING_FOR_REPLACEMENT"], 1);
}

TEST(SnapshotTest, HeartbeatAgesAreOfTheWorkersWithALeaseInRisingOrder) {
  CoreDriver d;
  for (const char c : {'c', 'a', 'b', 'd'}) {
    d.Hello(std::string(1, c), c);
    d.Sleep(absl::Seconds(1));
  }
  d.Exit("b", 9);
  EXPECT_EQ(d.Core().Snapshot(d.now()).heartbeat_ages,
            (std::vector<absl::Duration>{absl::Seconds(1), absl::Seconds(3), absl::Seconds(4)}));
}

TEST(SnapshotTest, AnEndedJobStaysForAWhile) {
  CoreDriver d;
  d.RunningPair();
  d.Step("job-a", 3);
  EXPECT_TRUE(d.Core().Snapshot(d.now()).ended_jobs.empty());
  d.Fail("job-a", 0, v1::Fault::EXCEPTION, /*deterministic=*/true);
  // It never had a ring.
  v1::CancelTrainingJobRequest cancel;
  cancel.set_name(d.Create("job-b", 3));
  ASSERT_TRUE(d.Call<v1::TrainingJob>(cancel).ok());
  const absl::Time almost = d.now() + CoreSnapshot::kShownAfterEnd - absl::Milliseconds(1);
  for (const absl::Time now : {d.now(), almost}) {
    const CoreSnapshot snapshot = d.Core().Snapshot(now);
    EXPECT_TRUE(snapshot.active_jobs.empty());
    ASSERT_EQ(snapshot.ended_jobs.size(), 1);
    EXPECT_EQ(snapshot.ended_jobs[0].status().progress().step(), 3);
  }
  EXPECT_TRUE(d.Core().Snapshot(almost + absl::Milliseconds(1)).ended_jobs.empty());
}

TEST(CancelTest, EtagAndTerminalJobs) {
  CoreDriver d;
  const std::string name = d.Create("job-a");
  v1::CancelTrainingJobRequest request;
  request.set_name(name);
  request.set_etag("\"old\"");
  EXPECT_EQ(d.Call<v1::TrainingJob>(request).status().code(), Code::kAborted);
  v1::DeleteTrainingJobRequest remove;
  remove.set_name(name);
  EXPECT_EQ(d.Call<google::protobuf::Empty>(remove).status().code(), Code::kFailedPrecondition);
  request.set_etag(d.Job("job-a").etag());
  EXPECT_EQ(d.Call<v1::TrainingJob>(request)->status().state(), v1::TrainingJobStatus::CANCELLED);
  request.clear_etag();
  EXPECT_EQ(d.Call<v1::TrainingJob>(request)->status().state(), v1::TrainingJobStatus::CANCELLED);
  EXPECT_TRUE(d.Call<google::protobuf::Empty>(remove).ok());
  EXPECT_EQ(d.Call<google::protobuf::Empty>(remove).status().code(), Code::kNotFound);
  EXPECT_TRUE(d.rows().empty());
}

TEST(StoreFullTest, RequestIdsAreForgottenLater) {
  CoreDriver d;
  v1::CreateTrainingJobRequest request = d.CreateRequest("job-a");
  request.set_request_id("3f2a9c1e-5b7d-4e1a-9c3b-0d6f8a7e5b21");
  ASSERT_TRUE(d.Call<v1::TrainingJob>(request).ok());
  const auto rows_after = [&d](absl::Duration by) {
    d.Advance(by);
    return d.rows().size();
  };
  ASSERT_EQ(d.rows().size(), 2);
  d.Core().SetStoreFull(d.now(), true);
  EXPECT_EQ(rows_after(CoreDriver::Options().request_id_ttl + absl::Minutes(1)), 2);
  EXPECT_GT(d.Core().NextTick(), d.now());
  d.Core().SetStoreFull(d.now(), false);
  EXPECT_EQ(rows_after(absl::Minutes(1)), 1);
}

TEST(DrainTest, RefusesMutationsAndServesReads) {
  CoreDriver d;
  const std::string name = d.Create("job-a");
  d.Do(DrainRequested{});
  const auto refused = d.Call<v1::TrainingJob>(d.CreateRequest("job-b"));
  EXPECT_EQ(refused.status().code(), Code::kUnavailable);
  EXPECT_TRUE(Details(refused.status()).retry_delay.has_value());
  v1::ImportCheckpointRequest import;
  import.set_directory("/old/step-5");
  ManifestFile file;
  file.checkpoint.set_directory("/old/step-5");
  file.checkpoint.add_shards()->set_path("/old/step-5/a.safetensors");
  EXPECT_EQ(d.Call<v1::Checkpoint>(import, file).status().code(), Code::kUnavailable);
  v1::GetTrainingJobRequest get;
  get.set_name(name);
  EXPECT_TRUE(d.Call<v1::TrainingJob>(get).ok());
}

}  // namespace
}  // namespace ringmaster::coordinator
