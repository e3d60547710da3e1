#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/steady_now.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "spdlog/sinks/dist_sink.h"
#include "spdlog/spdlog.h"
#include "tests/worker/driver/ring_scene.h"
#include "worker/checkpoint/checkpoint_files.h"
#include "worker/session/exit_codes.h"

namespace ringmaster::worker {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

// A disk that does not take a shard: its writer waits in open until LetGo, and then fails.
class HungShard {
 public:
  // Of rank 1 in generation 1 of two ranks; `incarnation` is the number of its worker.
  HungShard(const RingScene& scene, int64_t step, int incarnation) {
    const std::string folder = CheckpointDirectory(scene.directory(), step);
    fs::create_directories(folder);
    path_ = absl::StrCat(folder, "/", ShardFileName(1, 2, 1, absl::StrFormat("%032x", incarnation)),
                         ".tmp");
    EXPECT_EQ(mkfifo(path_.c_str(), 0600), 0);
  }
  ~HungShard() { LetGo(); }

  void LetGo() {
    const std::string path = std::exchange(path_, "");
    const int file = path.empty() ? -1 : open(path.c_str(), O_RDONLY | O_CLOEXEC);
    char buffer[4096];
    while (file >= 0 && read(file, buffer, sizeof(buffer)) > 0) {
    }
    close(file);
  }

 private:
  std::string path_;
};

const v1::ShardWritten* Find(RingScene& scene, int64_t step, int rank) {
  for (const v1::ShardWritten& shard : scene.shards()) {
    if (shard.step() == step && shard.ring().rank() == rank) {
      return &shard;
    }
  }
  return nullptr;
}

TEST(HungFileTest, ASlowDiskCostsACheckpointButNeitherTheRingNorTheLastOne) {
  RingScene scene(5);
  scene.spec().mutable_checkpoint()->set_interval_steps(2);
  scene.spec().mutable_recovery()->mutable_hop_deadline()->set_seconds(2);
  scene.StartWorker("a");
  scene.StartWorker("b");
  scene.FormRing(1, {"a", "b"});
  HungShard hung(scene, 2, 2);
  scene.StartSteps();
  scene.PumpUntil([&] { return !scene.faults().empty() || Find(scene, 4, 1) != nullptr; },
                  "the shard of step 4");
  ASSERT_TRUE(scene.faults().empty()) << scene.faults()[0].message();
  EXPECT_THAT(Find(scene, 4, 1)->error(), HasSubstr("step 2 is still being written"));
  // As long again as it waited for step 4.
  const absl::Time later = SteadyNow() + absl::Milliseconds(1500);
  scene.PumpUntil([&] { return SteadyNow() > later; }, "a heartbeat");
  hung.LetGo();
  scene.PumpUntilFinished();
  ASSERT_TRUE(scene.faults().empty()) << scene.faults()[0].message();
  EXPECT_EQ(scene.finished().at(1).checkpoint_error(), "");
  EXPECT_EQ(scene.CheckpointOf(5).shards_size(), 2);
}

// Rank 0 removes what earlier generations left behind; its peers do not wait for that.
TEST(HungFileTest, ASlowSweepHoldsNoStepUp) {
  RingScene scene(3);
  scene.StartWorker("a");
  scene.StartWorker("b");
  scene.FormRing(2, {"a", "b"});
  const std::string folder = CheckpointDirectory(scene.directory(), 1);
  const std::string left = absl::StrCat(folder, "/", ShardFileName(0, 2, 1, "x"));
  fs::create_directories(folder);
  ASSERT_EQ(mkfifo(left.c_str(), 0600), 0);
  const v1::ExistingCheckpoints none;
  scene.StartSteps(&none);
  scene.PumpUntil([&] { return !scene.faults().empty() || scene.records().contains(3); }, "step 3");
  EXPECT_TRUE(scene.faults().empty());
  // Only a reader that waits lets it be opened.
  int writer = -1;
  scene.PumpUntil(
      [&] { return (writer = open(left.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC)) >= 0; },
      "the sweep");
  close(writer);
  // The sweep is over when the worker's threads are gone.
  scene.KillWorker("a");
  EXPECT_TRUE(fs::exists(left)) << "it is nobody's shard";
}

// For its life, what this process logs goes to a job's log too, as in a worker's.
class LogAlsoTo {
 public:
  LogAlsoTo() { spdlog::set_default_logger(std::make_shared<spdlog::logger>("test", sinks_)); }
  ~LogAlsoTo() { spdlog::set_default_logger(before_); }
  void Add(spdlog::sink_ptr sink) { sinks_->add_sink(std::move(sink)); }

 private:
  const std::shared_ptr<spdlog::logger> before_ = spdlog::default_logger();
  const std::shared_ptr<spdlog::sinks::dist_sink_mt> sinks_ =
      std::make_shared<spdlog::sinks::dist_sink_mt>();
};

// The control thread logs, too: heartbeats must go on.
TEST(HungFileTest, AJobLogThatHangsHoldsNeitherStepsNorHeartbeatsUp) {
  LogAlsoTo log;
  RingScene scene(3);
  const std::string path = scene.directory() + "/logs/rank-0.log";
  fs::create_directories(scene.directory() + "/logs");
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  scene.StartWorker("a");
  scene.StartWorker("b");
  log.Add(scene.job_log("a"));
  scene.FormRing(1, {"a", "b"});
  scene.StartSteps();
  scene.PumpUntilFinished();
  ASSERT_TRUE(scene.faults().empty()) << scene.faults()[0].message();
  scene.Release();
  scene.Drain("a");
  scene.PumpUntil([&] { return !scene.goodbyes().empty(); }, "Goodbye");
  EXPECT_EQ(scene.JoinWorker("a").code, kExitOk);
  EXPECT_FALSE(scene.job_log("a")->Drain(absl::ZeroDuration())) << "the disk did not hang";
  // It answers again, and nothing is lost.
  std::ifstream file(path);
  const std::string text(std::istreambuf_iterator<char>(file), {});
  EXPECT_THAT(text, HasSubstr("g1 ring generation 1"));
  EXPECT_THAT(text, HasSubstr("g1 forgetting the state of job"));
}

}  // namespace
}  // namespace ringmaster::worker
