#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ringmaster::coordinator {

// The coordinator's own directory, on a local file system: the database, a lock and a reserve of
// space.
//   lock            held by the running coordinator; holds its process id
//   coordinator.db  SQLite, with -wal and -shm beside it
//   reserve         zeros; deleted when the disk is full, so that what must be stored still can be
//   address         where the running coordinator listens, "host:port"
//   admin-token     the first administrator's, where tokens are asked for; mode 0600
//   audit*.jsonl    who changed what, and who was refused, with older parts audit.jsonl.1 ...
// Thread-compatible.
class DataDirectory {
 public:
  // Creates the directory (mode 0700) where it is missing and takes the lock. Errors:
  // FailedPrecondition when another coordinator holds it, Internal when the directory cannot be
  // made or written.
  static absl::StatusOr<std::unique_ptr<DataDirectory>> Open(const std::string& path);

  // Gives the lock back.
  ~DataDirectory();
  DataDirectory(const DataDirectory&) = delete;
  DataDirectory& operator=(const DataDirectory&) = delete;

  std::string File(const std::string& name) const { return path_ + "/" + name; }

  // Makes the names in it durable: those of files written with WriteFileAtomically(), say.
  absl::Status Sync() const;

  // Sets `bytes` of the disk aside, or keeps what is set aside already, provided that there is room
  // for `spare` more. ResourceExhausted when there is not.
  absl::Status Reserve(int64_t bytes, int64_t spare);

  bool HasReserve() const;

  // Gives the reserve back to the file system; false when there was none. Any thread may call it.
  bool ReleaseReserve();

 private:
  DataDirectory(std::string path, int lock) : path_(std::move(path)), lock_(lock) {}

  const std::string path_;
  const int lock_;
};

// Replaces `path` with `text` in one step: a reader sees the old text or all of the new, after
// a power loss too. `mode`: who may read it, less the process's umask.
absl::Status WriteFileAtomically(const std::string& path, const std::string& text,
                                 mode_t mode = 0644);

}  // namespace ringmaster::coordinator
