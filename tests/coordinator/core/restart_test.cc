#include <gtest/gtest.h>

#include "absl/time/time.h"
#include "tests/coordinator/core/core_driver.h"

namespace ringmaster::coordinator {
namespace {

TEST(RestartTest, ReadoptsARunningRingWithoutAnEpisode) {
  CoreDriver d;
  d.RunningPair();
  const v1::RingRef a = d.Ring("job-a", 0);
  const v1::RingRef b = d.Ring("job-a", 1);
  d.DropStreams();
  d.Start();
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  d.Hello("a", 'a', v1::PHASE_RUNNING, a);
  d.Hello("b", 'b', v1::PHASE_READY, b);
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
  const v1::RingRef a = d.Ring("job-a", 0);
  d.DropStreams();
  d.Start();
  d.Hello("a", 'a', v1::PHASE_RUNNING, a);
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
  const v1::RingRef a = d.Ring("job-a", 0);
  const v1::RingRef b = d.Ring("job-a", 1);
  d.DropStreams();
  d.Start();
  d.Hello("a", 'a', v1::PHASE_RUNNING, a);
  const auto turned_away = [&](char incarnation) {
    d.Hello("b", incarnation);
    EXPECT_EQ(d.Heard("b"), "");
    ASSERT_EQ(d.last().directives.size(), 1);
    EXPECT_EQ(Details(d.last().directives[0].close_status).reason, "WORKER_NAME_TAKEN");
    d.Break("b");
    EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  };
  turned_away('d');
  d.Hello("b", 'b', v1::PHASE_RUNNING, b);
  EXPECT_EQ(d.Heard("b"), "Welcome");
  const uint64_t stream = d.stream("b");
  turned_away('d');
  // Nor does the fresh process that its supervisor starts.
  turned_away('e');
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
  const v1::RingRef a = d.Ring("job-a", 0);
  const v1::RingRef b = d.Ring("job-a", 1);
  d.DropStreams();
  d.Start();
  d.Hello("a", 'a', v1::PHASE_JOINING, a);
  EXPECT_EQ(d.StateOf("job-a"), "STARTING");
  d.Hello("b", 'b', v1::PHASE_CONNECTING, b);
  EXPECT_EQ(d.StateOf("job-a"), "RECOVERING");
  EXPECT_EQ(d.Job("job-a").status().episodes(0).cause(), v1::RecoveryEpisode::COORDINATOR_RESTART);
  d.Aborted("job-a", 0);
  d.Aborted("job-a", 1);
  EXPECT_EQ(d.Job("job-a").status().generation(), 2);
}

TEST(RestartTest, StartsAGenerationThatWasReady) {
  CoreDriver d;
  d.FormingPair();
  const v1::RingRef a = d.Ring("job-a", 0);
  const v1::RingRef b = d.Ring("job-a", 1);
  d.DropStreams();
  d.Start();
  d.Hello("a", 'a', v1::PHASE_READY, a, CoreDriver::Held(0));
  d.Ready("job-a", 0);
  d.Hello("b", 'b', v1::PHASE_READY, b, CoreDriver::Held(0));
  d.Ready("job-a", 1);
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
