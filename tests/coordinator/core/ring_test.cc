#include <gtest/gtest.h>

#include "tests/coordinator/core/core_driver.h"

namespace ringmaster::coordinator {
namespace {

using Restore = v1::RecoveryEpisode;

TEST(RingTest, GoesFromCreateToSucceeded) {
  CoreDriver d;
  d.Hello("a", 'a');
  d.Create("job-a");
  EXPECT_EQ(d.StateOf("job-a"), "QUEUED");
  EXPECT_EQ(d.Job("job-a").status().pending_reason().code(), "NOT_ENOUGH_WORKERS");
  EXPECT_EQ(d.Job("job-a").status().pending_reason().queue_position(), 1);
  d.Hello("b", 'b');
  EXPECT_EQ(d.StateOf("job-a"), "STARTING");
  EXPECT_FALSE(d.Job("job-a").status().has_pending_reason());
  EXPECT_EQ(d.Heard("a"), "Welcome FormRing");
  const v1::FormRing& form = d.Last("a", v1::Directive::kFormRing).form_ring();
  EXPECT_EQ(form.transport(), "ucx");
  EXPECT_EQ(form.directory(), d.Job("job-a").spec().directory());
  EXPECT_EQ(form.spec().precision(), v1::FP32);
  EXPECT_EQ(form.ranks_size(), 2);
  d.Join("job-a", 0);
  EXPECT_EQ(d.Heard("a"), "");
  d.Join("job-a", 1);
  EXPECT_EQ(d.Heard("a"), "ConnectRing");
  const v1::ConnectRing& connect = d.Last("a", v1::Directive::kConnectRing).connect_ring();
  EXPECT_EQ(connect.transport_addresses(1), "address1");
  EXPECT_EQ(connect.restore().source(), Restore::FRESH);
  d.Ready("job-a", 0);
  d.Ready("job-a", 1);
  EXPECT_EQ(d.Heard("b"), "Welcome FormRing ConnectRing StartSteps");
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  d.Step("job-a", 1);
  EXPECT_EQ(d.Job("job-a").status().progress().step(), 1);
  EXPECT_EQ(d.Job("job-a").status().progress().tokens_processed(), 8192);
  d.Step("job-a", 10);
  d.Heard("a");
  d.Shard("job-a", 1, 10);
  EXPECT_EQ(d.Job("job-a").status().last_checkpoint(), "");
  d.Shard("job-a", 0, 10);
  EXPECT_EQ(d.Job("job-a").status().last_checkpoint(),
            "projects/default/trainingJobs/job-a/checkpoints/step-10");
  EXPECT_EQ(d.Heard("a"), "CheckpointCommitted");
  d.Finish("job-a", 0);
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  d.Finish("job-a", 1);
  EXPECT_EQ(d.StateOf("job-a"), "SUCCEEDED");
  EXPECT_EQ(d.Heard("a"), "ReleaseJob");
  EXPECT_TRUE(d.Job("job-a").has_end_time());
}

TEST(RingTest, AReadyBeforeItsTimeDoesNotCount) {
  CoreDriver d;
  d.FormingPair();
  d.Join("job-a", 0);
  d.Ready("job-a", 0);
  d.Join("job-a", 1);
  d.Ready("job-a", 1);
  EXPECT_EQ(d.StateOf("job-a"), "STARTING");
  d.Ready("job-a", 0);
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
}

}  // namespace
}  // namespace ringmaster::coordinator
