// Two processes under one worker name: which of them has it.
#include <gtest/gtest.h>

#include "tests/coordinator/core/core_driver.h"

namespace ringmaster::coordinator {
namespace {

// A --worker-id given twice breaks no ring.
TEST(WorkerNameTest, BelongsToTheLiveProcess) {
  CoreDriver d;
  d.set_supervisor("one");
  d.RunningPair();
  d.Hello("c", 'c');
  d.set_supervisor("two");
  for (const char* worker : {"b", "c"}) d.ExpectTaken(worker, 'd', "is alive, on host h0");
  d.set_supervisor("");
  for (const char* worker : {"b", "c"}) d.ExpectTaken(worker, 'e', "is alive, on host h0");
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
