#include "coordinator/records/disk_threads.h"

#include <mutex>
#include <vector>

#include "absl/synchronization/blocking_counter.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ringmaster::coordinator {
namespace {

// A thread that waits for delayed work is woken by each that is posted, and the queue has moved
// meanwhile: AddressSanitizer sees a thread that goes on reading where it was.
TEST(DiskThreadsTest, WaitsWhileTheQueueGrows) {
  DiskThreads threads(3);
  absl::BlockingCounter left(300);
  for (int i = 0; i < 300; ++i) {
    threads.PostAfter(absl::Hours(1), [] { ADD_FAILURE() << "too early"; });
    threads.PostAfter(absl::Milliseconds(1), [&left] { left.DecrementCount(); });
  }
  left.Wait();
}

TEST(DiskThreadsTest, InTheOrderOfPostingWhateverIsForLater) {
  DiskThreads threads(1);
  std::mutex mutex;
  std::vector<int> order;
  absl::BlockingCounter left(3);
  absl::BlockingCounter posted(1);
  const auto note = [&](int number) {
    return [&, number] {
      const std::lock_guard lock(mutex);
      order.push_back(number);
      left.DecrementCount();
    };
  };
  threads.Post([&posted] { posted.Wait(); });
  threads.PostAfter(absl::Hours(1), note(4));
  threads.Post(note(1));
  threads.Post(note(2));
  threads.Post(note(3));
  posted.DecrementCount();
  left.Wait();
  const std::lock_guard lock(mutex);
  EXPECT_THAT(order, testing::ElementsAre(1, 2, 3));
}

}  // namespace
}  // namespace ringmaster::coordinator
