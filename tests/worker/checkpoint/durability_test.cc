#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/temporary_directory.h"
#include "worker/checkpoint/checkpoint_files.h"
#include "worker/checkpoint/shard_file.h"

namespace {

// Paths in the order in which they were synchronised.
std::vector<std::string>& Synced() {
  static auto* const synced = new std::vector<std::string>;
  return *synced;
}

// Synchronising a path that ends like this fails; empty: none.
std::string& Broken() {
  static auto* const broken = new std::string;
  return *broken;
}

// A folder that somebody removes when its parent has been synchronised, once; empty: none.
std::string& Vanishing() {
  static auto* const vanishing = new std::string;
  return *vanishing;
}

}  // namespace

// In place of the system's, for this whole program.
extern "C" int fsync(int file) {
  const std::string path = std::filesystem::read_symlink(absl::StrCat("/proc/self/fd/", file));
  if (!Broken().empty() && absl::EndsWith(path, Broken())) {
    errno = EIO;
    return -1;
  }
  Synced().push_back(path);
  if (std::filesystem::path(Vanishing()).parent_path() == path && rmdir(Vanishing().c_str()) == 0) {
    Vanishing().clear();
  }
  return static_cast<int>(syscall(SYS_fsync, file));
}

namespace ringmaster::worker {
namespace {

namespace fs = std::filesystem;
using ::testing::Contains;

class DurabilityTest : public ::testing::Test {
 protected:
  DurabilityTest() {
    Synced().clear();
    Broken().clear();
    Vanishing().clear();
  }

  absl::StatusOr<v1::CheckpointShard> Write() {
    const std::string bytes(16, 'x');
    return WriteShard({.incarnation = std::string(32, 'a'), .step = 5, .job_directory = directory_},
                      {{{.name = "w", .type = safetensors::Type::kF32, .shape = {4}}, bytes}});
  }

  const TemporaryDirectory temporary_;
  const std::string directory_ = temporary_.path();
};

TEST_F(DurabilityTest, AShardIsOnTheDiskWithAllDirectoriesThatLeadToIt) {
  const auto shard = Write();
  ASSERT_TRUE(shard.ok()) << shard.status();
  EXPECT_THAT(Synced(), Contains(shard->path() + ".tmp"));
  EXPECT_THAT(Synced(), Contains(CheckpointDirectory(directory_, 5)));
  EXPECT_THAT(Synced(), Contains(directory_ + "/checkpoints"));
  EXPECT_THAT(Synced(), Contains(directory_));
}

TEST_F(DurabilityTest, NothingIsLeftOfAShardWhoseNameMayNotLast) {
  Broken() = "step-00000005";
  EXPECT_FALSE(Write().ok());
  EXPECT_TRUE(fs::is_empty(CheckpointDirectory(directory_, 5)));
}

// Who deletes the last file of an earlier attempt at a step deletes the empty folder too.
TEST_F(DurabilityTest, AFolderThatVanishesIsMadeAgain) {
  Vanishing() = CheckpointDirectory(directory_, 5);
  const auto shard = Write();
  ASSERT_TRUE(shard.ok()) << shard.status();
  EXPECT_EQ(Vanishing(), "") << "nothing vanished";
  EXPECT_TRUE(fs::exists(shard->path()));
}

}  // namespace
}  // namespace ringmaster::worker
