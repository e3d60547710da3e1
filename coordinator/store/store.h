#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "coordinator/core/core.h"

namespace ringmaster::coordinator {

// What the event loop needs of durable storage: rows in, rows out, nothing about their meaning.
// Lives on one thread (the event loop's) once Load() has returned; only ReleaseReserve() may be
// called by others.
class Store {
 public:
  virtual ~Store() = default;

  // Everything that was ever committed. Errors: DataLoss (damaged), Internal (cannot be read).
  virtual absl::StatusOr<StoredState> Load() = 0;

  // Makes all of `rows` durable, or none. When it has returned OK, they survive a power loss.
  // Errors that leave the store usable, with nothing of `rows` in it: ResourceExhausted (no space),
  // Unavailable (another program holds the database; what this one writes beside it never fails
  // it, but is waited for). Every other error means that nothing more may
  // be promised: the process must end, and a new one reads what was committed.
  virtual absl::Status Commit(absl::Span<const RowChange> rows) = 0;

  // Some space is set aside at start. Releasing it lets a few megabytes of small rows be committed
  // on a full disk. Returns false when it was released already.
  virtual bool ReleaseReserve() = 0;

  // Whether it is set aside: not after a start on a full disk.
  virtual bool HasReserve() const = 0;

  // Sets the space aside again; false when there is no room beside it. True means that the disk has
  // room again.
  virtual bool RestoreReserve() = 0;

  // Size of the database on disk with its log.
  virtual int64_t SizeBytes() const = 0;
};

// Whether the process can go on after Commit() failed with this.
inline bool CanGoOn(const absl::Status& status) {
  return status.ok() || absl::IsResourceExhausted(status) || absl::IsUnavailable(status);
}

}  // namespace ringmaster::coordinator
