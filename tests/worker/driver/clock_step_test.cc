// While this program runs, somebody sets the machine's clock all the time: it must move no deadline
// of a worker.
#include <ATen/ops/zeros.h>
#include <dlfcn.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <string>
#include <vector>

#include "absl/base/config.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "tests/testing/temporary_directory.h"
#include "worker/checkpoint/checkpoint_writer.h"
#include "worker/driver/event_queue.h"
#include "worker/driver/ring_roll.h"
#include "worker/supervise/supervisor.h"

// These stand before the shared libraries' own. Each time it is asked, an hour has passed; and it
// is ahead of the kernel's clock, which Abseil's waits end by.
namespace absl {
ABSL_NAMESPACE_BEGIN
Time Now() {
  static std::atomic<int> asked = 0;
  return FromUnixSeconds(4'000'000'000) + Hours(++asked);
}
ABSL_NAMESPACE_END
}  // namespace absl

// What Abseil's waits begin with.
extern "C" int gettimeofday(timeval* __restrict now, void* __restrict) noexcept {
  *now = absl::ToTimeval(absl::Now());
  return 0;
}

namespace ringmaster::worker {
namespace {

constexpr absl::Duration kPatience = absl::Minutes(10);

// The other cases say nothing unless the libraries ask here, too.
TEST(ClockStepTest, TheClockThatEverybodyAsksIsThisOne) {
  const auto about = [](const void* address) {
    Dl_info found = {};
    EXPECT_NE(dladdr(address, &found), 0);
    return found;
  };
  const void* const program = about(reinterpret_cast<const void*>(&kPatience)).dli_fbase;
  for (const void* const clock :
       {reinterpret_cast<const void*>(&absl::Now), reinterpret_cast<const void*>(&gettimeofday)}) {
    const char* const name = about(clock).dli_sname;
    ASSERT_NE(name, nullptr) << "no library sees it";
    EXPECT_EQ(about(dlsym(RTLD_DEFAULT, name)).dli_fbase, program) << name;
  }
  const absl::Time asked = absl::Now();
  EXPECT_GE(absl::Now() - asked, absl::Hours(1));
}

// Before all that start a thread: it forks.
TEST(ClockStepTest, AWorkerThatFailsAtOnceIsNotStartedAgainAtOnce) {
  auto* const starts = static_cast<int*>(
      mmap(nullptr, sizeof(int), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  const SupervisorOptions options{.run =
                                      [starts](const std::string&) {
                                        // Enough of it.
                                        if (++*starts == 3) {
                                          kill(getppid(), SIGTERM);
                                        }
                                        return 1;
                                      },
                                  .report = [](const ChildExit&) { kill(getppid(), SIGTERM); },
                                  .report_first = absl::Hours(1),
                                  .rapid_failures_free = 0,
                                  .first_pause = absl::Hours(1),
                                  .longest_pause = absl::Hours(1)};
  EXPECT_EQ(Supervise(options), 1);
  EXPECT_EQ(*starts, 1);
  munmap(starts, sizeof(int));
}

TEST(ClockStepTest, TheFilesOfAllRanksAreWaitedFor) {
  const TemporaryDirectory directory;
  v1::FormRing form;
  form.set_directory(directory.path());
  form.mutable_ring()->set_generation(1);
  for (int rank = 0; rank < 2; ++rank) {
    form.add_ranks()->set_rank(rank);
    form.mutable_ranks(rank)->set_incarnation(std::string(32, static_cast<char>('a' + rank)));
  }
  ASSERT_TRUE(SignRingRoll(form, form.ranks(0).incarnation()).ok());
  int asked = 0;
  const absl::Status status = CheckRingRoll(form, kPatience, [&] {
    if (++asked == 2) {
      form.mutable_ring()->set_rank(1);
      EXPECT_TRUE(SignRingRoll(form, form.ranks(1).incarnation()).ok());
    }
    return false;
  });
  EXPECT_TRUE(status.ok()) << status;
}

TEST(ClockStepTest, AShardUnderWayIsWaitedFor) {
  const TemporaryDirectory directory;
  absl::Notification go;
  CheckpointWriter writer([&go](v1::ShardWritten, absl::Duration) { go.WaitForNotification(); });
  const std::vector<TrainingState::NamedTensor> state = {{"parameter", at::zeros({4})}};
  ASSERT_TRUE(writer
                  .Begin({.world_size = 1,
                          .incarnation = std::string(32, 'a'),
                          .step = 1,
                          .job_directory = directory.path()},
                         state)
                  .ok());
  int asked = 0;
  EXPECT_TRUE(writer.AwaitIdle(kPatience, [&] {
    if (++asked == 2) {
      go.Notify();
    }
    return false;
  }));
  EXPECT_GE(asked, 2);
  if (!go.HasBeenNotified()) {
    go.Notify();
  }
}

// Abseil's own wait would last until the kernel's clock says what gettimeofday promised.
TEST(ClockStepTest, TheControlThreadSleepsNoLongerThanItWanted) {
  EventQueue queue;
  EXPECT_FALSE(queue.Pop(absl::Milliseconds(1)).has_value());
}

}  // namespace
}  // namespace ringmaster::worker
