#include "worker/checkpoint/shard_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "nlohmann/json.hpp"
#include "worker/checkpoint/checkpoint_files.h"
#include "worker/checkpoint/job_directory.h"

#define XXH_INLINE_ALL
#include "xxhash.h"

namespace ringmaster::worker {
namespace {

constexpr size_t kReadBytes = size_t{1} << 20;

absl::Status Failed(const char* what, const std::string& path, int error) {
  return absl::ErrnoToStatus(error, absl::StrCat(what, " ", path));
}

std::string Hex(uint64_t hash) { return absl::StrFormat("%016x", hash); }

std::map<std::string, std::string> Metadata(const ShardIdentity& identity,
                                            absl::Span<const HostTensor> tensors) {
  nlohmann::json hashes = nlohmann::json::object();
  for (const HostTensor& tensor : tensors) {
    hashes[tensor.spec.name] = Hex(XXH3_64bits(tensor.bytes.data(), tensor.bytes.size()));
  }
  return {{"format", kCheckpointFormat},
          {"training_job_uid", identity.ring.training_job_uid()},
          {"step", absl::StrCat(identity.step)},
          {"generation", absl::StrCat(identity.ring.generation())},
          {"rank", absl::StrCat(identity.ring.rank())},
          {"world_size", absl::StrCat(identity.world_size)},
          {"xxh3", hashes.dump()}};
}

absl::StatusOr<safetensors::Writer::Result> WriteContent(const std::string& path,
                                                         const safetensors::Header& header,
                                                         absl::Span<const HostTensor> tensors) {
  std::map<std::string, absl::Span<const char>> bytes;
  for (const HostTensor& tensor : tensors) {
    bytes[tensor.spec.name] = tensor.bytes;
  }
  const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0644);
  if (file < 0) {
    return Failed("cannot create", path, errno);
  }
  const absl::Cleanup closer = [file] { close(file); };
  safetensors::Writer writer(file, header);
  for (const safetensors::Tensor& tensor : writer.header().tensors) {
    RETURN_IF_ERROR(writer.Append(bytes[tensor.name]));
  }
  ASSIGN_OR_RETURN(auto result, writer.Finish());
  if (fsync(file) != 0) {
    return Failed("cannot sync", path, errno);
  }
  return result;
}

// `temporary` becomes `final_path` unless that exists.
absl::Status LinkWithoutReplacing(const std::string& temporary, const std::string& final_path) {
  int done = link(temporary.c_str(), final_path.c_str());
  if (done != 0 && (errno == EPERM || errno == ENOTSUP)) {
    // File systems without hard links.
    done = renameat2(AT_FDCWD, temporary.c_str(), AT_FDCWD, final_path.c_str(), RENAME_NOREPLACE);
  }
  return done == 0 ? absl::OkStatus() : Failed("cannot link", final_path, errno);
}

}  // namespace

absl::StatusOr<v1::CheckpointShard> WriteShard(const ShardIdentity& identity,
                                               absl::Span<const HostTensor> tensors) {
  std::vector<safetensors::TensorSpec> specs;
  for (const HostTensor& tensor : tensors) {
    specs.push_back(tensor.spec);
  }
  ASSIGN_OR_RETURN(const safetensors::Header header,
                   safetensors::LayOut(std::move(specs), Metadata(identity, tensors)));
  const std::string directory = CheckpointDirectory(identity.job_directory, identity.step);
  RETURN_IF_ERROR(
      ResolveBelow(CheckpointsFolder(identity.job_directory), directory + "/name").status());
  const std::string path =
      absl::StrCat(directory, "/",
                   ShardFileName(identity.ring.rank(), identity.world_size,
                                 identity.ring.generation(), identity.incarnation));
  const std::string temporary = path + ".tmp";
  const absl::Cleanup remover = [&temporary] { unlink(temporary.c_str()); };
  absl::StatusOr<safetensors::Writer::Result> written;
  // Once more when the folder is gone again: whoever deletes the last file of an earlier attempt at
  // this step deletes the empty folder too.
  for (int attempt = 0; attempt < 2; ++attempt) {
    RETURN_IF_ERROR(MakeDirectories(directory));
    written = WriteContent(temporary, header, tensors);
    if (!absl::IsNotFound(written.status())) {
      break;
    }
  }
  if (!written.ok()) {
    return absl::Status(written.status().code(),
                        absl::StrCat("checkpoint shard ", path, " of ", header.file_bytes,
                                     " bytes: ", written.status().message()));
  }
  RETURN_IF_ERROR(LinkWithoutReplacing(temporary, path));
  if (absl::Status status = SyncDirectory(directory); !status.ok()) {
    // Nobody will hear of it, so nobody would ever delete it.
    unlink(path.c_str());
    return status;
  }
  v1::CheckpointShard shard;
  shard.set_path(path);
  shard.set_bytes(static_cast<int64_t>(written->file_bytes));
  shard.set_xxh3(Hex(written->xxh3));
  shard.set_rank(identity.ring.rank());
  return shard;
}

absl::Status VerifyShard(const v1::CheckpointShard& shard, absl::FunctionRef<bool()> cancelled) {
  const std::string& path = shard.path();
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) {
    return Failed("checkpoint shard cannot be opened:", path, errno);
  }
  const absl::Cleanup closer = [file] { close(file); };
  struct stat status {};
  if (fstat(file, &status) != 0) {
    return Failed("checkpoint shard cannot be read:", path, errno);
  }
  if (status.st_size != shard.bytes()) {
    return absl::DataLossError(absl::StrCat("checkpoint shard ", path, " has ", status.st_size,
                                            " bytes, its manifest says ", shard.bytes()));
  }
  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> hash(XXH3_createState(),
                                                                             XXH3_freeState);
  XXH3_64bits_reset(hash.get());
  std::vector<char> buffer(kReadBytes);
  while (true) {
    if (cancelled()) {
      return absl::CancelledError(absl::StrCat("reading ", path, " was cancelled"));
    }
    const ssize_t got = read(file, buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) {
      continue;
    }
    if (got < 0) {
      return Failed("checkpoint shard cannot be read:", path, errno);
    }
    if (got == 0) {
      break;
    }
    XXH3_64bits_update(hash.get(), buffer.data(), static_cast<size_t>(got));
  }
  const std::string found = Hex(XXH3_64bits_digest(hash.get()));
  if (found != shard.xxh3()) {
    return absl::DataLossError(absl::StrCat("checkpoint shard ", path, " is damaged: XXH3-64 is ",
                                            found, ", its manifest says ", shard.xxh3()));
  }
  return absl::OkStatus();
}

}  // namespace ringmaster::worker
