#include "worker/checkpoint/checkpoint_files.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "base/read_file.h"
#include "base/safetensors.h"
#include "base/status_macros.h"
#include "base/version.h"
#include "google/protobuf/util/json_util.h"
#include "google/protobuf/util/time_util.h"
#include "nlohmann/json.hpp"
#include "spdlog/spdlog.h"
#include "worker/checkpoint/job_directory.h"

namespace ringmaster::worker {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr char kManifestName[] = "manifest.json";

absl::Status Failed(const char* what, const std::string& path, int error) {
  return absl::ErrnoToStatus(error, absl::StrCat(what, " ", path));
}

// After an error nothing of it is left.
absl::Status WriteNewFile(const std::string& path, const std::string& text) {
  const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (file < 0) {
    return Failed("cannot create", path, errno);
  }
  const absl::Cleanup closer = [file] { close(file); };
  absl::Cleanup remover = [&path] { unlink(path.c_str()); };
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t wrote = write(file, text.data() + done, text.size() - done);
    if (wrote < 0 && errno != EINTR) {
      return Failed("cannot write", path, errno);
    }
    done += wrote > 0 ? static_cast<size_t>(wrote) : 0;
  }
  if (fsync(file) != 0) {
    return Failed("cannot sync", path, errno);
  }
  std::move(remover).Cancel();
  return absl::OkStatus();
}

// A required member of a JSON object, of the kind that `T` is.
template <typename T>
absl::StatusOr<T> Member(const json& object, const char* key, const std::string& where) {
  const auto found = object.find(key);
  bool fits = found != object.end();
  if constexpr (std::is_same_v<T, std::string>) {
    fits = fits && found->is_string();
  } else {
    fits = fits && found->is_number_integer() && *found >= 0;
  }
  if (!fits) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": \"", key, "\" is missing or not a ",
                     std::is_same_v<T, std::string> ? "string" : "whole number"));
  }
  return found->template get<T>();
}

// An object with an array "shards", whatever else it is. InvalidArgument when it is something else.
absl::StatusOr<json> ParseManifest(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string content, ReadFile(path));
  json text = json::parse(content, nullptr, /*allow_exceptions=*/false);
  if (!text.is_object() || !text.contains("shards") || !text["shards"].is_array()) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is not a checkpoint manifest"));
  }
  return text;
}

absl::StatusOr<v1::CheckpointShard> ShardFromJson(const json& entry, const fs::path& folder,
                                                  const std::string& where) {
  if (!entry.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": a shard is not an object"));
  }
  ASSIGN_OR_RETURN(const std::string file, Member<std::string>(entry, "file", where));
  if (file.empty() || absl::StrContains(file, '/')) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": shard \"", file, "\" is not the name of a file beside it"));
  }
  v1::CheckpointShard shard;
  shard.set_path((folder / file).string());
  ASSIGN_OR_RETURN(const int64_t bytes, Member<int64_t>(entry, "bytes", where));
  ASSIGN_OR_RETURN(const int64_t rank, Member<int64_t>(entry, "rank", where));
  ASSIGN_OR_RETURN(const std::string xxh3, Member<std::string>(entry, "xxh3", where));
  shard.set_bytes(bytes);
  shard.set_rank(static_cast<int32_t>(rank));
  shard.set_xxh3(xxh3);
  std::error_code error;
  const auto size = fs::file_size(shard.path(), error);
  if (error || static_cast<int64_t>(size) != bytes) {
    return absl::DataLossError(
        absl::StrCat(where, ": shard ", shard.path(), " ",
                     error ? "is missing" : absl::StrCat("has ", size, " bytes"),
                     ", the manifest says ", bytes, " bytes"));
  }
  return shard;
}

// The generation in the name of a shard or a temporary file; the greatest number when it has none.
int64_t GenerationIn(const std::string& name) {
  const size_t mark = name.rfind("-g");
  int64_t generation = 0;
  return mark != std::string::npos &&
                 absl::SimpleAtoi(name.substr(mark + 2, name.find('-', mark + 2) - mark - 2),
                                  &generation)
             ? generation
             : std::numeric_limits<int64_t>::max();
}

// Another job may have had the same directory.
bool IsShardOf(const std::string& path, const std::string& training_job_uid) {
  const auto file = safetensors::File::Open(path);
  if (!file.ok()) {
    return false;
  }
  const auto uid = file->header().metadata.find("training_job_uid");
  return uid != file->header().metadata.end() && uid->second == training_job_uid;
}

}  // namespace

std::string CheckpointsFolder(const std::string& job_directory) {
  return job_directory + "/checkpoints";
}

std::string CheckpointDirectory(const std::string& job_directory, int64_t step) {
  return absl::StrFormat("%s/step-%08d", CheckpointsFolder(job_directory), step);
}

std::string ShardFileName(int rank, int world_size, int64_t generation,
                          const std::string& incarnation) {
  return absl::StrFormat("shard-%05d-of-%05d-g%d-%s.safetensors", rank, world_size, generation,
                         incarnation);
}

absl::Status MakeDirectories(const std::string& path) {
  std::error_code error;
  std::vector<std::string> parents;
  for (fs::path one = path; one.has_relative_path() && !fs::exists(one, error);
       one = one.parent_path()) {
    parents.push_back(one.has_parent_path() ? one.parent_path().string() : ".");
  }
  fs::create_directories(path, error);
  if (error) {
    return Failed("cannot create directory", path, error.value());
  }
  for (const std::string& parent : parents) {
    RETURN_IF_ERROR(SyncDirectory(parent));
  }
  return absl::OkStatus();
}

absl::Status SyncDirectory(const std::string& directory) {
  const int folder = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) {
    return Failed("cannot open directory", directory, errno);
  }
  const absl::Cleanup closer = [folder] { close(folder); };
  // Some network file systems do not know fsync of a directory.
  if (fsync(folder) != 0 && errno != EINVAL && errno != ENOTSUP) {
    return Failed("cannot sync directory", directory, errno);
  }
  return absl::OkStatus();
}

absl::Status WriteManifestFile(const std::string& job_directory, int64_t generation,
                               const std::string& incarnation, const Manifest& manifest) {
  const v1::Checkpoint& checkpoint = manifest.checkpoint;
  json text = {
      {"format", kCheckpointFormat},
      {"writer", absl::StrCat("ringmaster-worker ", Version(), " (", Commit(), ")")},
      {"training_job", manifest.training_job},
      {"training_job_uid", manifest.training_job_uid},
      {"step", checkpoint.step()},
      {"generation", checkpoint.generation()},
      {"world_size", checkpoint.shards_size()},
      {"bytes", checkpoint.bytes()},
      {"create_time", google::protobuf::util::TimeUtil::ToString(checkpoint.create_time())},
      {"shards", json::array()}};
  for (const v1::CheckpointShard& shard : checkpoint.shards()) {
    const fs::path path = shard.path();
    if (path.parent_path() != fs::path(checkpoint.directory())) {
      return absl::InvalidArgumentError(absl::StrCat("checkpoint ", checkpoint.name(), ": shard ",
                                                     shard.path(), " is not in ",
                                                     checkpoint.directory()));
    }
    text["shards"].push_back({{"file", path.filename().string()},
                              {"rank", shard.rank()},
                              {"bytes", shard.bytes()},
                              {"xxh3", shard.xxh3()}});
  }
  std::string spec;
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  const auto printed = google::protobuf::util::MessageToJsonString(manifest.spec, &spec, options);
  if (!printed.ok()) {
    return absl::InternalError(absl::StrCat("spec to JSON: ", printed.ToString()));
  }
  text["spec"] = json::parse(spec, nullptr, /*allow_exceptions=*/false);
  const std::string path = absl::StrCat(checkpoint.directory(), "/", kManifestName);
  RETURN_IF_ERROR(ResolveBelow(CheckpointsFolder(job_directory), path).status());
  const std::string temporary = absl::StrCat(path, "-g", generation, "-", incarnation, ".tmp");
  const std::string content = text.dump(2) + "\n";
  RETURN_IF_ERROR(WriteNewFile(temporary, content));
  int done = rename(temporary.c_str(), path.c_str());
  if (done != 0 && errno == ENOENT) {
    // The next generation has swept it meanwhile, once.
    RETURN_IF_ERROR(WriteNewFile(temporary, content));
    done = rename(temporary.c_str(), path.c_str());
  }
  if (done != 0) {
    const int error = errno;
    unlink(temporary.c_str());
    return Failed("cannot rename to", path, error);
  }
  return SyncDirectory(checkpoint.directory());
}

bool HasManifestFile(const Manifest& manifest) {
  const v1::Checkpoint& checkpoint = manifest.checkpoint;
  const auto text = ParseManifest(absl::StrCat(checkpoint.directory(), "/", kManifestName));
  return text.ok() && text->value("training_job_uid", json()) == manifest.training_job_uid &&
         text->value("step", json()) == checkpoint.step() &&
         text->value("generation", json()) == checkpoint.generation();
}

absl::StatusOr<Manifest> ReadManifestFile(const std::string& path) {
  std::error_code error;
  fs::path file = path;
  if (fs::is_directory(file, error)) {
    file /= kManifestName;
  }
  const std::string where = file.string();
  ASSIGN_OR_RETURN(const json text, ParseManifest(where));
  ASSIGN_OR_RETURN(const std::string format, Member<std::string>(text, "format", where));
  if (format != kCheckpointFormat) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": format \"", format, "\" is not \"", kCheckpointFormat, "\""));
  }
  Manifest manifest;
  ASSIGN_OR_RETURN(manifest.training_job, Member<std::string>(text, "training_job", where));
  ASSIGN_OR_RETURN(manifest.training_job_uid, Member<std::string>(text, "training_job_uid", where));
  v1::Checkpoint& checkpoint = manifest.checkpoint;
  ASSIGN_OR_RETURN(const int64_t step, Member<int64_t>(text, "step", where));
  ASSIGN_OR_RETURN(const int64_t generation, Member<int64_t>(text, "generation", where));
  checkpoint.set_step(step);
  checkpoint.set_generation(generation);
  const fs::path folder = fs::absolute(file, error).parent_path();
  checkpoint.set_directory(folder.string());
  for (const json& entry : text["shards"]) {
    ASSIGN_OR_RETURN(*checkpoint.add_shards(), ShardFromJson(entry, folder, where));
    checkpoint.set_bytes(checkpoint.bytes() + checkpoint.shards().rbegin()->bytes());
  }
  const std::string created = text.value("create_time", json("")).dump();
  google::protobuf::util::TimeUtil::FromString(created.substr(1, created.size() - 2),
                                               checkpoint.mutable_create_time());
  google::protobuf::util::JsonParseOptions options;
  options.ignore_unknown_fields = true;
  const auto parsed = google::protobuf::util::JsonStringToMessage(
      text.value("spec", json::object()).dump(), &manifest.spec, options);
  if (!parsed.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": spec: ", parsed.ToString()));
  }
  return manifest;
}

namespace {

// The names of the shards in the manifest.json of `folder`, whatever its format is and whether or
// not they are there; none without one. InvalidArgument when it is no manifest, else what the
// system says.
absl::StatusOr<std::set<std::string>> NamedShards(const fs::path& folder) {
  std::set<std::string> names;
  const std::string path = folder / kManifestName;
  const absl::StatusOr<json> text = ParseManifest(path);
  if (absl::IsNotFound(text.status())) {
    return names;
  }
  RETURN_IF_ERROR(text.status());
  for (const json& entry : (*text)["shards"]) {
    ASSIGN_OR_RETURN(std::string name, Member<std::string>(entry, "file", path));
    names.insert(std::move(name));
  }
  return names;
}

// The manifest.json beside it names it, or may: whatever the coordinator knows, somebody may read
// it.
bool IsInManifest(const fs::path& shard) {
  const auto names = NamedShards(shard.parent_path());
  return !names.ok() || names->contains(shard.filename().string());
}

// As it was told, and where it is.
struct DoomedFile {
  std::string told;
  fs::path resolved;
};

// Removes the manifest.json of `folder` when it names one of `files`, which lie there, or is no
// manifest. After OK none is left that names one of them.
absl::Status RemoveManifestOf(const fs::path& folder, const std::vector<DoomedFile>& files) {
  const auto names = NamedShards(folder);
  const bool useless = absl::IsInvalidArgument(names.status());
  if (!useless) {
    RETURN_IF_ERROR(names.status());
  }
  const std::string path = folder / kManifestName;
  if (useless || std::any_of(files.begin(), files.end(), [&names](const DoomedFile& file) {
        return names->contains(file.resolved.filename().string());
      })) {
    if (unlink(path.c_str()) != 0 && errno != ENOENT) {
      return Failed("cannot delete", path, errno);
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<std::string> DeleteCheckpointFiles(const std::string& job_directory,
                                               absl::Span<const std::string> paths) {
  const std::string root = CheckpointsFolder(job_directory);
  std::map<fs::path, std::vector<DoomedFile>> folders;
  for (const std::string& path : paths) {
    const auto resolved = ResolveBelow(root, path);
    if (resolved.ok()) {
      folders[fs::path(*resolved).parent_path()].push_back({path, *resolved});
    } else {
      SPDLOG_WARN("told to delete {}: left alone: {}", path, resolved.status().ToString());
    }
  }
  std::vector<std::string> done;
  for (const auto& [folder, files] : folders) {
    // First: a manifest must not name a shard that is gone. Shards' names are unique: one that
    // names none of these belongs to the step as it was done again, or to somebody else.
    if (absl::Status status = RemoveManifestOf(folder, files); !status.ok()) {
      SPDLOG_ERROR("the shards beside it stay for now: {}", status.ToString());
      continue;
    }
    for (const auto& [told, resolved] : files) {
      if (unlink(resolved.c_str()) == 0 || errno == ENOENT) {
        done.push_back(told);
      } else {
        SPDLOG_ERROR("{}", Failed("cannot delete", resolved, errno).ToString());
      }
    }
    if (ResolveBelow(root, folder).ok()) {
      // Fails when something is left, which is right.
      rmdir(folder.c_str());
    }
  }
  return done;
}

void SweepTemporaryFiles(const std::string& job_directory, int64_t generation,
                         absl::FunctionRef<bool()> still_ours) {
  std::error_code error;
  fs::recursive_directory_iterator entry(CheckpointsFolder(job_directory), error);
  for (; !error && entry != fs::recursive_directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (absl::EndsWith(name, ".tmp") && GenerationIn(name) < generation && still_ours()) {
      SPDLOG_INFO("removing {}, left by an earlier generation", entry->path().string());
      unlink(entry->path().c_str());
    }
  }
}

void SweepShards(const std::string& job_directory, const v1::RingRef& ring,
                 const v1::ExistingCheckpoints& existing) {
  std::set<std::pair<int64_t, int64_t>> kept;
  for (const v1::ExistingCheckpoints::Entry& entry : existing.entries()) {
    kept.insert({entry.step(), entry.generation()});
  }
  std::error_code error;
  fs::recursive_directory_iterator entry(CheckpointsFolder(job_directory), error);
  for (; !error && entry != fs::recursive_directory_iterator(); entry.increment(error)) {
    const fs::path& path = entry->path();
    const std::string name = path.filename().string();
    const std::string folder = path.parent_path().filename().string();
    const int64_t generation = GenerationIn(name);
    int64_t step = 0;
    // What users keep in folders of their own is theirs.
    const bool candidate = entry.depth() == 1 && absl::StartsWith(folder, "step-") &&
                           absl::SimpleAtoi(folder.substr(5), &step) &&
                           absl::StartsWith(name, "shard-") &&
                           absl::EndsWith(name, ".safetensors") && generation < ring.generation() &&
                           !kept.contains({step, generation});
    if (!candidate || !IsShardOf(path.string(), ring.training_job_uid()) || IsInManifest(path)) {
      continue;
    }
    SPDLOG_INFO("removing {}, which belongs to no checkpoint", path.string());
    unlink(path.c_str());
    // Fails when something is left, which is right.
    rmdir(path.parent_path().c_str());
  }
}

}  // namespace ringmaster::worker
