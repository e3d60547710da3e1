#include "coordinator/records/manifest.h"

#include <cstdint>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "coordinator/records/file_reader.h"
#include "google/protobuf/util/json_util.h"
#include "google/protobuf/util/time_util.h"
#include "nlohmann/json.hpp"

namespace ringmaster::coordinator {
namespace {

using nlohmann::json;

constexpr char kFormat[] = "ringmaster-checkpoint-1";
constexpr size_t kManifestBytesMax = 16 << 20;
// Far more than a spec has; what is nested deeper would overflow the stack of what reads it.
constexpr int kNestingMax = 32;

absl::Status Damaged(const std::string& file, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("the manifest ", file, " is damaged: ", what));
}

// Members of the wrong type read as if they were absent, and every required one is checked.
std::string Text(const json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : std::string();
}

int64_t Number(const json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_number_integer() ? it->get<int64_t>() : -1;
}

absl::StatusOr<v1::CheckpointShard> ReadShard(const std::string& file, const std::string& folder,
                                              const json& entry) {
  const std::string name = entry.is_object() ? Text(entry, "file") : "";
  if (name.empty() || absl::StrContains(name, '/'))
    return Damaged(file, "a shard has no file name");
  v1::CheckpointShard shard;
  shard.set_path(absl::StrCat(folder, "/", name));
  shard.set_bytes(Number(entry, "bytes"));
  shard.set_rank(static_cast<int32_t>(Number(entry, "rank")));
  shard.set_xxh3(Text(entry, "xxh3"));
  std::error_code error;
  const auto bytes = static_cast<int64_t>(std::filesystem::file_size(shard.path(), error));
  if (error) {
    return absl::NotFoundError(
        absl::StrCat("the shard ", shard.path(), " cannot be read: ", error.message()));
  }
  if (bytes != shard.bytes()) {
    return Damaged(file,
                   absl::StrCat(name, " has ", bytes, " bytes, the manifest says ", shard.bytes()));
  }
  return shard;
}

absl::StatusOr<json> ReadJson(const std::string& file) {
  FileReader reader(file);
  if (!reader.is_open()) {
    return absl::NotFoundError(absl::StrCat("there is no readable file ", file));
  }
  const absl::string_view text = reader.Read(0, kManifestBytesMax);
  bool too_deep = false;
  const auto bounded = [&](int depth, json::parse_event_t, json&) {
    too_deep = too_deep || depth > kNestingMax;
    return !too_deep;  // What is refused is thrown away.
  };
  json manifest = json::parse(text.begin(), text.end(), bounded, /*allow_exceptions=*/false);
  if (too_deep) return Damaged(file, absl::StrCat("it is nested deeper than ", kNestingMax));
  if (!manifest.is_object()) return Damaged(file, "it is not a JSON object");
  if (Text(manifest, "format") != kFormat) {
    return Damaged(file, absl::StrCat("its format is not ", kFormat));
  }
  return manifest;
}

}  // namespace

absl::StatusOr<ManifestFile> ReadManifest(const std::string& path) {
  if (!absl::StartsWith(path, "/")) {
    return absl::InvalidArgumentError(absl::StrCat("\"", path, "\" is not an absolute path"));
  }
  std::error_code error;
  const bool is_directory = std::filesystem::is_directory(path, error);
  const std::filesystem::path normal =
      std::filesystem::path(is_directory ? path + "/manifest.json" : path).lexically_normal();
  const std::string file = normal.string();
  const std::string folder = normal.parent_path().string();
  ASSIGN_OR_RETURN(const json manifest, ReadJson(file));

  ManifestFile result;
  v1::Checkpoint& checkpoint = result.checkpoint;
  checkpoint.set_directory(folder);
  checkpoint.set_step(Number(manifest, "step"));
  checkpoint.set_generation(Number(manifest, "generation"));
  if (checkpoint.step() < 0 || checkpoint.generation() < 0) {
    return Damaged(file, "step or generation is missing");
  }
  if (!google::protobuf::util::TimeUtil::FromString(Text(manifest, "create_time"),
                                                    checkpoint.mutable_create_time())) {
    return Damaged(file, "create_time is not a time");
  }
  const auto shards = manifest.find("shards");
  if (shards == manifest.end() || !shards->is_array() || shards->empty()) {
    return Damaged(file, "it has no shards");
  }
  int64_t bytes = 0;
  for (const json& entry : *shards) {
    ASSIGN_OR_RETURN(*checkpoint.add_shards(), ReadShard(file, folder, entry));
    bytes += checkpoint.shards().rbegin()->bytes();
  }
  checkpoint.set_bytes(bytes);
  if (const auto spec = manifest.find("spec"); spec != manifest.end()) {
    google::protobuf::util::JsonParseOptions options;
    options.ignore_unknown_fields = true;
    v1::TrainingJobSpec parsed;
    if (!google::protobuf::util::JsonStringToMessage(spec->dump(), &parsed, options).ok()) {
      return Damaged(file, "its spec does not parse");
    }
    result.spec = std::move(parsed);
  }
  return result;
}

}  // namespace ringmaster::coordinator
