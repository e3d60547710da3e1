#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/time/time.h"
#include "tests/coordinator/core/core_driver.h"

namespace ringmaster::coordinator {
namespace {

using Episode = v1::RecoveryEpisode;

const Episode& LastEpisode(CoreDriver& d) {
  EXPECT_FALSE(d.Job("job-a").status().episodes().empty());
  return *d.Job("job-a").status().episodes().rbegin();
}

TEST(RecoveryTest, ASpareTakesTheKilledWorkersPlace) {
  CoreDriver d;
  d.RunningPair();
  d.Step("job-a", 4);
  d.Hello("c", 'c');
  d.Heard("a");
  d.Exit("b", 9);
  EXPECT_EQ(d.StateOf("job-a"), "RECOVERING");
  EXPECT_EQ(d.Heard("a"), "AbortRing");
  EXPECT_EQ(d.Job("job-a").status().generation(), 1);
  d.Advance(absl::Milliseconds(250));
  d.Aborted("job-a", 0, CoreDriver::Held(4));
  EXPECT_EQ(d.Job("job-a").status().generation(), 2);
  EXPECT_EQ(d.Heard("a"), "FormRing");
  d.Join("job-a", 0, CoreDriver::Held(4));
  d.Join("job-a", 1);
  d.Heard("a");
  const v1::RestorePlan& plan = d.Last("a", v1::Directive::kConnectRing).connect_ring().restore();
  EXPECT_EQ(plan.source(), Episode::PEER);
  EXPECT_EQ(plan.step(), 4);
  EXPECT_EQ(plan.donor_rank(), 0);
  ASSERT_EQ(plan.receiver_ranks_size(), 1);
  EXPECT_EQ(plan.receiver_ranks(0), 1);
  d.Ready("job-a", 0, CoreDriver::Held(4));
  d.Ready("job-a", 1, CoreDriver::Held(4));
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  EXPECT_FALSE(LastEpisode(d).finished());
  d.Step("job-a", 5);
  const Episode& episode = LastEpisode(d);
  EXPECT_TRUE(episode.finished());
  EXPECT_EQ(episode.cause(), Episode::WORKER_EXIT);
  EXPECT_EQ(episode.detect_ms(), 30);
  EXPECT_EQ(episode.abort_ms(), 250);
  EXPECT_TRUE(episode.has_form_ms() && episode.has_restore_ms() && episode.has_first_step_ms());
  EXPECT_EQ(episode.lost_steps(), 0);
  EXPECT_EQ(episode.restore(), Episode::PEER);
  EXPECT_EQ(episode.from_generation(), 1);
  EXPECT_EQ(episode.to_generation(), 2);
  ASSERT_EQ(episode.joined_workers_size(), 1);
  EXPECT_EQ(episode.joined_workers(0), "workers/c (spare)");
}

// By the cause that was found in the end; not before it is over.
TEST(RecoveryTest, IsCountedWhenItHasEndedWithAStep) {
  CoreDriver d;
  d.RunningPair();
  EXPECT_EQ(d.Core().Snapshot(d.now()).counters.rings_formed, 1);
  d.Step("job-a", 4);
  d.Fail("job-a", 0, v1::Fault::COMMUNICATION_ERROR);
  d.Exit("b", 9);
  d.Hello("b", 'B');
  d.Aborted("job-a", 0, CoreDriver::Held(4));
  EXPECT_EQ(d.Core().Snapshot(d.now()).counters.rings_formed, 1) << "nobody is ready";
  d.Form("job-a", CoreDriver::Held(4));
  EXPECT_EQ(d.Core().Snapshot(d.now()).counters.rings_formed, 2);
  EXPECT_TRUE(d.last().episodes.empty());
  d.Step("job-a", 5);
  ASSERT_EQ(d.last().episodes.size(), 1u);
  EXPECT_EQ(d.last().episodes[0].episode.cause(), Episode::WORKER_EXIT);
  EXPECT_TRUE(d.last().episodes[0].episode.has_first_step_ms());
}

TEST(RecoveryTest, StepsThatTheAbortOvertookAreHeardOf) {
  CoreDriver d;
  d.RunningPair();
  d.Step("job-a", 4);
  d.Exit("b", 9);
  d.Step("job-a", 5);
  EXPECT_EQ(d.Job("job-a").status().progress().step(), 5);
  EXPECT_FALSE(LastEpisode(d).finished()) << "it is no step of the next generation";
  // One more was agreed on and never told: the next generation begins with it, and tells.
  d.Aborted("job-a", 0, CoreDriver::Held(6));
  d.Hello("b", 'B');
  d.Form("job-a", CoreDriver::Held(6));
  EXPECT_EQ(d.Job("job-a").status().progress().step(), 6);
  d.Step("job-a", 6);
  EXPECT_EQ(d.Job("job-a").status().progress().loss(), 5.0 / 6);
  EXPECT_FALSE(LastEpisode(d).finished());
  d.Step("job-a", 7);
  EXPECT_TRUE(LastEpisode(d).finished());
}

TEST(RecoveryTest, Rank0HearsWhichCheckpointsExist) {
  CoreDriver d;
  d.RunningPair();
  d.Step("job-a", 5);
  d.Checkpoint("job-a", 5);
  d.Exit("b", 9);
  d.Aborted("job-a", 0, CoreDriver::Held(5));
  d.Hello("b", 'B');
  d.Form("job-a", CoreDriver::Held(5));
  d.Heard("a");
  const v1::StartSteps start = d.Last("a", v1::Directive::kStartSteps).start_steps();
  ASSERT_EQ(start.existing_checkpoints().entries_size(), 1);
  EXPECT_EQ(start.existing_checkpoints().entries(0).step(), 5);
  EXPECT_EQ(start.existing_checkpoints().entries(0).generation(), 1);
  d.Heard("b");
  EXPECT_FALSE(d.Last("b", v1::Directive::kStartSteps).start_steps().has_existing_checkpoints());
}

TEST(RecoveryTest, WaitsForTheRestartedWorker) {
  CoreDriver d;
  d.RunningPair();
  d.Exit("b", 9);
  d.Aborted("job-a", 0, CoreDriver::Held(3));
  EXPECT_EQ(d.Job("job-a").status().pending_reason().code(), "WAITING_FOR_REPLACEMENT");
  d.Hello("b", 'B');
  EXPECT_EQ(d.Job("job-a").status().generation(), 2);
  EXPECT_FALSE(d.Job("job-a").status().has_pending_reason());
  EXPECT_EQ(LastEpisode(d).joined_workers(0), "workers/b (restarted)");
}

TEST(RecoveryTest, AWarmSpareIsBetterThanTheRestartedWorker) {
  CoreDriver d;
  d.RunningPair();
  d.Hello("c", 'c');
  d.Advance(absl::Seconds(1));
  d.Exit("b", 9);
  d.Hello("b", 'B');
  d.Aborted("job-a", 0, CoreDriver::Held(3));
  EXPECT_EQ(d.WorkerAt("job-a", 0), "a");
  EXPECT_EQ(d.WorkerAt("job-a", 1), "c");
  EXPECT_EQ(LastEpisode(d).joined_workers(0), "workers/c (spare)");
}

TEST(RecoveryTest, GoesBackToTheQueueWithoutReplacement) {
  CoreDriver d;
  d.RunningPair();
  d.Exit("b", 9);
  d.Aborted("job-a", 0, CoreDriver::Held(3));
  d.Heard("a");
  d.Advance(absl::Seconds(601));
  EXPECT_EQ(d.StateOf("job-a"), "QUEUED");
  EXPECT_EQ(d.Job("job-a").status().pending_reason().queue_position(), 1);
  EXPECT_EQ(d.Heard("a"), "ReleaseJob");
  d.Hello("b", 'B');
  EXPECT_EQ(d.StateOf("job-a"), "STARTING");
  d.Form("job-a");
  EXPECT_EQ(d.Job("job-a").status().progress().step(), 0);
}

TEST(RecoveryTest, APeersErrorIsExplainedByTheExitThatFollows) {
  CoreDriver d;
  d.RunningPair();
  d.Fail("job-a", 0, v1::Fault::COMMUNICATION_ERROR);
  EXPECT_EQ(LastEpisode(d).cause(), Episode::COMMUNICATION);
  d.Aborted("job-a", 0, CoreDriver::Held(3));
  d.Exit("b", 9, absl::Milliseconds(80));
  EXPECT_EQ(LastEpisode(d).cause(), Episode::WORKER_EXIT);
  EXPECT_EQ(LastEpisode(d).detect_ms(), 80);
  EXPECT_EQ(d.Job("job-a").status().episodes_count(), 1);
}

TEST(RecoveryTest, AnEpisodeNamesTheWorkerThatAPeersErrorBlames) {
  CoreDriver d;
  d.RunningPair();
  v1::WorkerReport report;
  *report.mutable_fault()->mutable_ring() = d.Ring("job-a", 0);
  report.mutable_fault()->set_kind(v1::Fault::COMMUNICATION_ERROR);
  report.mutable_fault()->set_message("receive from rank 1 exceeded 30s");
  report.mutable_fault()->add_accused_ranks(1);
  d.Report("a", report);
  EXPECT_EQ(LastEpisode(d).message(),
            "workers/a (rank 0): receive from rank 1 exceeded 30s (rank 1 is workers/b)");
}

TEST(RecoveryTest, ASilentWorkerLosesItsLeaseAndIsToldToDie) {
  CoreDriver d;
  d.RunningPair();
  d.Heard("b");
  // a goes on, b is stopped.
  for (int i = 0; i < 6; ++i) {
    d.Advance(absl::Seconds(1), false);
    d.Heartbeat("a");
  }
  EXPECT_EQ(d.StateOf("job-a"), "RECOVERING");
  EXPECT_EQ(LastEpisode(d).cause(), Episode::LEASE_EXPIRED);
  EXPECT_EQ(d.Heard("b"), "Die");
  // It wakes up and comes again, as the same process: it is refused.
  d.Hello("b", 'b');
  EXPECT_EQ(d.Heard("b"), "Die");
  d.Aborted("job-a", 0, CoreDriver::Held(3));
  EXPECT_EQ(d.Job("job-a").status().generation(), 1);
}

TEST(RecoveryTest, AWorkerOfALaterEpochIsToldThatItMustBeReplaced) {
  CoreDriver d;
  v1::WorkerReport report;
  report.set_incarnation(std::string(32, 'a'));
  report.set_epoch(7);
  report.mutable_hello()->set_worker("workers/a");
  const Output output = d.Do(WorkerReported{99, report});
  ASSERT_EQ(output.directives.size(), 1);
  const DirectiveTo& told = output.directives[0];
  ASSERT_TRUE(told.directive.has_value());
  EXPECT_TRUE(told.directive->has_die());
  EXPECT_EQ(told.directive->epoch(), 1);
  EXPECT_TRUE(told.close);
  EXPECT_EQ(Details(told.close_status).reason, "STALE_COORDINATOR");
}

TEST(RecoveryTest, EchoesOfAFaultDoNotMakeItsMessageGrow) {
  CoreDriver d;
  d.RunningPair();
  v1::WorkerReport report;
  v1::Fault* fault = report.mutable_fault();
  *fault->mutable_ring() = d.Ring("job-a", 0);
  fault->set_kind(v1::Fault::COMMUNICATION_ERROR);
  // Two bytes a character, so that the limit is within one.
  fault->set_message("x");
  for (int i = 0; i < 25'000; ++i) fault->mutable_message()->append("\xC3\xA9");
  for (int i = 0; i < 20; ++i) d.Report(d.WorkerAt("job-a", 0), report);
  EXPECT_EQ(LastEpisode(d).cause(), Episode::COMMUNICATION);
  EXPECT_LT(LastEpisode(d).message().size(), 3000);
  EXPECT_NE(LastEpisode(d).message().find("48002 more bytes"), std::string::npos)
      << LastEpisode(d).message();
  // One that explains it still does.
  fault->set_kind(v1::Fault::OUT_OF_MEMORY_ERROR);
  fault->set_message("no memory");
  for (int i = 0; i < 3; ++i) d.Report(d.WorkerAt("job-a", 0), report);
  EXPECT_EQ(LastEpisode(d).cause(), Episode::OUT_OF_MEMORY_FAULT);
  EXPECT_LT(LastEpisode(d).message().size(), 3000);
}

TEST(RecoveryTest, ABlipOfTheConnectionHarmsNothing) {
  CoreDriver d;
  d.RunningPair();
  d.Break("b");
  d.Advance(absl::Milliseconds(250));
  d.Hello("b", 'b', v1::PHASE_RUNNING, d.Ring("job-a", 1));
  EXPECT_EQ(d.Heard("b"), "Welcome");
  d.Advance(absl::Seconds(2));
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  EXPECT_EQ(d.Job("job-a").status().episodes_count(), 0);
}

TEST(RecoveryTest, ABrokenConnectionCountsOnlyWhenTheRingStandsStill) {
  CoreDriver d;
  d.RunningPair();
  d.Break("b");
  for (int step = 1; step <= 8; ++step) {
    d.Advance(absl::Milliseconds(250));
    d.Step("job-a", step);
  }
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  d.Advance(absl::Seconds(1));
  EXPECT_EQ(d.StateOf("job-a"), "RECOVERING");
  EXPECT_EQ(LastEpisode(d).cause(), Episode::COMMUNICATION);
}

TEST(RecoveryTest, TheRingMovesOnWithoutAWorkerThatCannotAbort) {
  CoreDriver d;
  d.RunningPair();
  d.Hello("c", 'c');
  d.Fail("job-a", 1, v1::Fault::EXCEPTION);
  d.Aborted("job-a", 1, CoreDriver::Held(0));
  d.Heard("a");
  // abort_deadline 5 s and the margin.
  d.Advance(absl::Seconds(8));
  EXPECT_EQ(d.Heard("a"), "ReleaseJob");
  EXPECT_EQ(d.Core().Snapshot(d.now()).counters.worker_quarantines["NO_ABORT"], 1);
  EXPECT_EQ(d.Job("job-a").status().generation(), 2);
  for (const auto& rank : d.Job("job-a").status().ranks()) EXPECT_NE(rank.worker(), "workers/a");
}

TEST(RecoveryTest, ARankThatDoesNotGetReadyCostsTheOthersNothing) {
  CoreDriver d;
  d.RunningPair();
  d.Step("job-a", 4);
  d.Hello("c", 'c');
  d.Exit("b", 9);
  d.Aborted("job-a", 0, CoreDriver::Held(4));
  d.Join("job-a", 0, CoreDriver::Held(4));
  d.Join("job-a", 1);
  d.Ready("job-a", 0, CoreDriver::Held(4));
  d.Heard("a");
  const absl::Duration limit = CoreDriver::Options().ready_timeout;
  d.Advance(limit - absl::Milliseconds(250));
  EXPECT_EQ(d.Heard("a"), "");
  d.Advance(absl::Milliseconds(500));
  EXPECT_EQ(d.Heard("a"), "AbortRing") << "the abort has a time-out of its own";
  d.Aborted("job-a", 0, CoreDriver::Held(4));
  d.Aborted("job-a", 1);
  d.Join("job-a", 0, CoreDriver::Held(4));
  d.Join("job-a", 1);
  d.Heard("a");
  const v1::RestorePlan& plan = d.Last("a", v1::Directive::kConnectRing).connect_ring().restore();
  EXPECT_EQ(plan.source(), Episode::PEER);
  EXPECT_EQ(plan.step(), 4);
}

TEST(CancelTest, AbortsTheRingFirst) {
  CoreDriver d;
  d.RunningPair();
  d.Heard("a");
  v1::CancelTrainingJobRequest request;
  request.set_name(d.Job("job-a").name());
  EXPECT_EQ(d.Call<v1::TrainingJob>(request)->status().state(), v1::TrainingJobStatus::CANCELLING);
  EXPECT_EQ(d.Heard("a"), "AbortRing");
  d.Aborted("job-a", 0);
  d.Aborted("job-a", 1);
  EXPECT_EQ(d.StateOf("job-a"), "CANCELLED");
  EXPECT_EQ(d.Heard("a"), "ReleaseJob");
}

TEST(LatenessTest, AStalledCoordinatorDoesNotBlameTheWorkers) {
  CoreDriver d;
  d.RunningPair();
  // Nothing runs for a minute, not even the clock's ticks.
  d.Sleep(absl::Minutes(1));
  d.Tick();
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
}

// No longer than a lease and a little, and no timer is due before the lease's.
TEST(LatenessTest, AStallWithoutTimersIsOneAllTheSame) {
  CoreDriver d;
  d.RunningPair();
  d.Step("job-a", 1);
  d.Sleep(CoreDriver::Options().lease_ttl + absl::Milliseconds(100));
  d.Tick();
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
}

// Commits that take long, after a silence of almost a lease. Heartbeats came meanwhile.
TEST(LatenessTest, WhatWaitsInTheQueueIsHeardFirst) {
  CoreDriver d;
  d.RunningPair();
  for (int i = 0; i < 2; ++i) {
    d.Advance(CoreDriver::Options().lease_ttl - absl::Milliseconds(500), /*heartbeats=*/false);
    d.Tick();
    d.Sleep(CoreDriver::Options().lease_ttl + absl::Seconds(1));
    for (const char* worker : {"a", "b"}) d.Heartbeat(worker);
    d.Tick();
  }
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
}

// A slow disk: what the workers say waits, but is heard.
TEST(LatenessTest, ACoordinatorThatIsAlwaysLateLosesASilentWorker) {
  CoreDriver d;
  d.RunningPair();
  for (int i = 0; i < 20 && d.StateOf("job-a") == "RUNNING"; ++i) {
    d.Sleep(absl::Seconds(2));
    d.Tick();
    d.Heartbeat("a");
  }
  EXPECT_EQ(d.StateOf("job-a"), "RECOVERING");
  EXPECT_THAT(LastEpisode(d).lost_workers(), testing::ElementsAre("workers/b"));
}

// Nor does it wait for ever for one that does not abort.
TEST(LatenessTest, ACoordinatorThatIsAlwaysLateGivesUpWaiting) {
  CoreDriver d;
  d.RunningPair();
  d.Step("job-a", 4);
  d.Fail("job-a", 0, v1::Fault::COMMUNICATION_ERROR);
  d.Aborted("job-a", 0, CoreDriver::Held(4));
  for (int i = 0; i < 20 && LastEpisode(d).lost_workers().empty(); ++i) {
    d.Sleep(absl::Seconds(2));
    for (const char* worker : {"a", "b"}) d.Heartbeat(worker);
    d.Tick();
  }
  EXPECT_THAT(LastEpisode(d).lost_workers(), testing::ElementsAre("workers/b"));
}

// A brown-out, and within seconds nothing at all for longer than a lease, not even what came.
TEST(LatenessTest, AHiccupBeforeAStandstillChangesNothing) {
  CoreDriver d;
  d.RunningPair();
  d.Sleep(absl::Seconds(2));
  d.Tick();
  for (const char* worker : {"a", "b"}) d.Heartbeat(worker);
  d.Sleep(CoreDriver::Options().lease_ttl + absl::Seconds(1));
  d.Tick();
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
}

// What is waited for is in the queue when its time is over, and so is what follows from it.
TEST(LatenessTest, TimersComeAfterWhatWaitsInTheQueue) {
  CoreDriver d;
  d.RunningPair();
  d.Step("job-a", 4);
  d.Fail("job-a", 0, v1::Fault::COMMUNICATION_ERROR);
  d.Heard("a");
  const absl::Duration patience =
      absl::Seconds(d.Job("job-a").spec().recovery().abort_deadline().seconds()) +
      CoreDriver::Options().abort_margin;
  // A first lateness is made up for, and more: a second one is not.
  d.Advance(patience - absl::Milliseconds(2250));
  d.Sleep(absl::Seconds(2));
  d.Tick();
  d.Advance(absl::Seconds(1));
  d.Sleep(absl::Seconds(4));
  for (const int rank : {0, 1}) d.Aborted("job-a", rank, CoreDriver::Held(4));
  d.Tick();
  EXPECT_EQ(d.Heard("a"), "FormRing");
  EXPECT_THAT(LastEpisode(d).lost_workers(), testing::IsEmpty());
  // The ring that forms now has the time it would have had.
  d.Advance(CoreDriver::Options().join_timeout + absl::Milliseconds(500));
  EXPECT_EQ(d.Heard("a"), "AbortRing");
}

// What may not have come yet is waited for.
TEST(LatenessTest, AStalledCoordinatorHearsWhatItWaitsForBeforeItGivesUp) {
  CoreDriver d;
  d.RunningPair();
  d.Step("job-a", 4);
  const auto stall = [&d] {
    d.Sleep(absl::Minutes(11));
    d.Tick();
  };
  d.Fail("job-a", 0, v1::Fault::COMMUNICATION_ERROR);
  d.Heard("a");
  stall();
  for (const int rank : {0, 1}) d.Aborted("job-a", rank, CoreDriver::Held(4));
  EXPECT_EQ(d.Heard("a"), "FormRing") << "aborted in time";
  stall();
  d.Form("job-a", CoreDriver::Held(4));
  EXPECT_EQ(d.Heard("a"), "ConnectRing StartSteps") << "joined in time";
  d.Step("job-a", 5);
  d.Break("b");
  stall();
  d.Hello("b", 'b', v1::PHASE_RUNNING, d.Ring("job-a", 1));
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING") << "came back in time";
  d.Exit("b", 9);
  d.Aborted("job-a", 0, CoreDriver::Held(5));
  stall();
  d.Hello("b", 'c');
  EXPECT_EQ(d.Job("job-a").status().generation(), 3) << "replaced in time";
  // Nobody who is silent from then on is waited for any longer.
  d.Advance(CoreDriver::Options().join_timeout + absl::Seconds(1));
  EXPECT_NE(LastEpisode(d).message().find("did not join within 30s"), std::string::npos);
}

}  // namespace
}  // namespace ringmaster::coordinator
