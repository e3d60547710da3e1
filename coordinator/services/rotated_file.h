#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace ringmaster::coordinator {

// A file of lines. When it is full it becomes "{path}.1", that one "{path}.2" and so on; nine older
// parts are kept. The room of a part is set aside when it is begun: lines take nothing of what
// others need on a disk that is full. Thread-compatible.
class RotatedFile {
 public:
  RotatedFile(std::string path, int64_t part_bytes)
      : path_(std::move(path)), part_bytes_(part_bytes) {}
  ~RotatedFile() { Close(); }
  RotatedFile(const RotatedFile&) = delete;
  RotatedFile& operator=(const RotatedFile&) = delete;

  // All of the line, or nothing; it is with the operating system then. `line` ends with '\n'.
  absl::Status Append(const std::string& line);

 private:
  absl::Status Open();
  void Close();
  void Rotate();

  const std::string path_;
  const int64_t part_bytes_;
  // -1 until it could be opened.
  int file_ = -1;
  int64_t bytes_ = 0;
};

}  // namespace ringmaster::coordinator
