#include "worker/session/session_core.h"

#include <gtest/gtest.h>

#include "tests/worker/session/session_driver.h"

namespace ringmaster::worker {
namespace {

TEST(SessionIdentityTest, NamesWhatIsWrong) {
  SessionIdentity identity = SessionDriver::Identity();
  EXPECT_TRUE(identity.Validate().ok());
  identity.worker = "w0";
  EXPECT_EQ(identity.Validate().code(), absl::StatusCode::kInvalidArgument);
  identity = SessionDriver::Identity();
  identity.incarnation = "short";
  EXPECT_EQ(identity.Validate().code(), absl::StatusCode::kInvalidArgument);
}

TEST(SessionCoreTest, GoesThroughOneGeneration) {
  SessionDriver s;
  EXPECT_EQ(s.Do(StreamUp{}), "Hello");
  EXPECT_EQ(s.Report(0).hello().supervisor(), SessionDriver::Identity().supervisor);
  EXPECT_EQ(s.Direct(s.Welcome()), "Heartbeat");
  EXPECT_EQ(s.Direct(s.Form(1)), "OpenTransport");
  EXPECT_EQ(s.Do(s.Opened(1)), "RingJoin");
  EXPECT_EQ(s.Report(0).ring_join().transport_address(), "addr");
  EXPECT_EQ(s.Direct(s.Connect(1)), "ConnectAndRestore");
  EXPECT_EQ(s.Do(s.RestoredAt(1)), "RingReady");
  EXPECT_EQ(s.Direct(s.Start(1)), "RunSteps");
  EXPECT_EQ(s.Do(s.Step(1, 1)), "StepsDone");
  EXPECT_EQ(s.Do(s.Shard(1, 1)), "ShardWritten");
  EXPECT_EQ(s.Direct(s.Committed(1, 1)), "WriteManifest");
  EXPECT_EQ(s.Do(s.Finished(1)), "RingFinished");
  EXPECT_EQ(s.Direct(s.Release(1)), "AbandonRing");
  EXPECT_EQ(s.Do(s.Stopped(1)), "DropState");
  EXPECT_EQ(s.core().phase(), v1::PHASE_IDLE);
  EXPECT_FALSE(s.core().held().present());
}

TEST(SessionCoreTest, TellsNothingBeforeWelcome) {
  SessionDriver s;
  s.Do(StreamUp{});
  EXPECT_EQ(s.Direct(s.Form(1)), "OpenTransport");
  EXPECT_EQ(s.Do(s.Opened(1)), "");
  EXPECT_EQ(s.Direct(s.Welcome()), "RingJoin Heartbeat");
}

TEST(SessionCoreTest, CoalescesStepsButNotTheFirst) {
  SessionDriver s;
  s.Reach(v1::PHASE_RUNNING, 1);
  EXPECT_EQ(s.Do(s.Step(1, 1)), "StepsDone");
  EXPECT_EQ(s.Do(s.Step(1, 2)), "");
  EXPECT_EQ(s.Do(s.Step(1, 3)), "");
  EXPECT_EQ(s.core().NextTimer(), s.now() + absl::Milliseconds(50));
  s.Advance(absl::Milliseconds(50));
  EXPECT_EQ(s.Do(TimerTick{}), "StepsDone");
  ASSERT_EQ(s.Report(0).steps_done().records_size(), 2);
  EXPECT_EQ(s.Report(0).steps_done().records(1).step(), 3);
}

TEST(SessionCoreTest, LastStepsGoOutBeforeFinished) {
  SessionDriver s;
  s.Reach(v1::PHASE_RUNNING, 1);
  s.Do(s.Step(1, 1));
  s.Do(s.Step(1, 2));
  EXPECT_EQ(s.Do(s.Finished(1, 2)), "StepsDone RingFinished");
}

TEST(SessionCoreTest, StepsThatWaitGoOutBeforeTheRingIsGivenUp) {
  for (const bool own_fault : {false, true}) {
    SessionDriver s;
    s.Reach(v1::PHASE_RUNNING, 1);
    s.Do(s.Step(1, 1));
    EXPECT_EQ(s.Do(s.Step(1, 2)), "");
    if (own_fault) {
      EXPECT_EQ(s.Do(s.Faulted(1)), "StepsDone Fault RingAborted");
    } else {
      EXPECT_EQ(s.Direct(s.Abort(1)), "StepsDone AbandonRing");
    }
    EXPECT_EQ(s.Report(0).steps_done().records(0).step(), 2);
  }
}

TEST(SessionCoreTest, TheStepThatAGenerationGoesOnFromDoesNotDelayTheNext) {
  SessionDriver s;
  s.Reach(v1::PHASE_READY, 2);
  s.Direct(s.Start(2));
  const int64_t restored = s.core().held().step();
  EXPECT_EQ(s.Do(s.Step(2, restored)), "StepsDone");
  EXPECT_EQ(s.Do(s.Step(2, restored + 1)), "StepsDone");
  EXPECT_EQ(s.Do(s.Step(2, restored + 2)), "");
}

TEST(SessionCoreTest, OtherRanksReportNoSteps) {
  SessionDriver s(/*rank=*/1);
  s.Reach(v1::PHASE_RUNNING, 1);
  EXPECT_EQ(s.Do(s.Step(1, 1)), "");
  s.Advance(absl::Seconds(1));
  EXPECT_EQ(s.Do(TimerTick{}), "Heartbeat");
  EXPECT_EQ(s.Report(0).heartbeat().step(), 1);
}

TEST(SessionCoreTest, LostLeaseStopsPublishingNotTraining) {
  SessionDriver s;
  s.Reach(v1::PHASE_RUNNING, 1);
  s.Do(StreamDown{});
  EXPECT_EQ(s.core().NextTimer(), s.now() + absl::Seconds(5));
  s.Advance(absl::Seconds(5));
  EXPECT_EQ(s.Do(TimerTick{}), "Unpublish");
  EXPECT_EQ(s.Do(s.Step(1, 1)), "");
  EXPECT_EQ(s.core().phase(), v1::PHASE_RUNNING);
  s.Do(StreamUp{});
  EXPECT_EQ(s.Report(0).hello().phase(), v1::PHASE_RUNNING);
  EXPECT_EQ(s.Report(0).hello().ring().generation(), 1);
  EXPECT_EQ(s.Report(0).hello().state().step(), 1);
  EXPECT_EQ(s.Direct(s.Welcome()), "Publish StepsDone Heartbeat");
}

TEST(SessionCoreTest, LeaseRunsFromTheSendingOfAnAcknowledgedHeartbeat) {
  SessionDriver s;
  s.Reach(v1::PHASE_RUNNING, 1);
  for (int second = 0; second < 4; ++second) {
    s.Advance(absl::Seconds(1));
    s.Do(TimerTick{});
  }
  // Heartbeat 3 was sent at second 2; acknowledged at second 4 it covers seconds up to 7.
  s.Direct(s.Ack(3));
  s.Advance(absl::Milliseconds(2999));
  EXPECT_EQ(s.Do(TimerTick{}), "Heartbeat");
  s.Advance(absl::Milliseconds(1));
  EXPECT_EQ(s.Do(TimerTick{}), "Unpublish");
}

TEST(SessionCoreTest, StepsConfirmedByAHeartbeatAreNotToldAgain) {
  SessionDriver s;
  s.Reach(v1::PHASE_RUNNING, 1);
  s.Do(s.Step(1, 1));
  s.Advance(absl::Seconds(1));
  EXPECT_EQ(s.Do(TimerTick{}), "Heartbeat");
  s.Direct(s.Ack(s.Report(0).heartbeat().sequence()));
  s.Do(s.Step(1, 2));
  s.Do(StreamDown{});
  s.Do(StreamUp{});
  EXPECT_EQ(s.Direct(s.Welcome()), "StepsDone Heartbeat");
  ASSERT_EQ(s.Report(0).steps_done().records_size(), 1);
  EXPECT_EQ(s.Report(0).steps_done().records(0).step(), 2);
}

TEST(SessionCoreTest, UncommittedShardsAreToldAgain) {
  SessionDriver s;
  s.Reach(v1::PHASE_RUNNING, 1);
  s.Do(s.Shard(1, 10));
  s.Do(s.Shard(1, 20));
  s.Direct(s.Committed(1, 10));
  s.Do(StreamDown{});
  s.Do(StreamUp{});
  EXPECT_EQ(s.Direct(s.Welcome()), "ShardWritten Heartbeat");
  EXPECT_EQ(s.Report(0).shard_written().step(), 20);
}

TEST(SessionCoreTest, StuckAbortEndsTheProcess) {
  SessionDriver s;
  s.Reach(v1::PHASE_ABORTING, 1);
  s.Advance(absl::Milliseconds(4999));
  EXPECT_EQ(s.Do(TimerTick{}).find("Exit"), std::string::npos);
  s.Advance(absl::Milliseconds(1));
  EXPECT_EQ(s.Do(TimerTick{}), "Exit(85)");
  EXPECT_EQ(s.Do(s.Stopped(1)), "");
}

TEST(SessionCoreTest, AbortDeadlineIsTheJobs) {
  SessionDriver s;
  s.Do(StreamUp{});
  s.Direct(s.Welcome());
  v1::Directive form = s.Form(1);
  form.mutable_form_ring()->mutable_spec()->mutable_recovery()->mutable_abort_deadline()->set_nanos(
      200'000'000);
  s.Direct(form);
  s.Direct(s.Abort(1));
  EXPECT_EQ(s.core().NextTimer(), s.now() + absl::Milliseconds(200));
}

TEST(SessionCoreTest, NextGenerationWaitsForTheAbort) {
  SessionDriver s;
  s.Reach(v1::PHASE_RUNNING, 1);
  EXPECT_EQ(s.Direct(s.Form(2)), "AbandonRing");
  EXPECT_EQ(s.Do(s.Step(1, 9)), "");
  EXPECT_EQ(s.Do(s.Stopped(1)), "OpenTransport");
  EXPECT_EQ(s.core().ring().generation(), 2);
  EXPECT_EQ(s.core().held().step(), 2);
}

TEST(SessionCoreTest, AbortOfTheWaitingGenerationIsAnsweredForIt) {
  SessionDriver s;
  s.Reach(v1::PHASE_RUNNING, 1);
  s.Direct(s.Form(2));
  EXPECT_EQ(s.Direct(s.Abort(2)), "");
  EXPECT_EQ(s.Do(s.Stopped(1)), "RingAborted");
  EXPECT_EQ(s.Report(0).ring_aborted().ring().generation(), 2);
  EXPECT_EQ(s.Report(0).ring_aborted().state().step(), 2);
}

TEST(SessionCoreTest, AnotherJobDropsTheState) {
  SessionDriver s;
  s.Reach(v1::PHASE_RUNNING, 5);
  s.Direct(s.Form(1, "uid-b"));
  EXPECT_EQ(s.Do(s.Stopped(5)), "DropState OpenTransport");
  EXPECT_FALSE(s.core().held().present());
}

TEST(SessionCoreTest, ReleaseThenFormOfTheSameJobStartsEmpty) {
  SessionDriver s;
  s.Reach(v1::PHASE_RUNNING, 5);
  s.Direct(s.Release(5));
  EXPECT_EQ(s.Direct(s.Form(6)), "");
  EXPECT_EQ(s.Do(s.Stopped(5)), "DropState OpenTransport");
}

TEST(SessionCoreTest, FaultIsToldAgainAfterABrokenStream) {
  SessionDriver s;
  s.Reach(v1::PHASE_RUNNING, 1);
  s.Do(StreamDown{});
  EXPECT_EQ(s.Do(s.Faulted(1)), "");
  s.Do(StreamUp{});
  EXPECT_EQ(s.Report(0).hello().phase(), v1::PHASE_IDLE);
  EXPECT_EQ(s.Direct(s.Welcome()), "Fault RingAborted Heartbeat");
  EXPECT_EQ(s.Report(0).fault().ring().generation(), 1);
  EXPECT_EQ(s.Direct(s.Abort(1)), "RingAborted");
}

TEST(SessionCoreTest, OwnFaultIsToldAlthoughAPeerNoticedItFirst) {
  SessionDriver s;
  s.Reach(v1::PHASE_RUNNING, 1);
  s.Direct(s.Abort(1));
  EXPECT_EQ(s.Do(s.Faulted(1)), "Fault RingAborted");
}

TEST(SessionCoreTest, GivenUpGenerationIsNotJoinedAgain) {
  SessionDriver s;
  s.Reach(v1::PHASE_RUNNING, 1);
  s.Do(s.Faulted(1));
  EXPECT_EQ(s.Direct(s.Form(1)), "RingAborted");
  EXPECT_EQ(s.Direct(s.Start(1)), "RingAborted");
  EXPECT_EQ(s.Direct(s.Form(2)), "OpenTransport");
}

TEST(SessionCoreTest, RestoredDigestMustMatchThePlan) {
  SessionDriver s;
  s.Reach(v1::PHASE_JOINING, 2);
  v1::Directive connect = s.Connect(2, 3);
  connect.mutable_connect_ring()->mutable_restore()->set_digest(8);
  s.Direct(connect);
  EXPECT_EQ(s.Do(s.RestoredAt(2, 3)), "Fault AbandonRing");
  EXPECT_EQ(s.Report(0).fault().kind(), v1::Fault::FORM_ERROR);
  EXPECT_EQ(s.Do(s.Stopped(2)), "RingAborted");
}

TEST(SessionCoreTest, ADeletionIsConfirmedWhateverHasBecomeOfTheRing) {
  SessionDriver s;
  s.Reach(v1::PHASE_RUNNING, 1);
  EXPECT_EQ(s.Direct(s.Delete(1)), "DeletePaths");
  const v1::DeleteFiles& files = std::get<DeletePaths>(s.last()[0]).files;
  PathsDeleted deleted;
  *deleted.report.mutable_ring() = files.ring();
  *deleted.report.mutable_paths() = files.paths();
  s.Direct(s.Release(1));
  s.Do(s.Stopped(1));
  EXPECT_EQ(s.Do(deleted), "FilesDeleted");
  EXPECT_EQ(s.Report(0).files_deleted().paths(0), "/jobs/uid-a/x");
  // Unheard it is nothing: the coordinator tells it again.
  s.Do(StreamDown{});
  EXPECT_EQ(s.Do(deleted), "");
}

TEST(SessionCoreTest, DirectivesOfAnEarlierEpochAreIgnored) {
  SessionDriver s;
  s.set_epoch(3);
  s.Reach(v1::PHASE_RUNNING, 1);
  s.set_epoch(2);
  EXPECT_EQ(s.Direct(s.Abort(1)), "");
  s.set_epoch(3);
  EXPECT_EQ(s.Direct(s.Abort(1)), "AbandonRing");
}

TEST(SessionCoreTest, AnIdleWorkerIsReplacedWhenTheCoordinatorLostItsData) {
  SessionDriver s;
  s.set_epoch(3);
  s.Do(StreamUp{});
  s.Direct(s.Welcome());
  s.Do(StreamDown{});
  s.Do(StreamUp{});
  s.set_epoch(1);
  EXPECT_EQ(s.Direct(s.New()), "Exit(85)");
}

TEST(SessionCoreTest, ARingOutlivesAStaleCoordinatorForAWhile) {
  SessionDriver s;
  s.set_epoch(3);
  s.Reach(v1::PHASE_RUNNING, 1);
  s.set_epoch(2);
  EXPECT_EQ(s.Direct(s.New()), "");
  s.Advance(absl::Seconds(20));
  EXPECT_EQ(s.Direct(s.New()), "");
  // The right one is back.
  s.set_epoch(3);
  s.Direct(s.Welcome());
  s.Advance(absl::Seconds(20));
  EXPECT_EQ(s.Do(TimerTick{}).find("Exit"), std::string::npos);

  s.set_epoch(2);
  EXPECT_EQ(s.Direct(s.New()), "");
  s.Advance(absl::Seconds(29));
  EXPECT_EQ(s.Direct(s.New()), "");
  s.Advance(absl::Seconds(1));
  EXPECT_EQ(s.Do(TimerTick{}), "Exit(85)");
}

TEST(SessionCoreTest, ANameThatAnotherProcessKeepsEndsThisOneForGood) {
  SessionDriver s;
  const auto ask = [&s](const std::string& refusal) {
    EXPECT_EQ(s.Do(StreamUp{}), "Hello");
    return s.Do(StreamDown{.name_taken = refusal});
  };
  EXPECT_EQ(ask("taken"), "");
  s.Advance(absl::Seconds(14));
  EXPECT_EQ(ask("taken"), "");
  // Another coordinator may not know the other process yet.
  EXPECT_EQ(ask(""), "");
  s.Advance(absl::Seconds(14));
  EXPECT_EQ(ask("taken"), "");
  s.Advance(absl::Seconds(15));
  EXPECT_EQ(ask("taken"), "Exit(64)");
}

TEST(SessionCoreTest, SigtermLetsTheStepEndThenLeaves) {
  SessionDriver s;
  s.Reach(v1::PHASE_RUNNING, 1);
  EXPECT_EQ(s.Do(StopRequested{}), "StopAfterStep");
  EXPECT_EQ(s.Do(s.Step(1, 1)), "StepsDone");
  EXPECT_EQ(s.Do(s.Stopped(1, 1)), "Goodbye Exit(0)");
}

TEST(SessionCoreTest, StepThatDoesNotEndIsAbandoned) {
  SessionDriver s;
  s.Reach(v1::PHASE_RUNNING, 1);
  s.Do(StopRequested{});
  s.Advance(absl::Seconds(20));
  EXPECT_NE(s.Do(TimerTick{}).find("AbandonRing"), std::string::npos);
  EXPECT_EQ(s.Do(s.Stopped(1)), "Goodbye Exit(0)");
}

TEST(SessionCoreTest, SecondSigtermAbandonsAtOnce) {
  SessionDriver s;
  s.Reach(v1::PHASE_RUNNING, 1);
  s.Do(StopRequested{});
  EXPECT_EQ(s.Do(StopRequested{}), "AbandonRing");
}

// Its peers' shards of the same step may be on their way to the disk.
TEST(SessionCoreTest, WhoLeavesAfterTheLastStepWaitsToBeLetGo) {
  for (const bool before : {true, false}) {
    SessionDriver s;
    s.Reach(v1::PHASE_RUNNING, 1);
    if (before) s.Do(StopRequested{});
    EXPECT_EQ(s.Do(s.Finished(1)), "RingFinished");
    if (!before) {
      EXPECT_EQ(s.Do(StopRequested{}), "");
    }
    EXPECT_EQ(s.Direct(s.Release(1)), "AbandonRing");
    EXPECT_NE(s.Do(s.Stopped(1)).find("Goodbye Exit(0)"), std::string::npos);
  }
  SessionDriver s;
  s.Reach(v1::PHASE_FINISHED, 1);
  s.Do(StopRequested{});
  s.Advance(absl::Seconds(20));
  EXPECT_NE(s.Do(TimerTick{}).find("AbandonRing"), std::string::npos);
}

TEST(SessionCoreTest, EqualEventsGiveEqualActions) {
  SessionDriver one, two;
  for (SessionDriver* s : {&one, &two}) {
    s->Reach(v1::PHASE_RUNNING, 1);
    s->Do(s->Step(1, 1));
    s->Direct(s->Abort(1));
    s->Do(s->Stopped(1));
  }
  ASSERT_EQ(one.last().size(), two.last().size());
  EXPECT_EQ(one.Report(0).SerializeAsString(), two.Report(0).SerializeAsString());
}

}  // namespace
}  // namespace ringmaster::worker
