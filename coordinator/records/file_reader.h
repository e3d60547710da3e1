#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace ringmaster::coordinator {

// A file that another process may be appending to. Who may write to the shared directory chooses
// what lies there: only regular files are opened, since a FIFO would hold the thread for ever, and
// no symbolic link, since it could lead to a file that only the coordinator may read.
// Thread-compatible; movable.
class FileReader {
 public:
  FileReader() = default;
  // A file that cannot be opened reads as an empty one; is_open() tells.
  explicit FileReader(const std::string& path);
  ~FileReader();
  FileReader(FileReader&& other) noexcept;
  FileReader& operator=(FileReader&& other) noexcept;

  bool is_open() const { return descriptor_ >= 0; }
  ino_t inode() const { return inode_; }
  int64_t Size() const;

  // Up to `bytes` bytes from `offset` on; fewer at the end of the file, and on an error. Valid
  // until the next call.
  absl::string_view Read(int64_t offset, size_t bytes);

 private:
  int descriptor_ = -1;
  ino_t inode_ = 0;
  std::string block_;
};

}  // namespace ringmaster::coordinator
