#include "coordinator/services/rotated_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace ringmaster::coordinator {
namespace {

constexpr int kOlderParts = 9;

// A part is begun only where this much is left beside it: others need the rest of a disk that
// fills up, even for the moment in which a file system finds that there is not enough.
constexpr int64_t kLeftToOthers = 16 << 20;

// Sets `bytes` aside for the file. False, and errno, where there is no room.
bool SetAside(int file, const struct stat& status, int64_t bytes) {
  const int64_t missing = bytes - int64_t{status.st_blocks} * 512;
  if (missing <= 0) return true;
  struct statvfs disk = {};
  if (fstatvfs(file, &disk) == 0 &&
      static_cast<int64_t>(disk.f_bavail * disk.f_frsize) - kLeftToOthers < missing) {
    errno = ENOSPC;
    return false;
  }
  // Not every file system can.
  if (fallocate(file, FALLOC_FL_KEEP_SIZE, 0, bytes) == 0) return true;
  if (errno != ENOSPC && errno != EDQUOT) return true;
  // Some keep what they have found so far.
  if (ftruncate(file, status.st_size) == 0) errno = ENOSPC;
  return false;
}

}  // namespace

absl::Status RotatedFile::Append(const std::string& line) {
  const auto size = static_cast<int64_t>(line.size());
  if (file_ < 0) RETURN_IF_ERROR(Open());
  if (bytes_ > 0 && bytes_ + size > part_bytes_) {
    Rotate();
    RETURN_IF_ERROR(Open());
  }
  const ssize_t written = write(file_, line.data(), line.size());
  if (written == size) {
    bytes_ += size;
    return absl::OkStatus();
  }
  const int error = written < 0 ? errno : ENOSPC;
  if (written > 0 && ftruncate(file_, bytes_) != 0) {
    // Open() ends the half line.
  }
  Close();
  return absl::ErrnoToStatus(error, path_);
}

absl::Status RotatedFile::Open() {
  file_ = open(path_.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  struct stat status = {};
  if (file_ < 0 || fstat(file_, &status) != 0 || !SetAside(file_, status, part_bytes_)) {
    const int error = errno;
    Close();
    return absl::ErrnoToStatus(error, path_);
  }
  bytes_ = status.st_size;
  // A crash may have left half a line, which would spoil the next one.
  char last = '\n';
  if (bytes_ > 0 && pread(file_, &last, 1, bytes_ - 1) == 1 && last != '\n' &&
      write(file_, "\n", 1) == 1) {
    ++bytes_;
  }
  return absl::OkStatus();
}

void RotatedFile::Close() {
  if (file_ >= 0) close(std::exchange(file_, -1));
}

void RotatedFile::Rotate() {
  Close();
  const auto part = [this](int number) { return absl::StrCat(path_, ".", number); };
  for (int i = kOlderParts; i > 1; --i) std::rename(part(i - 1).c_str(), part(i).c_str());
  std::rename(path_.c_str(), part(1).c_str());
}

}  // namespace ringmaster::coordinator
