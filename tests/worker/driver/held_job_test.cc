#include "worker/driver/held_job.h"

#include <fstream>
#include <string>

#include "gtest/gtest.h"
#include "tests/testing/temporary_directory.h"
#include "tests/worker/train/resolved_spec.h"
#include "worker/comm/in_process_exchange.h"

namespace ringmaster::worker {
namespace {

bool NotCancelled() { return false; }

// Had it begun with init_from's weights, and only some of them, or none, been read when its ring
// broke, its peers would take the rest from it.
TEST(HeldJobTest, AFreshStateIsHeldWhenAllOfItIsThere) {
  const TemporaryDirectory directory;
  std::ofstream(directory.path() + "/text") << std::string(40000, 'x');
  v1::FormRing form;
  *form.mutable_spec() = ResolvedSpec();
  form.mutable_spec()->mutable_data()->set_paths(0, directory.path() + "/text");
  form.mutable_ring()->set_training_job_uid("uid");
  HeldJob held("cpu");
  ASSERT_TRUE(held.Adopt(form).ok());
  ASSERT_TRUE(held.Build(NotCancelled).ok());
  const auto alone = ConnectInProcess(1);
  v1::RestorePlan plan;
  plan.set_source(v1::RecoveryEpisode::FRESH);
  const auto restore = [&] {
    return held.Restore(plan, form.spec(), /*rank=*/0, *alone[0], NotCancelled);
  };
  EXPECT_FALSE(held.Report().present());
  ASSERT_TRUE(restore().ok());
  EXPECT_TRUE(held.Report().present());
  EXPECT_TRUE(held.Report().clean());
  form.mutable_spec()->set_init_from(directory.path() + "/nowhere");
  EXPECT_FALSE(restore().ok());
  EXPECT_FALSE(held.Report().present());
}

}  // namespace
}  // namespace ringmaster::worker
