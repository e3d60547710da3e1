#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "tests/coordinator/core/core_driver.h"

namespace ringmaster::coordinator {
namespace {

using Episode = v1::RecoveryEpisode;

struct FaultRow {
  const char* name;
  v1::Fault::Kind kind;
  bool deterministic;
  std::string state;
  v1::FailureClass failure_class;
};

TEST(FaultTest, DeterministicOnesEndTheJobAndOthersDoNot) {
  const std::vector<FaultRow> rows = {
      {"oom", v1::Fault::OUT_OF_MEMORY_ERROR, false, "RECOVERING", v1::FAILURE_CLASS_UNSPECIFIED},
      {"exception", v1::Fault::EXCEPTION, false, "RECOVERING", v1::FAILURE_CLASS_UNSPECIFIED},
      {"communication", v1::Fault::COMMUNICATION_ERROR, false, "RECOVERING",
       v1::FAILURE_CLASS_UNSPECIFIED},
      {"data", v1::Fault::DATA_ERROR, true, "FAILED", v1::DATA},
      {"nan", v1::Fault::NOT_FINITE, true, "FAILED", v1::NUMERIC},
      {"form", v1::Fault::FORM_ERROR, true, "FAILED", v1::USER_ERROR},
      {"oom_again", v1::Fault::OUT_OF_MEMORY_ERROR, true, "FAILED", v1::OUT_OF_MEMORY},
  };
  for (const FaultRow& row : rows) {
    SCOPED_TRACE(row.name);
    CoreDriver d;
    d.RunningPair();
    d.Fail("job-a", 1, row.kind, row.deterministic);
    EXPECT_EQ(d.StateOf("job-a"), row.state);
    EXPECT_EQ(d.Job("job-a").status().failure_class(), row.failure_class);
  }
}

// The coordinator forgets the plan of a generation when it starts again; a rank that tells once
// more that it could not restore says nothing of the other checkpoints.
TEST(FaultTest, ADamagedCheckpointEndsNoJobAfterARestart) {
  CoreDriver d;
  d.RunningPair();
  d.Step("job-a", 4);
  d.Checkpoint("job-a", 4);
  d.Exit("a", 9);
  d.Exit("b", 9);
  d.Hello("a", 'c');
  d.Hello("b", 'd');
  for (const int rank : {0, 1}) d.Join("job-a", rank);
  d.Heard("a");
  ASSERT_EQ(d.Last("a", v1::Directive::kConnectRing).connect_ring().restore().source(),
            Episode::CHECKPOINT);
  d.Fail("job-a", 1, v1::Fault::CHECKPOINT_ERROR, /*deterministic=*/true);
  EXPECT_EQ(d.StateOf("job-a"), "RECOVERING");
  d.Restart(v1::PHASE_ABORTING);
  d.Fail("job-a", 1, v1::Fault::CHECKPOINT_ERROR, /*deterministic=*/true);
  EXPECT_EQ(d.StateOf("job-a"), "RECOVERING");
}

// Fails `count` times without a step in between; every attempt forms a new generation.
void FailInARow(CoreDriver& d, v1::Fault::Kind kind, int count) {
  for (int i = 0; i < count; ++i) {
    d.Fail("job-a", 1, kind);
    if (d.StateOf("job-a") == "FAILED") return;
    d.Aborted("job-a", 0, CoreDriver::Held(0));
    d.Aborted("job-a", 1, CoreDriver::Held(0));
    d.AwaitRetry();
    d.Form("job-a", CoreDriver::Held(0));
  }
}

TEST(FaultTest, TheSameExceptionAgainAndAgainIsNoAccident) {
  CoreDriver d;
  d.RunningPair();
  FailInARow(d, v1::Fault::EXCEPTION, 4);
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  FailInARow(d, v1::Fault::EXCEPTION, 1);
  EXPECT_EQ(d.StateOf("job-a"), "FAILED");
  EXPECT_EQ(d.Job("job-a").status().failure_class(), v1::INTERNAL);
}

// The peer's loss of the failing rank may be told first, and both ranks may fail alike: each
// generation counts once.
TEST(FaultTest, AFaultThatIsToldSecondCountsAsWell) {
  CoreDriver d;
  d.RunningPair();
  for (int i = 1; i <= 5; ++i) {
    ASSERT_EQ(d.StateOf("job-a"), "RUNNING") << i;
    d.Fail("job-a", 0, v1::Fault::COMMUNICATION_ERROR);
    d.Fail("job-a", 1, v1::Fault::OUT_OF_MEMORY_ERROR);
    d.Fail("job-a", 0, v1::Fault::OUT_OF_MEMORY_ERROR);
    if (i == 5) break;
    // A coordinator that starts again is told again.
    d.Restart(v1::PHASE_ABORTING);
    d.Fail("job-a", 1, v1::Fault::OUT_OF_MEMORY_ERROR);
    d.Aborted("job-a", 0, CoreDriver::Held(0));
    d.Aborted("job-a", 1, CoreDriver::Held(0));
    d.AwaitRetry();
    d.Form("job-a", CoreDriver::Held(0));
  }
  EXPECT_EQ(d.StateOf("job-a"), "FAILED");
  EXPECT_EQ(d.Job("job-a").status().failure_class(), v1::OUT_OF_MEMORY);
}

TEST(FaultTest, TheBudgetEndsIt) {
  CoreDriver d;
  d.RunningPair([](auto& spec) { spec.mutable_recovery()->set_episodes_max(2); });
  FailInARow(d, v1::Fault::COMMUNICATION_ERROR, 3);
  EXPECT_EQ(d.StateOf("job-a"), "FAILED");
  EXPECT_EQ(d.Job("job-a").status().failure_class(), v1::BUDGET_EXHAUSTED);
}

// A job may recover for as long as it gets on.
TEST(FaultTest, OnlyRecoveriesInARowThatBringNoNewStepCountAgainstTheBudget) {
  CoreDriver d;
  d.RunningPair([](auto& spec) { spec.mutable_recovery()->set_episodes_max(2); });
  for (int64_t step = 1; step <= 6; ++step) {
    d.Step("job-a", step);
    d.Fail("job-a", 1, v1::Fault::COMMUNICATION_ERROR);
    for (const int rank : {0, 1}) d.Aborted("job-a", rank, CoreDriver::Held(step));
    d.Form("job-a", CoreDriver::Held(step));
    ASSERT_EQ(d.StateOf("job-a"), "RUNNING") << "after step " << step;
  }
  // Steps that were done before, the state being lost again and again, are no progress.
  const auto lose_the_state = [&d](char processes) {
    for (const char* worker : {"a", "b"}) d.Exit(worker, 9);
    for (const char* worker : {"a", "b"}) d.Hello(worker, processes);
  };
  lose_the_state('c');
  d.AwaitRetry();
  d.Form("job-a");
  d.Step("job-a", 1);
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  lose_the_state('d');
  EXPECT_EQ(d.StateOf("job-a"), "FAILED");
  EXPECT_EQ(d.Job("job-a").status().failure_class(), v1::BUDGET_EXHAUSTED);
}

// How long the job pauses before the next generation, after one that failed at once.
absl::Duration PauseAfterFailure(CoreDriver& d) {
  d.Fail("job-a", 1, v1::Fault::FORM_ERROR);
  d.Aborted("job-a", 0, CoreDriver::Held(4));
  d.Aborted("job-a", 1, CoreDriver::Held(4));
  return d.AwaitRetry();
}

TEST(RetryTest, PausesDoubleWhileNoAttemptBringsAStep) {
  CoreDriver d;
  d.RunningPair();
  d.Step("job-a", 4);
  EXPECT_EQ(PauseAfterFailure(d), absl::ZeroDuration());
  EXPECT_EQ(PauseAfterFailure(d), absl::Milliseconds(250));
  EXPECT_EQ(PauseAfterFailure(d), absl::Milliseconds(500));
  for (int i = 0; i < 5; ++i) PauseAfterFailure(d);
  EXPECT_EQ(PauseAfterFailure(d), absl::Seconds(30));
  EXPECT_EQ(PauseAfterFailure(d), absl::Seconds(30));
  // A restarted coordinator knows it too.
  d.Restart(v1::PHASE_JOINING);
  EXPECT_EQ(PauseAfterFailure(d), absl::Seconds(30));
  // One step, and a fault is answered at once again.
  d.Form("job-a", CoreDriver::Held(4));
  d.Step("job-a", 5);
  d.Hello("c", 'c');
  d.Exit("b", 9);
  d.Aborted("job-a", 0, CoreDriver::Held(5));
  EXPECT_EQ(d.Job("job-a").status().pending_reason().code(), "");
  d.Form("job-a", CoreDriver::Held(5));
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
}

TEST(RetryTest, AWorkerThatWaitsForTheRetryIsNotGivenAway) {
  CoreDriver d;
  d.RunningPair();
  d.Fail("job-a", 1, v1::Fault::FORM_ERROR);
  d.Aborted("job-a", 0);
  d.Aborted("job-a", 1);
  d.Exit("b", 9);
  d.Hello("b", 'B');
  d.Aborted("job-a", 0);
  EXPECT_EQ(d.Job("job-a").status().pending_reason().code(), "PAUSE_BEFORE_RETRY");
  d.Create("other", 1);
  EXPECT_EQ(d.StateOf("other"), "QUEUED");
  d.Advance(absl::Milliseconds(250));
  EXPECT_EQ(d.Job("job-a").status().generation(), 3);
}

}  // namespace
}  // namespace ringmaster::coordinator
