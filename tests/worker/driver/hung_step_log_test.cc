#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "gtest/gtest.h"
#include "tests/worker/driver/ring_scene.h"

namespace ringmaster::worker {
namespace {

// A step log whose file system takes one line and then hangs, until it is read.
class HungStepLog {
 public:
  explicit HungStepLog(const RingScene& scene) {
    std::filesystem::create_directories(scene.directory());
    const std::string path = scene.directory() + "/steps.jsonl";
    EXPECT_EQ(mkfifo(path.c_str(), 0600), 0);
    file_ = open(path.c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC);
    const int room = fcntl(file_, F_SETPIPE_SZ, 4096);
    EXPECT_EQ(room, 4096);
    // A line has more than 150 bytes, and fewer than 300.
    const std::string filling(room - 300, '\n');
    EXPECT_EQ(write(file_, filling.data(), filling.size()), room - 300);
  }
  // Lets a writer that was begun go on, at least.
  ~HungStepLog() {
    Read();
    close(file_);
  }

  // All that was written so far, without the ends of lines.
  const std::string& Read() {
    std::array<char, 4096> block;
    for (ssize_t got = 0; (got = read(file_, block.data(), block.size())) > 0;) {
      text_.append(block.data(), static_cast<size_t>(got));
    }
    text_.erase(std::remove(text_.begin(), text_.end(), '\n'), text_.end());
    return text_;
  }

 private:
  int file_ = -1;
  std::string text_;
};

// Rank 0 records the first step. Rank 1 fails in the second, when rank 0 has begun it, and finds no
// record in a file that cannot be searched.
TEST(HungStepLogTest, ARankThatLetsGoDoesNotWaitForTheStepLog) {
  RingScene scene(3);
  scene.StartWorker("a");
  scene.StartWorker("b", "rank=1,step=1,phase=backward,layer=1,kind=throw,generation=1");
  HungStepLog log(scene);
  scene.FormRing(1, {"a", "b"});
  scene.StartSteps();
  scene.PumpUntil([&] { return !scene.faults().empty(); }, "the fault");
  scene.Abort();
  scene.PumpUntil([&] { return scene.aborted().size() == 2; }, "RingAborted");
  EXPECT_TRUE(scene.aborted()[1].state().clean());
  EXPECT_EQ(scene.aborted()[1].state().step(), 1);
  // The file system goes on, and the record is there all the same.
  const auto records = [&log] {
    const std::vector<std::string> parts = absl::StrSplit(log.Read(), R"({"step":1,)");
    return parts.size() - 1;
  };
  scene.PumpUntil([&] { return records() == 2 && absl::EndsWith(log.Read(), "}"); }, "the record");
}

}  // namespace
}  // namespace ringmaster::worker
