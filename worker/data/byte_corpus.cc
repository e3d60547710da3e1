#include "worker/data/byte_corpus.h"

#include <fcntl.h>
#include <glob.h>
#include <sys/stat.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace ringmaster::worker {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kFingerprintBytes = 64 << 10;

absl::Status Unreadable(const std::string& path, const std::string& why) {
  return absl::DataLossError(absl::StrCat("cannot read ", path, ": ", why));
}

// `file` is open at `path`.
absl::Status ReadAt(int file, const std::string& path, int64_t begin, absl::Span<uint8_t> out) {
  while (!out.empty()) {
    const ssize_t count = pread(file, out.data(), out.size(), begin);
    if (count < 0 && errno == EINTR) {
      continue;
    }
    if (count <= 0) {
      return Unreadable(path, count < 0 ? std::strerror(errno)
                                        : absl::StrCat("it ends at byte ", begin,
                                                       ", it was longer when the job started"));
    }
    begin += count;
    out.remove_prefix(count);
  }
  return absl::OkStatus();
}

absl::Status ReadFile(const std::string& path, int64_t begin, absl::Span<uint8_t> out) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) {
    return Unreadable(path, std::strerror(errno));
  }
  const absl::Cleanup close_file = [file] { close(file); };
  return ReadAt(file, path, begin, out);
}

bool Hidden(const fs::path& path) { return path.filename().string().starts_with('.'); }

absl::Status Check(absl::FunctionRef<bool()> cancelled) {
  return cancelled() ? absl::CancelledError("opening the corpus was cancelled") : absl::OkStatus();
}

absl::Status AppendDirectory(const std::string& root, absl::FunctionRef<bool()> cancelled,
                             std::vector<std::string>* paths) {
  std::error_code error;
  fs::recursive_directory_iterator it(root, error);
  for (; !error && it != fs::recursive_directory_iterator(); it.increment(error)) {
    RETURN_IF_ERROR(Check(cancelled));
    if (Hidden(it->path())) {
      it.disable_recursion_pending();
    } else if (it->is_regular_file(error)) {
      paths->push_back(it->path().string());
    }
    if (error) {
      // Such as a symbolic link that leads nowhere.
      return Unreadable(it->path().string(), error.message());
    }
  }
  return error ? Unreadable(root, error.message()) : absl::OkStatus();
}

absl::Status AppendMatches(const std::string& pattern, absl::FunctionRef<bool()> cancelled,
                           std::vector<std::string>* paths) {
  glob_t found = {};
  const absl::Cleanup free_found = [&found] { globfree(&found); };
  const size_t before = paths->size();
  if (glob(pattern.c_str(), GLOB_NOSORT, nullptr, &found) == 0) {
    for (size_t i = 0; i < found.gl_pathc; ++i) {
      RETURN_IF_ERROR(Check(cancelled));
      const std::string path = found.gl_pathv[i];
      std::error_code error;
      if (fs::is_directory(path, error)) {
        RETURN_IF_ERROR(AppendDirectory(path, cancelled, paths));
      } else {
        paths->push_back(path);
      }
    }
  }
  return paths->size() > before
             ? absl::OkStatus()
             : absl::NotFoundError(absl::StrCat("data.paths: no file matches ", pattern));
}

}  // namespace

absl::Status ByteCorpus::Append(const std::string& path) {
  // Neither waits at a FIFO nor follows what became of the path meanwhile.
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) {
    return Unreadable(path, std::strerror(errno));
  }
  const absl::Cleanup close_file = [file] { close(file); };
  struct stat info = {};
  if (fstat(file, &info) != 0) {
    return Unreadable(path, std::strerror(errno));
  }
  if (!S_ISREG(info.st_mode)) {
    return Unreadable(path, "it is no regular file");
  }
  const int64_t size = info.st_size;
  const int64_t head = std::min(size, kFingerprintBytes);
  std::vector<uint8_t> sample(2 * head);
  RETURN_IF_ERROR(ReadAt(file, path, 0, absl::MakeSpan(sample).first(head)));
  RETURN_IF_ERROR(ReadAt(file, path, size - head, absl::MakeSpan(sample).last(head)));
  const std::string name = absl::StrCat(fs::path(path).filename().string(), "\n", size, "\n");
  fingerprint_ = XXH3_64bits_withSeed(name.data(), name.size(), fingerprint_);
  fingerprint_ = XXH3_64bits_withSeed(sample.data(), sample.size(), fingerprint_);
  ends_.push_back(this->size() + size);
  return absl::OkStatus();
}

absl::StatusOr<ByteCorpus> ByteCorpus::Open(absl::Span<const std::string> patterns,
                                            absl::FunctionRef<bool()> cancelled) {
  ByteCorpus corpus;
  for (const std::string& pattern : patterns) {
    RETURN_IF_ERROR(AppendMatches(pattern, cancelled, &corpus.paths_));
  }
  std::sort(corpus.paths_.begin(), corpus.paths_.end());
  corpus.paths_.erase(std::unique(corpus.paths_.begin(), corpus.paths_.end()), corpus.paths_.end());
  for (const std::string& path : corpus.paths_) {
    RETURN_IF_ERROR(Check(cancelled));
    RETURN_IF_ERROR(corpus.Append(path));
  }
  if (corpus.size() == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("data.paths: all ", corpus.paths_.size(),
                     " files are empty; there is nothing to train on"));
  }
  return corpus;
}

absl::Status ByteCorpus::Read(int64_t begin, absl::Span<uint8_t> out) const {
  if (begin < 0 || begin + static_cast<int64_t>(out.size()) > size()) {
    return absl::OutOfRangeError(absl::StrCat("bytes ", begin, " to ", begin + out.size(),
                                              " of a corpus of ", size(), " bytes"));
  }
  auto file = std::upper_bound(ends_.begin(), ends_.end(), begin) - ends_.begin();
  while (!out.empty()) {
    const int64_t file_begin = file == 0 ? 0 : ends_[file - 1];
    const auto count = static_cast<size_t>(
        std::min<int64_t>(static_cast<int64_t>(out.size()), ends_[file] - begin));
    RETURN_IF_ERROR(ReadFile(paths_[file], begin - file_begin, out.first(count)));
    out.remove_prefix(count);
    begin += static_cast<int64_t>(count);
    ++file;
  }
  return absl::OkStatus();
}

}  // namespace ringmaster::worker
