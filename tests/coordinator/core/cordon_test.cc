#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "proto/rpc_status.h"
#include "ringmaster/store/records.pb.h"
#include "tests/coordinator/core/core_driver.h"
#include "tests/coordinator/core/job_requests.h"

namespace ringmaster::coordinator {
namespace {

using ::testing::HasSubstr;
using Code = absl::StatusCode;
using Episode = v1::RecoveryEpisode;
using Answer = absl::StatusOr<v1::Worker>;

Answer Cordon(CoreDriver& d, const std::string& worker, const std::string& reason = "") {
  v1::CordonWorkerRequest request;
  request.set_name("workers/" + worker);
  request.set_reason(reason);
  return d.Call<v1::Worker>(request);
}

Answer Drain(CoreDriver& d, const std::string& worker, const std::string& reason = "") {
  v1::DrainWorkerRequest request;
  request.set_name("workers/" + worker);
  request.set_reason(reason);
  return d.Call<v1::Worker>(request);
}

Answer Uncordon(CoreDriver& d, const std::string& worker) {
  v1::UncordonWorkerRequest request;
  request.set_name("workers/" + worker);
  return d.Call<v1::Worker>(request);
}

Answer Get(CoreDriver& d, const std::string& worker) {
  v1::GetWorkerRequest request;
  request.set_name("workers/" + worker);
  return d.Call<v1::Worker>(request);
}

v1::PendingReason PendingOf(CoreDriver& d) { return d.Job("job-a").status().pending_reason(); }

// Nothing of it is held against the job.
void ExpectNoEpisode(CoreDriver& d) {
  EXPECT_EQ(d.Job("job-a").status().episodes_count(), 0);
  store::JobRecord record;
  record.ParseFromString(d.rows().at({static_cast<int>(Table::kJobs), d.Job("job-a").name()}));
  EXPECT_EQ(record.recoveries_counted(), 0);
}

TEST(CordonTest, Refusals) {
  CoreDriver d;
  d.Hello("a", 'a');
  struct Row {
    std::string name, reason;
    Code code;
    std::string field;
  };
  const std::vector<Row> rows = {
      {"", "", Code::kInvalidArgument, "name"},
      {"a/b", "", Code::kInvalidArgument, "name"},
      {"none", "", Code::kNotFound, ""},
      {"a", std::string(257, 'x'), Code::kInvalidArgument, "reason"},
      {"a", "two\nlines", Code::kInvalidArgument, "reason"},
  };
  for (const Row& row : rows) {
    std::vector<Answer> answers = {Cordon(d, row.name, row.reason), Drain(d, row.name, row.reason)};
    if (row.reason.empty()) answers.push_back(Uncordon(d, row.name));
    for (const Answer& answer : answers) {
      EXPECT_EQ(answer.status().code(), row.code) << row.name << ": " << answer.status();
      if (row.field.empty()) continue;
      EXPECT_EQ(Details(answer.status()).fields.at(0).field, row.field) << answer.status();
    }
  }
  EXPECT_TRUE(d.rows().empty());
  EXPECT_TRUE(Cordon(d, "a", std::string(256, 'x')).ok());
  d.Core().SetStoreFull(d.now(), true);
  for (const Answer& answer : {Cordon(d, "a"), Drain(d, "a"), Uncordon(d, "a")}) {
    EXPECT_EQ(answer.status().code(), Code::kUnavailable);
  }
}

TEST(CordonTest, AgainItChangesOnlyWhatIsAsked) {
  CoreDriver d;
  d.Hello("a", 'a');
  EXPECT_FALSE(Get(d, "a")->has_cordon());
  EXPECT_FALSE(Get(d, "a")->drained());
  const v1::Worker first = *Cordon(d, "a", "a new fan");
  EXPECT_EQ(first.state(), v1::Worker::IDLE);
  EXPECT_EQ(first.cordon().reason(), "a new fan");
  EXPECT_EQ(first.cordon().cordon_time().seconds(), absl::ToUnixSeconds(d.now()));
  EXPECT_FALSE(first.cordon().drain());
  EXPECT_TRUE(first.drained());
  d.Sleep(absl::Seconds(5));
  EXPECT_EQ(Cordon(d, "a")->cordon().SerializeAsString(), first.cordon().SerializeAsString());
  const v1::Cordon drain = Drain(d, "a", "a new disk")->cordon();
  EXPECT_TRUE(drain.drain());
  EXPECT_EQ(drain.reason(), "a new disk");
  EXPECT_EQ(drain.cordon_time().seconds(), first.cordon().cordon_time().seconds());
  EXPECT_TRUE(Cordon(d, "a")->cordon().drain()) << "only an uncordon ends a drain";
  EXPECT_EQ(d.Core().Snapshot(d.now()).cordoned_workers, 1);
  for (int i = 0; i < 2; ++i) EXPECT_FALSE(Uncordon(d, "a")->has_cordon());
  EXPECT_TRUE(d.rows().empty());
  EXPECT_EQ(d.Core().Snapshot(d.now()).cordoned_workers, 0);
}

TEST(CordonTest, ACordonedWorkerGetsNoRingAndTheReasonCountsIt) {
  CoreDriver d;
  d.Hello("a", 'a');
  d.Hello("b", 'b');
  ASSERT_TRUE(Cordon(d, "a").ok());
  d.Create("job-a");
  EXPECT_EQ(PendingOf(d).code(), "WORKERS_UNSUITABLE");
  EXPECT_THAT(PendingOf(d).message(), HasSubstr("of 2 at most 1 are suitable: 1 with a cordon"));
  d.Create("job-b", 1);
  EXPECT_EQ(d.WorkerAt("job-b", 0), "b") << "the job that cannot run holds up nobody";
  ASSERT_TRUE(Uncordon(d, "a").ok());
  EXPECT_EQ(PendingOf(d).code(), "WORKERS_BUSY");
  d.Hello("c", 'c');
  EXPECT_EQ(d.StateOf("job-a"), "STARTING");
}

TEST(CordonTest, ARingGoesOnUntilItFormsAgain) {
  CoreDriver d;
  d.RunningPair();
  d.Step("job-a", 3);
  d.Checkpoint("job-a", 3);
  const std::string lost = d.WorkerAt("job-a", 1), cordoned = d.WorkerAt("job-a", 0);
  d.Heard(cordoned);
  EXPECT_FALSE(Cordon(d, cordoned)->drained());
  EXPECT_EQ(d.Heard(cordoned), "");
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  d.Exit(lost, 9);
  d.Aborted("job-a", 0, CoreDriver::Held(3));
  EXPECT_EQ(PendingOf(d).code(), "WAITING_FOR_REPLACEMENT");
  EXPECT_THAT(PendingOf(d).message(), HasSubstr("needs 2 more of 2 workers; 0 suitable ones are "
                                                "idle"));
  d.Hello("c", 'c');
  d.Heard(cordoned);
  d.Hello("d", 'd');
  EXPECT_EQ(d.Job("job-a").status().generation(), 2);
  EXPECT_EQ(d.Heard(cordoned), "ReleaseJob");
  EXPECT_TRUE(Get(d, cordoned)->drained());
}

TEST(CordonTest, OfARingThatFormsAgainAnUncordonedMemberStays) {
  CoreDriver d;
  d.RunningPair();
  d.Step("job-a", 3);
  d.Checkpoint("job-a", 3);
  const std::string lost = d.WorkerAt("job-a", 1), left = d.WorkerAt("job-a", 0);
  ASSERT_TRUE(Cordon(d, left).ok());
  d.Exit(lost, 9);
  d.Aborted("job-a", 0, CoreDriver::Held(3));
  d.Hello("c", 'c');
  EXPECT_EQ(d.StateOf("job-a"), "RECOVERING");
  ASSERT_TRUE(Uncordon(d, left).ok());
  EXPECT_EQ(d.Job("job-a").status().generation(), 2);
  d.Heard(left);
  d.Form("job-a", CoreDriver::Held(3));
  EXPECT_EQ(d.Job("job-a").status().progress().step(), 3);
}

TEST(CordonTest, AMemberThatAloneHoldsTheNewestStepsStays) {
  CoreDriver d;
  d.RunningPair();
  d.Step("job-a", 3);
  const std::string lost = d.WorkerAt("job-a", 1), cordoned = d.WorkerAt("job-a", 0);
  ASSERT_TRUE(Cordon(d, cordoned).ok());
  d.Exit(lost, 9);
  d.Aborted("job-a", 0, CoreDriver::Held(3));
  EXPECT_THAT(PendingOf(d).message(), HasSubstr("needs 1 more of 2 workers"));
  d.Hello("c", 'c');
  EXPECT_EQ(d.Job("job-a").status().generation(), 2);
  EXPECT_FALSE(Get(d, cordoned)->drained());
  d.Form("job-a", CoreDriver::Held(3));
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  EXPECT_EQ(d.Job("job-a").status().progress().step(), 3);
}

TEST(DrainTest, TheJobWritesACheckpointAndGoesOnElsewhere) {
  CoreDriver d;
  d.RunningPair();
  d.Hello("c", 'c');
  d.Step("job-a", 3);
  d.Heard("a");
  d.Heard("b");
  const auto draining = Drain(d, "a", "a new disk");
  ASSERT_TRUE(draining.ok()) << draining.status();
  EXPECT_FALSE(draining->drained());
  EXPECT_EQ(d.StateOf("job-a"), "PAUSING");
  EXPECT_EQ(d.Job("job-a").status().state_reason(), "workers/a is drained: a new disk");
  EXPECT_EQ(d.Heard("a"), "FinishSteps");
  EXPECT_EQ(d.Heard("b"), "FinishSteps");
  ASSERT_TRUE(Drain(d, "a").ok());
  EXPECT_EQ(d.Heard("a"), "") << "it was told";
  d.FinishRing("job-a", 4);
  EXPECT_EQ(d.StateOf("job-a"), "STARTING");
  EXPECT_THAT(d.Heard("a"), HasSubstr("ReleaseJob"));
  EXPECT_TRUE(Get(d, "a")->drained());
  for (const int rank : {0, 1}) EXPECT_NE(d.WorkerAt("job-a", rank), "a");
  d.Join("job-a", 0);
  d.Join("job-a", 1);
  d.Heard("c");
  const v1::RestorePlan plan = d.Last("c", v1::Directive::kConnectRing).connect_ring().restore();
  EXPECT_EQ(plan.source(), Episode::CHECKPOINT);
  EXPECT_EQ(plan.step(), 4);
  d.Ready("job-a", 0, CoreDriver::Held(4));
  d.Ready("job-a", 1, CoreDriver::Held(4));
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  EXPECT_EQ(d.Job("job-a").status().progress().step(), 4);
  ExpectNoEpisode(d);
}

TEST(DrainTest, WithoutOthersTheJobIsQueuedUntilThereIsRoom) {
  for (const bool uncordoned : {true, false}) {
    CoreDriver d;
    d.RunningPair();
    ASSERT_TRUE(Drain(d, "a").ok());
    d.FinishRing("job-a", 4);
    EXPECT_EQ(d.StateOf("job-a"), "QUEUED");
    EXPECT_THAT(PendingOf(d).message(), HasSubstr("1 with a cordon"));
    EXPECT_EQ(PendingOf(d).queue_position(), 1);
    if (uncordoned) {
      ASSERT_TRUE(Uncordon(d, "a").ok());
    } else {
      d.Hello("c", 'c');
    }
    EXPECT_EQ(d.StateOf("job-a"), "STARTING");
    ExpectNoEpisode(d);
  }
}

TEST(DrainTest, ARingThatFormsIsLetFinish) {
  CoreDriver d;
  d.FormingPair();
  ASSERT_TRUE(Drain(d, "a").ok());
  EXPECT_EQ(d.StateOf("job-a"), "STARTING");
  d.Heard("a");
  d.Form("job-a");
  EXPECT_EQ(d.Heard("a"), "ConnectRing StartSteps FinishSteps");
  d.FinishRing("job-a", 1);
  EXPECT_EQ(d.StateOf("job-a"), "QUEUED");
}

TEST(DrainTest, TakenBackBeforeTheRingHasStoppedTheJobIsQueued) {
  CoreDriver d;
  d.RunningPair();
  ASSERT_TRUE(Drain(d, "a").ok());
  ASSERT_TRUE(Uncordon(d, "a").ok());
  EXPECT_EQ(d.StateOf("job-a"), "PAUSING");
  d.FinishRing("job-a", 4);
  EXPECT_EQ(d.StateOf("job-a"), "STARTING");
  EXPECT_EQ(d.Job("job-a").status().generation(), 2);
  ExpectNoEpisode(d);
}

TEST(DrainTest, ACordonThatBecomesADrain) {
  CoreDriver d;
  d.RunningPair();
  ASSERT_TRUE(Cordon(d, "a").ok());
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  ASSERT_TRUE(Drain(d, "a").ok());
  EXPECT_EQ(d.StateOf("job-a"), "PAUSING");
}

TEST(DrainTest, APauseMeanwhileIsKept) {
  CoreDriver d;
  d.RunningPair();
  d.Hello("c", 'c');
  ASSERT_TRUE(Drain(d, "a").ok());
  ASSERT_TRUE(Pause(d).ok());
  d.FinishRing("job-a", 4);
  EXPECT_EQ(d.StateOf("job-a"), "PAUSED");
  EXPECT_TRUE(Get(d, "a")->drained());
}

// What its peer holds is newer than any checkpoint.
TEST(DrainTest, AMemberThatDiesMeanwhileIsRecoveredFromWithoutTheDrainedOne) {
  CoreDriver d;
  d.RunningPair();
  d.Step("job-a", 3);
  ASSERT_TRUE(Drain(d, d.WorkerAt("job-a", 1)).ok());
  d.Exit(d.WorkerAt("job-a", 1), 9);
  d.Aborted("job-a", 0, CoreDriver::Held(3));
  EXPECT_THAT(PendingOf(d).message(), HasSubstr("needs 1 more of 2"));
  d.Hello("c", 'c');
  d.Form("job-a", CoreDriver::Held(3));
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  EXPECT_EQ(d.Job("job-a").status().progress().step(), 3);
}

TEST(DrainTest, ACheckpointThatCannotBeWrittenDoesNotHoldItUp) {
  CoreDriver d;
  d.RunningPair();
  d.Hello("c", 'c');
  const std::string drained = d.WorkerAt("job-a", 1);
  ASSERT_TRUE(Drain(d, drained).ok());
  d.FinishRing("job-a", 4, "no space left on device");
  EXPECT_EQ(d.StateOf("job-a"), "RECOVERING");
  EXPECT_THAT(d.Job("job-a").status().episodes(0).message(), HasSubstr("no space left on device"));
  d.Aborted("job-a", 0, CoreDriver::Held(4));
  d.Heard(drained);
  d.Aborted("job-a", 1, CoreDriver::Held(4));
  EXPECT_EQ(d.Heard(drained), "ReleaseJob");
  d.Form("job-a", CoreDriver::Held(4));
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  EXPECT_EQ(d.Job("job-a").status().progress().step(), 4);
  EXPECT_TRUE(Get(d, drained)->drained());
}

// They stop again as soon as their ring stands.
TEST(DrainTest, OfAllMembersACheckpointThatCannotBeWrittenLosesNoStep) {
  CoreDriver d;
  d.RunningPair();
  d.Hello("c", 'c');
  d.Hello("d", 'd');
  const std::string first = d.WorkerAt("job-a", 0), second = d.WorkerAt("job-a", 1);
  ASSERT_TRUE(Drain(d, first).ok());
  ASSERT_TRUE(Drain(d, second).ok());
  d.FinishRing("job-a", 4, "no space left on device");
  d.Aborted("job-a", 0, CoreDriver::Held(4));
  d.Aborted("job-a", 1, CoreDriver::Held(4));
  d.Form("job-a", CoreDriver::Held(4));
  EXPECT_EQ(d.Job("job-a").status().progress().step(), 4);
  EXPECT_EQ(d.StateOf("job-a"), "PAUSING");
  d.FinishRing("job-a", 5);
  EXPECT_TRUE(Get(d, first)->drained());
  EXPECT_TRUE(Get(d, second)->drained());
  EXPECT_EQ(d.StateOf("job-a"), "STARTING");
}

// A ring of two does a step, fails to write it and stands again.
void FailToStop(CoreDriver& d, int64_t step) {
  ASSERT_EQ(d.StateOf("job-a"), "PAUSING");
  d.FinishRing("job-a", step, "no space left on device");
  for (const int rank : {0, 1}) d.Aborted("job-a", rank, CoreDriver::Held(step));
  d.Form("job-a", CoreDriver::Held(step));
}

// Each costs a recovery: the first is made at once, the others as those of a recovery.
TEST(DrainTest, WhileNoCheckpointCanBeWrittenTheJobRunsBetweenTheTries) {
  CoreDriver d;
  d.RunningPair();
  for (const int rank : {0, 1}) ASSERT_TRUE(Drain(d, d.WorkerAt("job-a", rank)).ok());
  int64_t step = 0;
  const auto fail = [&] { FailToStop(d, ++step); };
  fail();
  for (const int64_t ms : {250, 500, 1000}) {
    fail();
    EXPECT_EQ(d.StateOf("job-a"), "RUNNING") << ms;
    d.Advance(absl::Milliseconds(ms - 250));
    EXPECT_EQ(d.StateOf("job-a"), "RUNNING") << ms;
    d.Advance(absl::Milliseconds(250));
    EXPECT_EQ(d.StateOf("job-a"), "PAUSING") << ms;
  }
  fail();
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  // Somebody made room.
  d.Step("job-a", ++step);
  d.Checkpoint("job-a", step);
  d.Tick();
  EXPECT_EQ(d.StateOf("job-a"), "PAUSING");
  d.FinishRing("job-a", ++step);
  EXPECT_EQ(d.StateOf("job-a"), "QUEUED");
}

TEST(DrainTest, ARingThatBreaksBetweenTheTriesDoesNotPutThemOff) {
  CoreDriver d;
  d.RunningPair();
  for (const char* worker : {"a", "b"}) ASSERT_TRUE(Drain(d, worker).ok());
  FailToStop(d, 1);
  FailToStop(d, 2);
  d.Advance(absl::Milliseconds(250));
  FailToStop(d, 3);
  d.Advance(absl::Milliseconds(250));
  d.Step("job-a", 4);
  d.Fail("job-a", 0, v1::Fault::COMMUNICATION_ERROR);
  for (const int rank : {0, 1}) d.Aborted("job-a", rank, CoreDriver::Held(4));
  d.Form("job-a", CoreDriver::Held(4));
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  d.Advance(absl::Milliseconds(250));
  EXPECT_EQ(d.StateOf("job-a"), "PAUSING");
}

TEST(DrainTest, SurvivesARestart) {
  CoreDriver d;
  d.RunningPair();
  ASSERT_TRUE(Drain(d, "a", "a new disk").ok());
  d.Restart(v1::PHASE_RUNNING, CoreDriver::Held(3));
  EXPECT_EQ(d.StateOf("job-a"), "PAUSING");
  EXPECT_EQ(d.Heard("a"), "Welcome FinishSteps");
  EXPECT_EQ(Get(d, "a")->cordon().reason(), "a new disk");
  d.FinishRing("job-a", 4);
  EXPECT_EQ(d.StateOf("job-a"), "QUEUED");
  EXPECT_TRUE(Get(d, "a")->drained());

  // Nor is it forgotten where the ring runs between two tries.
  CoreDriver between;
  between.RunningPair();
  for (const char* worker : {"a", "b"}) ASSERT_TRUE(Drain(between, worker).ok());
  for (const int64_t step : {1, 2}) FailToStop(between, step);
  ASSERT_EQ(between.StateOf("job-a"), "RUNNING");
  between.Restart(v1::PHASE_RUNNING, CoreDriver::Held(2));
  EXPECT_EQ(between.StateOf("job-a"), "RUNNING");
  between.Advance(absl::Seconds(10));
  EXPECT_EQ(between.StateOf("job-a"), "PAUSING");
}

TEST(CordonTest, OfAWorkerThatIsAwayItIsKeptAndShown) {
  CoreDriver d;
  d.Hello("a", 'a');
  ASSERT_TRUE(Cordon(d, "a", "a new fan").ok());
  for (const bool restarted : {true, false}) {
    if (restarted) {
      d.Start();
    } else {
      d.Hello("a", 'b');
      EXPECT_EQ(Get(d, "a")->state(), v1::Worker::IDLE);
      d.Exit("a", 9);
      d.Advance(absl::Minutes(11), /*heartbeats=*/false);
    }
    const v1::Worker away = *Get(d, "a");
    EXPECT_EQ(away.state(), v1::Worker::LOST);
    EXPECT_EQ(away.cordon().reason(), "a new fan");
    EXPECT_TRUE(away.drained());
    EXPECT_EQ(d.Call<v1::ListWorkersResponse>(v1::ListWorkersRequest())->workers_size(), 1);
  }
  d.Create("job-a", 1);
  d.Hello("a", 'c');
  EXPECT_EQ(PendingOf(d).code(), "WORKERS_UNSUITABLE");
  d.Exit("a", 9);
  ASSERT_TRUE(Uncordon(d, "a").ok());
  d.Advance(absl::Minutes(11), /*heartbeats=*/false);
  EXPECT_EQ(Get(d, "a").status().code(), Code::kNotFound);
  d.Hello("a", 'd');
  EXPECT_EQ(d.StateOf("job-a"), "STARTING");
}

}  // namespace
}  // namespace ringmaster::coordinator
