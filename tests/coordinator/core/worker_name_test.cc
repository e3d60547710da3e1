// Two processes under one worker name: which of them has it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/coordinator/core/core_driver.h"

namespace ringmaster::coordinator {
namespace {

using testing::HasSubstr;

// Process `incarnation` asks for `worker` and is turned away; its stream ends.
void ExpectTaken(CoreDriver& d, const std::string& worker, char incarnation) {
  d.Hello(worker, incarnation);
  EXPECT_EQ(d.Heard(worker), "");
  ASSERT_EQ(d.last().directives.size(), 1);
  const DirectiveTo& told = d.last().directives[0];
  EXPECT_TRUE(told.close);
  EXPECT_EQ(told.close_status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Details(told.close_status).reason, "WORKER_NAME_TAKEN");
  EXPECT_THAT(std::string(told.close_status.message()), HasSubstr("alive, on host h0"));
  d.Break(worker);
}

// A --worker-id given twice breaks no ring.
TEST(WorkerNameTest, BelongsToTheLiveProcess) {
  CoreDriver d;
  d.set_supervisor("one");
  d.RunningPair();
  d.Hello("c", 'c');
  d.set_supervisor("two");
  for (const char* worker : {"b", "c"}) ExpectTaken(d, worker, 'd');
  d.set_supervisor("");
  for (const char* worker : {"b", "c"}) ExpectTaken(d, worker, 'e');
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  EXPECT_EQ(d.Job("job-a").status().episodes_count(), 0);
  // What was turned away is no sign of life of the others, whose leases end.
  for (int i = 0; i < 6; ++i) {
    d.Advance(absl::Seconds(1), false);
    d.Heartbeat("a");
  }
  EXPECT_EQ(d.StateOf("job-a"), "RECOVERING");
  d.Hello("b", 'd');
  EXPECT_EQ(d.Heard("b"), "Welcome");
}

TEST(WorkerNameTest, GoesOverWhenTheStreamIsGone) {
  CoreDriver d;
  d.RunningPair();
  d.Break("b");
  d.Hello("b", 'd');
  EXPECT_EQ(d.Heard("b"), "Welcome");
  EXPECT_EQ(d.StateOf("job-a"), "RECOVERING");
}

// The stream's end and the exit report may both be slower than the next child.
TEST(WorkerNameTest, GoesOverToTheNextChildOfTheSupervisorAtOnce) {
  CoreDriver d;
  d.set_supervisor("one");
  d.RunningPair();
  d.Hello("b", 'd');
  EXPECT_EQ(d.Heard("b"), "Welcome");
  ASSERT_EQ(d.StateOf("job-a"), "RECOVERING");
  EXPECT_EQ(d.Job("job-a").status().episodes(0).cause(), v1::RecoveryEpisode::WORKER_EXIT);
  v1::ReportFaultRequest late;
  late.set_worker("workers/b");
  late.set_incarnation(CoreDriver::Incarnation('b'));
  late.set_signal(9);
  d.Do(WorkerExited{1000, late});
  d.Aborted("job-a", 0, CoreDriver::Held(0));
  EXPECT_EQ(d.Heard("b"), "FormRing");
}

}  // namespace
}  // namespace ringmaster::coordinator
