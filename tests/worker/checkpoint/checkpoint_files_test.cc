#include "worker/checkpoint/checkpoint_files.h"

#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/testing/temporary_directory.h"
#include "worker/checkpoint/job_directory.h"
#include "worker/checkpoint/shard_file.h"
#include "worker/checkpoint/shard_plan.h"

namespace ringmaster::worker {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class CheckpointFilesTest : public ::testing::Test {
 protected:
  ShardIdentity Identity(int rank, int world, int64_t step = 5, int64_t generation = 3) const {
    ShardIdentity identity{.world_size = world,
                           .incarnation = std::string(32, static_cast<char>('a' + rank)),
                           .step = step,
                           .job_directory = directory_};
    identity.ring.set_training_job("projects/p/trainingJobs/job");
    identity.ring.set_training_job_uid("uid");
    identity.ring.set_generation(generation);
    identity.ring.set_rank(rank);
    return identity;
  }

  static HostTensor Bytes(const std::string& name, const std::string& content) {
    return {{.name = name,
             .type = safetensors::Type::kU8,
             .shape = {static_cast<int64_t>(content.size())}},
            content};
  }

  // Two shards of step 5 and their manifest.
  Manifest WriteCheckpoint(int64_t step = 5) {
    Manifest manifest{.training_job = "projects/p/trainingJobs/job", .training_job_uid = "uid"};
    v1::Checkpoint& checkpoint = manifest.checkpoint;
    checkpoint.set_step(step);
    checkpoint.set_generation(3);
    checkpoint.set_directory(CheckpointDirectory(directory_, step));
    checkpoint.mutable_create_time()->set_seconds(1'700'000'000);
    manifest.spec.mutable_model()->set_preset("tiny");
    manifest.spec.set_steps(77);
    for (int rank = 0; rank < 2; ++rank) {
      const std::string content = absl::StrCat("bytes of rank ", rank);
      const auto shard =
          WriteShard(Identity(rank, 2, step), {Bytes(absl::StrCat("t", rank), content)});
      EXPECT_TRUE(shard.ok()) << shard.status();
      *checkpoint.add_shards() = *shard;
      checkpoint.set_bytes(checkpoint.bytes() + shard->bytes());
    }
    const absl::Status written = WriteManifestFile(directory_, 3, std::string(32, 'a'), manifest);
    EXPECT_TRUE(written.ok()) << written;
    return manifest;
  }

  const TemporaryDirectory temporary_;
  const std::string directory_ = temporary_.path();
};

std::string ReadAll(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

void WriteAll(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}

TEST_F(CheckpointFilesTest, AShardIsWrittenUnderItsNameAndVerifies) {
  const auto shard = WriteShard(Identity(1, 2), {Bytes("b", "beta"), Bytes("a", "alpha")});
  ASSERT_TRUE(shard.ok()) << shard.status();
  EXPECT_EQ(shard->path(),
            absl::StrCat(directory_, "/checkpoints/step-00000005/shard-00001-of-00002-g3-",
                         std::string(32, 'b'), ".safetensors"));
  EXPECT_EQ(shard->bytes(), static_cast<int64_t>(fs::file_size(shard->path())));
  EXPECT_TRUE(VerifyShard(*shard).ok());
  const auto file = safetensors::File::Open(shard->path());
  ASSERT_TRUE(file.ok()) << file.status();
  const auto& header = file->header();
  EXPECT_EQ(header.metadata.at("step"), "5");
  EXPECT_EQ(header.metadata.at("generation"), "3");
  EXPECT_EQ(header.metadata.at("training_job_uid"), "uid");
  const auto hashes = nlohmann::json::parse(header.metadata.at("xxh3"));
  EXPECT_EQ(hashes.at("a").get<std::string>().size(), 16);
  const auto bytes = file->Bytes(*header.Find("b"));
  EXPECT_EQ(std::string(bytes.data(), bytes.size()), "beta");
  // Nothing but the shard is there.
  EXPECT_EQ(std::distance(fs::directory_iterator(fs::path(shard->path()).parent_path()), {}), 1);
}

TEST_F(CheckpointFilesTest, AnExistingShardIsNeverReplaced) {
  const auto first = WriteShard(Identity(0, 1), {Bytes("a", "first")});
  ASSERT_TRUE(first.ok()) << first.status();
  const std::string before = ReadAll(first->path());
  const auto second = WriteShard(Identity(0, 1), {Bytes("a", "other")});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kAlreadyExists) << second.status();
  EXPECT_EQ(ReadAll(first->path()), before);
  // Another generation of the same step is another file.
  const auto third = WriteShard(Identity(0, 1, 5, 4), {Bytes("a", "other")});
  ASSERT_TRUE(third.ok());
  EXPECT_NE(third->path(), first->path());
}

TEST_F(CheckpointFilesTest, VerifyFindsDamageTruncationAndAbsence) {
  const auto shard = WriteShard(Identity(0, 1), {Bytes("a", std::string(10'000, 'x'))});
  ASSERT_TRUE(shard.ok());
  const std::string good = ReadAll(shard->path());
  std::string bad = good;
  bad[good.size() - 1] ^= 1;
  WriteAll(shard->path(), bad);
  EXPECT_EQ(VerifyShard(*shard).code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(VerifyShard(*shard).message(), HasSubstr(shard->path()));
  WriteAll(shard->path(), good.substr(0, good.size() - 1));
  EXPECT_EQ(VerifyShard(*shard).code(), absl::StatusCode::kDataLoss);
  WriteAll(shard->path(), good);
  EXPECT_TRUE(VerifyShard(*shard).ok());
  fs::remove(shard->path());
  EXPECT_EQ(VerifyShard(*shard).code(), absl::StatusCode::kNotFound);
}

// As a full disk, without one: files may not grow beyond 4 KiB.
TEST_F(CheckpointFilesTest, AFullDiskIsAnErrorAndLeavesNothing) {
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{.rlim_cur = 4096, .rlim_max = before.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  const auto shard = WriteShard(Identity(0, 1), {Bytes("a", std::string(100'000, 'x'))});
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  ASSERT_FALSE(shard.ok());
  EXPECT_THAT(shard.status().message(), HasSubstr("checkpoint shard"));
  EXPECT_TRUE(fs::is_empty(CheckpointDirectory(directory_, 5)));
}

TEST_F(CheckpointFilesTest, AManifestSurvivesAMoveOfItsDirectory) {
  const Manifest written = WriteCheckpoint();
  // A directive may come again.
  EXPECT_TRUE(WriteManifestFile(directory_, 3, std::string(32, 'a'), written).ok());
  const std::string moved = directory_ + "/elsewhere";
  fs::rename(written.checkpoint.directory(), moved);
  for (const std::string& path : {moved, moved + "/manifest.json"}) {
    const auto manifest = ReadManifestFile(path);
    ASSERT_TRUE(manifest.ok()) << manifest.status();
    EXPECT_EQ(manifest->training_job, written.training_job);
    EXPECT_EQ(manifest->training_job_uid, "uid");
    EXPECT_EQ(manifest->spec.steps(), 77);
    EXPECT_EQ(manifest->spec.model().preset(), "tiny");
    EXPECT_EQ(manifest->checkpoint.step(), 5);
    EXPECT_EQ(manifest->checkpoint.generation(), 3);
    EXPECT_EQ(manifest->checkpoint.directory(), moved);
    EXPECT_EQ(manifest->checkpoint.bytes(), written.checkpoint.bytes());
    EXPECT_EQ(manifest->checkpoint.create_time().seconds(), 1'700'000'000);
    ASSERT_EQ(manifest->checkpoint.shards_size(), 2);
    EXPECT_EQ(manifest->checkpoint.shards(1).rank(), 1);
    EXPECT_TRUE(VerifyShard(manifest->checkpoint.shards(1)).ok());
  }
}

TEST_F(CheckpointFilesTest, AManifestIsThereWhateverBecameOfItsShards) {
  const Manifest written = WriteCheckpoint();
  EXPECT_TRUE(HasManifestFile(written));
  fs::remove(written.checkpoint.shards(0).path());
  EXPECT_TRUE(HasManifestFile(written));
  Manifest other = written;
  other.checkpoint.set_generation(4);
  EXPECT_FALSE(HasManifestFile(other));
  other = written;
  other.checkpoint.set_step(6);
  EXPECT_FALSE(HasManifestFile(other));
  other = written;
  other.training_job_uid = "another";
  EXPECT_FALSE(HasManifestFile(other));
  const std::string path = written.checkpoint.directory() + "/manifest.json";
  for (const char* text : {R"({"shards":[],"step":"5","generation":{}})", "torn"}) {
    WriteAll(path, text);
    EXPECT_FALSE(HasManifestFile(written)) << text;
  }
  fs::remove(path);
  EXPECT_FALSE(HasManifestFile(written));
}

// Process ids coincide between pods; a name does not.
TEST_F(CheckpointFilesTest, AManifestsTemporaryFileIsOneProcessesAlone) {
  const Manifest manifest = WriteCheckpoint();
  const std::string path = manifest.checkpoint.directory() + "/manifest.json";
  const std::string other = path + "-g4-" + std::string(32, 'b') + ".tmp";
  WriteAll(other, "another process is writing");
  ASSERT_TRUE(WriteManifestFile(directory_, 4, std::string(32, 'c'), manifest).ok());
  EXPECT_EQ(ReadAll(other), "another process is writing");
  EXPECT_EQ(WriteManifestFile(directory_, 4, std::string(32, 'b'), manifest).code(),
            absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(ReadManifestFile(path).ok());
  fs::remove(other);
  EXPECT_TRUE(WriteManifestFile(directory_, 4, std::string(32, 'b'), manifest).ok());
  EXPECT_FALSE(fs::exists(other));
}

TEST_F(CheckpointFilesTest, BadManifestsAreNamed) {
  const Manifest written = WriteCheckpoint();
  const std::string path = written.checkpoint.directory() + "/manifest.json";
  const auto good = nlohmann::json::parse(ReadAll(path));
  EXPECT_EQ(ReadManifestFile(directory_ + "/none").status().code(), absl::StatusCode::kNotFound);
  const auto expect = [&](const std::string& text, absl::StatusCode code) {
    WriteAll(path, text);
    const auto read = ReadManifestFile(path);
    EXPECT_EQ(read.status().code(), code) << text << "\n" << read.status();
    EXPECT_THAT(read.status().message(), HasSubstr(path));
  };
  expect("", absl::StatusCode::kInvalidArgument);
  expect("[1]", absl::StatusCode::kInvalidArgument);
  expect(ReadAll(path).substr(0, 20), absl::StatusCode::kInvalidArgument);
  for (const char* key : {"format", "step", "generation", "training_job", "training_job_uid"}) {
    auto changed = good;
    changed.erase(key);
    expect(changed.dump(), absl::StatusCode::kInvalidArgument);
    changed = good;
    changed[key] = -1;
    expect(changed.dump(), absl::StatusCode::kInvalidArgument);
  }
  auto changed = good;
  changed["shards"][0]["file"] = "../x";
  expect(changed.dump(), absl::StatusCode::kInvalidArgument);
  changed = good;
  changed["shards"][0]["bytes"] = 1;
  expect(changed.dump(), absl::StatusCode::kDataLoss);
  changed = good;
  changed["shards"][0]["file"] = "gone.safetensors";
  expect(changed.dump(), absl::StatusCode::kDataLoss);
}

TEST_F(CheckpointFilesTest, DeletesExactlyWhatItIsTold) {
  const Manifest older = WriteCheckpoint(5);
  const Manifest newer = WriteCheckpoint(6);
  std::vector<std::string> paths;
  for (const auto& shard : older.checkpoint.shards()) {
    paths.push_back(shard.path());
  }
  EXPECT_EQ(DeleteCheckpointFiles(directory_, paths), paths);
  EXPECT_FALSE(fs::exists(older.checkpoint.directory())) << "the manifest went too";
  EXPECT_TRUE(ReadManifestFile(newer.checkpoint.directory()).ok());
  EXPECT_EQ(DeleteCheckpointFiles(directory_, paths), paths) << "again is no error";
  // A shard of an attempt that no manifest names goes alone.
  const auto stray = WriteShard(Identity(0, 2, 6, 2), {Bytes("t", "stray")});
  ASSERT_TRUE(stray.ok());
  EXPECT_THAT(DeleteCheckpointFiles(directory_, {stray->path()}), ElementsAre(stray->path()));
  EXPECT_FALSE(fs::exists(stray->path()));
  EXPECT_TRUE(ReadManifestFile(newer.checkpoint.directory()).ok());
}

// Garbage of a step that was done again may be told only after its new checkpoint is committed.
TEST_F(CheckpointFilesTest, AManifestThatNamesNoDeletedShardStays) {
  const Manifest manifest = WriteCheckpoint();
  const std::string folder = manifest.checkpoint.directory();
  const auto old = WriteShard(Identity(0, 2, 5, 2), {Bytes("t", "earlier attempt")});
  ASSERT_TRUE(old.ok());
  EXPECT_THAT(DeleteCheckpointFiles(directory_, {old->path()}), SizeIs(1));
  EXPECT_FALSE(fs::exists(old->path()));
  EXPECT_TRUE(ReadManifestFile(folder).ok());
  const std::string gone = manifest.checkpoint.shards(0).path();
  fs::remove(gone);
  EXPECT_THAT(DeleteCheckpointFiles(directory_, {gone}), ElementsAre(gone));
  EXPECT_FALSE(fs::exists(folder + "/manifest.json")) << "it named a shard that is gone";
}

// Else a manifest would be left that names shards which are gone, and nobody told again.
TEST_F(CheckpointFilesTest, AManifestThatCannotBeReadKeepsItsShards) {
  const Manifest manifest = WriteCheckpoint();
  const std::string path = manifest.checkpoint.directory() + "/manifest.json";
  const std::string shard = manifest.checkpoint.shards(0).path();
  fs::rename(path, path + ".away");
  const auto expect_kept = [&] {
    const absl::Status read = ReadManifestFile(path).status();
    EXPECT_FALSE(read.ok());
    EXPECT_NE(read.code(), absl::StatusCode::kNotFound) << read;
    EXPECT_THAT(DeleteCheckpointFiles(directory_, {shard}), IsEmpty());
    SweepShards(directory_, Identity(0, 2, 0, 9).ring, {});
    EXPECT_TRUE(fs::exists(shard));
  };
  // EISDIR and EIO.
  fs::create_directory(path);
  fs::create_directory(path + "/manifest.json");
  expect_kept();
  fs::remove_all(path);
  fs::create_symlink("/proc/self/mem", path);
  expect_kept();
  fs::remove(path);
  fs::rename(path + ".away", path);
  EXPECT_THAT(DeleteCheckpointFiles(directory_, {shard}), ElementsAre(shard));
  EXPECT_FALSE(fs::exists(path));
}

// Whose user may remove the shard, but not the manifest.
TEST_F(CheckpointFilesTest, AManifestThatCannotBeRemovedKeepsItsShards) {
  if (geteuid() != 0) {
    GTEST_SKIP() << "only root can become another user";
  }
  const Manifest manifest = WriteCheckpoint();
  const std::string shard = manifest.checkpoint.shards(0).path();
  fs::permissions(directory_, fs::perms(0755));
  fs::permissions(manifest.checkpoint.directory(), fs::perms(01777));
  constexpr uid_t kNobody = 65534;
  ASSERT_EQ(chown(shard.c_str(), kNobody, kNobody), 0);
  ASSERT_EQ(seteuid(kNobody), 0);
  const std::vector<std::string> done = DeleteCheckpointFiles(directory_, {shard});
  ASSERT_EQ(seteuid(0), 0);
  EXPECT_THAT(done, IsEmpty());
  EXPECT_TRUE(ReadManifestFile(manifest.checkpoint.directory()).ok());
}

// Another job may have had the directory, and a newer worker may write another format.
TEST_F(CheckpointFilesTest, AManifestOfSomebodyElseStays) {
  const Manifest theirs = WriteCheckpoint();
  const std::string path = theirs.checkpoint.directory() + "/manifest.json";
  const std::string good = ReadAll(path);
  auto newer = nlohmann::json::parse(good);
  newer["format"] = "ringmaster-checkpoint-2";
  const std::string torn = theirs.checkpoint.shards(0).path();
  fs::resize_file(torn, fs::file_size(torn) - 1);
  for (const std::string& text : {good, newer.dump()}) {
    WriteAll(path, text);
    const auto ours = WriteShard(Identity(0, 2, 5, 2), {Bytes("t", "ours")});
    ASSERT_TRUE(ours.ok());
    EXPECT_THAT(DeleteCheckpointFiles(directory_, {ours->path()}), SizeIs(1));
    EXPECT_FALSE(fs::exists(ours->path()));
    EXPECT_EQ(ReadAll(path), text);
  }
  // A newer worker's manifest of our own shards, and what can be nobody's.
  for (const std::string& text : {newer.dump(), std::string("not a manifest")}) {
    WriteAll(path, text);
    EXPECT_THAT(DeleteCheckpointFiles(directory_, {torn}), SizeIs(1));
    EXPECT_FALSE(fs::exists(path));
  }
}

TEST_F(CheckpointFilesTest, DeletesNothingOutsideTheCheckpointsFolder) {
  const Manifest manifest = WriteCheckpoint();
  const std::string inside = manifest.checkpoint.shards(0).path();
  const std::string steps = directory_ + "/steps.jsonl";
  WriteAll(steps, "{}\n");
  for (const std::string& path :
       {steps, directory_ + "/checkpoints/../steps.jsonl", directory_ + "/checkpoints",
        std::string("/etc/hostname"), directory_ + "2/checkpoints/x", std::string()}) {
    EXPECT_THAT(DeleteCheckpointFiles(directory_, {path}), IsEmpty()) << path;
    EXPECT_TRUE(fs::exists(steps)) << path;
  }
  EXPECT_TRUE(fs::exists(inside));
  EXPECT_THAT(DeleteCheckpointFiles(directory_, {steps, inside}), ElementsAre(inside));
  EXPECT_FALSE(fs::exists(inside)) << "one bad path must not keep the others";
  EXPECT_TRUE(fs::exists(steps));
}

// What somebody who may write in the job's directory could leave there.
TEST_F(CheckpointFilesTest, ASymbolicLinkLeadsNeitherAWriteNorADeletionOutside) {
  const Manifest manifest = WriteCheckpoint(5);
  const std::string outside = directory_ + "/outside";
  fs::create_directories(outside);
  WriteAll(outside + "/precious", "x");
  const std::string step = CheckpointDirectory(directory_, 6);
  fs::create_directory_symlink(outside, step);

  EXPECT_EQ(WriteShard(Identity(0, 1, 6), {Bytes("a", "alpha")}).status().code(),
            absl::StatusCode::kPermissionDenied);
  Manifest linked = manifest;
  linked.checkpoint.set_directory(step);
  linked.checkpoint.clear_shards();
  EXPECT_EQ(WriteManifestFile(directory_, 3, std::string(32, 'a'), linked).code(),
            absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(DeleteCheckpointFiles(directory_, {step + "/precious"}), IsEmpty());
  EXPECT_EQ(ReadAll(outside + "/precious"), "x");
  EXPECT_EQ(std::distance(fs::directory_iterator(outside), {}), 1) << "nothing was written";

  // A file that is a link: what it names stays as it is.
  const std::string shard = absl::StrCat(CheckpointDirectory(directory_, 7), "/",
                                         ShardFileName(0, 1, 3, std::string(32, 'a')));
  fs::create_directories(CheckpointDirectory(directory_, 7));
  fs::create_symlink(outside + "/precious", shard + ".tmp");
  EXPECT_FALSE(WriteShard(Identity(0, 1, 7), {Bytes("a", "alpha")}).ok());
  fs::create_symlink(outside + "/precious", shard);
  EXPECT_THAT(DeleteCheckpointFiles(directory_, {shard}), ElementsAre(shard));
  EXPECT_FALSE(fs::is_symlink(shard)) << "the link itself may go";
  EXPECT_EQ(ReadAll(outside + "/precious"), "x");
}

// The whole folder may lie on another disk when no shared directory forbids it.
TEST_F(CheckpointFilesTest, TheCheckpointsFolderItselfMayBeALink) {
  fs::create_directories(directory_ + "/disk");
  fs::create_directory_symlink(directory_ + "/disk", directory_ + "/checkpoints");
  const Manifest manifest = WriteCheckpoint();
  std::vector<std::string> paths;
  for (const auto& shard : manifest.checkpoint.shards()) {
    paths.push_back(shard.path());
  }
  EXPECT_EQ(DeleteCheckpointFiles(directory_, paths), paths);
  EXPECT_TRUE(fs::is_empty(directory_ + "/disk"));
}

TEST_F(CheckpointFilesTest, AJobWritesBelowTheSharedDirectoryOnly) {
  const std::string shared = directory_ + "/shared";
  const std::string job = shared + "/default/job";
  EXPECT_TRUE(CheckJobDirectory(job, shared).ok());
  EXPECT_TRUE(CheckJobDirectory(job, shared + "/").ok());
  EXPECT_TRUE(CheckJobDirectory("/anywhere", "").ok());
  EXPECT_EQ(CheckJobDirectory("jobs/x", "").code(), absl::StatusCode::kInvalidArgument);
  for (const std::string& other : {directory_ + "/shared2/job", shared + "/../job", directory_}) {
    EXPECT_EQ(CheckJobDirectory(other, shared).code(), absl::StatusCode::kFailedPrecondition)
        << other;
  }
  // The shared directory may be a link itself; one within it must not lead out.
  fs::create_directories(shared + "/default");
  fs::create_directory_symlink(shared, directory_ + "/mount");
  EXPECT_TRUE(CheckJobDirectory(directory_ + "/mount/default/job", directory_ + "/mount").ok());
  EXPECT_TRUE(CheckJobDirectory(directory_ + "/mount/default/job", shared).ok());
  fs::create_directories(directory_ + "/outside");
  fs::create_directory_symlink(directory_ + "/outside", job);
  EXPECT_FALSE(CheckJobDirectory(job, shared).ok());
  fs::remove(job);
  fs::create_directories(job);
  for (const std::string folder : {"/checkpoints", "/logs", "/ring"}) {
    fs::create_directory_symlink(directory_ + "/outside", job + folder);
    EXPECT_THAT(CheckJobDirectory(job, shared).message(), HasSubstr(job + folder));
    fs::remove(job + folder);
  }
  EXPECT_TRUE(CheckJobDirectory(job, shared).ok());
  // What the file system does not tell is no verdict on the job.
  fs::create_symlink(job + "/logs", job + "/logs");
  EXPECT_EQ(CheckJobDirectory(job, shared).code(), absl::StatusCode::kUnavailable);
}

TEST_F(CheckpointFilesTest, SweepsTemporaryFilesOfEarlierGenerationsOnly) {
  const Manifest manifest = WriteCheckpoint();
  const std::string folder = manifest.checkpoint.directory() + "/";
  const std::string old = folder + ShardFileName(0, 2, 3, std::string(32, 'a')) + ".tmp";
  const std::string current = folder + ShardFileName(0, 2, 4, std::string(32, 'a')) + ".tmp";
  const std::string old_manifest = folder + "manifest.json-g3-" + std::string(32, 'b') + ".tmp";
  const std::string current_manifest = folder + "manifest.json-g4-" + std::string(32, 'a') + ".tmp";
  for (const std::string& path : {old, current, old_manifest, current_manifest}) {
    WriteAll(path, "x");
  }
  SweepTemporaryFiles(directory_, 4, [] { return false; });
  EXPECT_TRUE(fs::exists(old)) << "it may be another job's";
  SweepTemporaryFiles(directory_, 4, [] { return true; });
  EXPECT_FALSE(fs::exists(old));
  EXPECT_TRUE(fs::exists(current));
  EXPECT_FALSE(fs::exists(old_manifest));
  EXPECT_TRUE(fs::exists(current_manifest));
  EXPECT_TRUE(ReadManifestFile(folder).ok());
  SweepTemporaryFiles(directory_ + "/none", 4, [] { return true; });
}

// Killed between the link and the report, a rank leaves a shard that nobody has heard of.
TEST_F(CheckpointFilesTest, SweepsShardsThatBelongToNoCheckpoint) {
  const auto write = [this](int64_t step, int64_t generation, const std::string& uid = "uid") {
    ShardIdentity identity = Identity(0, 2, step, generation);
    identity.ring.set_training_job_uid(uid);
    const auto shard = WriteShard(identity, {Bytes("t", "x")});
    EXPECT_TRUE(shard.ok()) << shard.status();
    return shard->path();
  };
  v1::ExistingCheckpoints existing;
  const auto add = [&existing](int64_t step, int64_t generation) {
    existing.add_entries()->set_step(step);
    existing.mutable_entries()->rbegin()->set_generation(generation);
  };
  // Its manifest.json was never written: rank 0 died before.
  const std::string committed = write(4, 3);
  add(4, 3);
  const std::string beside = write(4, 2);
  const std::string orphan = write(6, 3);
  const std::string current = write(6, 5);
  const std::string lonely = write(8, 4);
  // The former owner of the directory, a checkpoint that this coordinator does not know, and what a
  // user put aside.
  const std::string stranger = write(9, 1, "another job");
  const Manifest readable = WriteCheckpoint(5);
  fs::copy(fs::path(orphan).parent_path(), directory_ + "/checkpoints/best");

  v1::RingRef ring = Identity(0, 2, 0, 5).ring;
  SweepShards(directory_, ring, existing);
  for (const std::string& path :
       {committed, current, stranger, readable.checkpoint.shards(0).path(),
        directory_ + "/checkpoints/best/" + fs::path(orphan).filename().string()}) {
    EXPECT_TRUE(fs::exists(path)) << path;
  }
  for (const std::string& path : {beside, orphan, lonely}) {
    EXPECT_FALSE(fs::exists(path)) << path;
  }
  EXPECT_FALSE(fs::exists(fs::path(lonely).parent_path())) << "an empty folder goes too";
  SweepShards(directory_ + "/none", ring, existing);
}

// A shard that cannot be read now is no reason to delete those beside it.
TEST_F(CheckpointFilesTest, KeepsTheShardsOfAManifestThatDoesNotHold) {
  const Manifest manifest = WriteCheckpoint();
  const std::string torn = manifest.checkpoint.shards(0).path();
  const std::string sound = manifest.checkpoint.shards(1).path();
  fs::resize_file(torn, fs::file_size(torn) - 1);
  SweepShards(directory_, Identity(0, 2, 0, 9).ring, {});
  EXPECT_TRUE(fs::exists(torn));
  EXPECT_TRUE(fs::exists(sound));
}

TEST(ShardPlanTest, SpreadsBytesEvenlyAndTheSameWhateverTheOrder) {
  std::vector<TensorSize> tensors;
  for (int i = 0; i < 50; ++i) {
    tensors.push_back({absl::StrCat("t", i), (i * 7919) % 1000});
  }
  for (const int ranks : {1, 2, 3, 8, 60}) {
    const std::vector<int> plan = PlanShards(tensors, ranks);
    std::vector<int64_t> load(ranks, 0);
    for (size_t i = 0; i < tensors.size(); ++i) {
      ASSERT_GE(plan[i], 0);
      ASSERT_LT(plan[i], ranks);
      load[plan[i]] += tensors[i].bytes;
    }
    if (ranks <= 8) {
      EXPECT_LE(
          *std::max_element(load.begin(), load.end()) - *std::min_element(load.begin(), load.end()),
          1000);
    }
    const std::vector<TensorSize> reversed(tensors.rbegin(), tensors.rend());
    const std::vector<int> other = PlanShards(reversed, ranks);
    EXPECT_TRUE(std::equal(plan.begin(), plan.end(), other.rbegin()));
  }
  EXPECT_TRUE(PlanShards({}, 3).empty());
}

}  // namespace
}  // namespace ringmaster::worker
