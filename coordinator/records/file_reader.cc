#include "coordinator/records/file_reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

namespace ringmaster::coordinator {

FileReader::FileReader(const std::string& path)
    : descriptor_(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY | O_NOFOLLOW)) {
  struct stat status = {};
  if (descriptor_ < 0) return;
  if (fstat(descriptor_, &status) == 0 && S_ISREG(status.st_mode)) {
    inode_ = status.st_ino;
  } else {
    close(std::exchange(descriptor_, -1));
  }
}

FileReader::~FileReader() {
  if (descriptor_ >= 0) close(descriptor_);
}

FileReader::FileReader(FileReader&& other) noexcept { *this = std::move(other); }

FileReader& FileReader::operator=(FileReader&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  std::swap(inode_, other.inode_);
  std::swap(block_, other.block_);
  return *this;
}

int64_t FileReader::Size() const {
  struct stat status = {};
  return descriptor_ >= 0 && fstat(descriptor_, &status) == 0 ? status.st_size : 0;
}

absl::string_view FileReader::Read(int64_t offset, size_t bytes) {
  if (descriptor_ < 0) return {};
  block_.resize(bytes);
  size_t done = 0;
  while (done < bytes) {
    const ssize_t count =
        pread(descriptor_, block_.data() + done, bytes - done, offset + static_cast<int64_t>(done));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) break;
    done += static_cast<size_t>(count);
  }
  return absl::string_view(block_).substr(0, done);
}

}  // namespace ringmaster::coordinator
