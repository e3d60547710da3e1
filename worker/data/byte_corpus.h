#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace ringmaster::worker {

// The files of a job, one after the other, as bytes. Immutable after Open; Read is thread-safe.
// Bytes are read from the files when asked for, not mapped: a file that shrinks or a disk that
// fails is then an error with a path, not a signal.
class ByteCorpus {
 public:
  // `patterns` are files, globs or directories (all regular files below, names starting with '.'
  // left out). The files are ordered by path and each counts once. NotFound naming the pattern that
  // matches nothing, DataLoss naming a path that cannot be read, InvalidArgument when there is no
  // byte at all. `cancelled` is asked between files and while directories are walked, of which
  // there may be many on a slow file system, but not within one glob; then Cancelled.
  static absl::StatusOr<ByteCorpus> Open(
      absl::Span<const std::string> patterns,
      absl::FunctionRef<bool()> cancelled = [] { return false; });

  int64_t size() const { return ends_.empty() ? 0 : ends_.back(); }
  const std::vector<std::string>& paths() const { return paths_; }
  // XXH3-64 over names (without directories), sizes, and 64 KiB at the head and tail of each file:
  // differs when ranks, or two runs, see different data.
  uint64_t fingerprint() const { return fingerprint_; }

  // Reads bytes [begin, begin + out.size()). OutOfRange beyond size(), DataLoss naming the path
  // when a file is gone or shorter than at Open.
  absl::Status Read(int64_t begin, absl::Span<uint8_t> out) const;

 private:
  // The next file.
  absl::Status Append(const std::string& path);

  std::vector<std::string> paths_;
  // ends_[i]: bytes of files 0..i together.
  std::vector<int64_t> ends_;
  uint64_t fingerprint_ = 0;
};

}  // namespace ringmaster::worker
