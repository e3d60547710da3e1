#include <gtest/gtest.h>

#include "absl/time/time.h"
#include "tests/coordinator/core/core_driver.h"

namespace ringmaster::coordinator {
namespace {

TEST(RestartTest, ReadoptsARunningRingWithoutAnEpisode) {
  CoreDriver d;
  d.RunningPair();
  d.Restart(v1::PHASE_RUNNING, {}, {0});
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  d.Hello("b", 'b', v1::PHASE_READY, d.Ring("job-a", 1));
  EXPECT_EQ(d.Heard("a"), "Welcome");
  // START was stored, and lost on the way.
  EXPECT_EQ(d.Heard("b"), "Welcome StartSteps");
  d.Advance(absl::Seconds(20));
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  EXPECT_EQ(d.Job("job-a").status().episodes_count(), 0);
}

TEST(RestartTest, AMemberThatDoesNotComeBackIsLostAfterTheWindow) {
  CoreDriver d;
  d.RunningPair();
  d.Restart(v1::PHASE_RUNNING, {}, {0});
  d.Advance(absl::Seconds(9));
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  d.Advance(absl::Seconds(2));
  EXPECT_EQ(d.StateOf("job-a"), "RECOVERING");
}

// A pod that a partition hid comes back under the name of its successor.
TEST(RestartTest, AnOlderProcessOfAMemberTakesNoRingApart) {
  CoreDriver d;
  d.Hello("b", 'd');
  d.Break("b");
  d.RunningPair();
  d.Restart(v1::PHASE_RUNNING, {}, {0});
  d.ExpectTaken("b", 'd', "is expected back");
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  d.Hello("b", 'b', v1::PHASE_RUNNING, d.Ring("job-a", 1));
  EXPECT_EQ(d.Heard("b"), "Welcome");
  const uint64_t stream = d.stream("b");
  d.ExpectTaken("b", 'd', "is alive, on host h0");
  // Nor does the fresh process that its supervisor starts.
  d.ExpectTaken("b", 'e', "is alive, on host h0");
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  EXPECT_EQ(d.Job("job-a").status().episodes_count(), 0);
  // Until the member is gone.
  d.Do(StreamClosed{stream});
  d.Hello("b", 'e');
  EXPECT_EQ(d.StateOf("job-a"), "RECOVERING");
  EXPECT_EQ(d.Heard("b"), "Welcome");
}

TEST(RestartTest, ReplacesAGenerationThatWasForming) {
  CoreDriver d;
  d.FormingPair();
  d.Restart(v1::PHASE_JOINING, {}, {0});
  EXPECT_EQ(d.StateOf("job-a"), "STARTING");
  d.Hello("b", 'b', v1::PHASE_CONNECTING, d.Ring("job-a", 1));
  EXPECT_EQ(d.StateOf("job-a"), "RECOVERING");
  EXPECT_EQ(d.Job("job-a").status().episodes(0).cause(), v1::RecoveryEpisode::COORDINATOR_RESTART);
  d.Aborted("job-a", 0);
  d.Aborted("job-a", 1);
  EXPECT_EQ(d.Job("job-a").status().generation(), 2);
}

TEST(RestartTest, StartsAGenerationThatWasReady) {
  CoreDriver d;
  d.FormingPair();
  d.Restart(v1::PHASE_READY, CoreDriver::Held(0));
  for (const int rank : {0, 1}) d.Ready("job-a", rank);
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  EXPECT_EQ(d.Heard("a"), "Welcome StartSteps");
}

TEST(ReloadTest, IsARestartInPlace) {
  CoreDriver d;
  d.RunningPair();
  const StoredState before = d.Stored();
  d.Core().Handle(d.now(), ApiRequest{99, d.CreateRequest("job-b"), {}});
  auto output = d.Core().Reload(d.now(), before);
  ASSERT_TRUE(output.ok());
  EXPECT_TRUE(output->rows.empty());
  EXPECT_EQ(output->directives.size(), 2);
  for (const DirectiveTo& to : output->directives) EXPECT_TRUE(to.close);
  EXPECT_EQ(d.Core().FindJob("projects/default/trainingJobs/job-b"), nullptr);
  EXPECT_EQ(d.Call<v1::TrainingJob>(d.CreateRequest("job-b")).status().code(),
            absl::StatusCode::kUnavailable);
  d.Core().SetStoreFull(d.now(), false);
  EXPECT_TRUE(d.Call<v1::TrainingJob>(d.CreateRequest("job-b")).ok());
}

}  // namespace
}  // namespace ringmaster::coordinator
