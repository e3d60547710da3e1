#include "coordinator/core/quota.h"

#include <algorithm>
#include <limits>
#include <string>

#include "absl/strings/str_format.h"

namespace ringmaster::coordinator {
namespace {

// 0: none.
int QuotaOf(const ClusterQueue& queue) { return queue.record.queue().max_workers(); }

}  // namespace

int QuotaLeft(const ClusterQueue& queue) {
  if (QuotaOf(queue) == 0) return std::numeric_limits<int>::max();
  return std::max(0, QuotaOf(queue) - queue.held - queue.kept);
}

int QuotaOverdrawn(const ClusterQueue& queue) {
  const bool is_first = queue.kept == 0;
  return QuotaOf(queue) == 0 || !is_first ? 0 : std::max(0, queue.held - QuotaOf(queue));
}

bool CanBeWithinQuota(const ClusterQueue& queue, int workers) {
  return QuotaOf(queue) == 0 || workers <= QuotaOf(queue);
}

std::optional<v1::PendingReason> ExceedsQuota(const ClusterQueue& queue, int workers) {
  if (workers <= QuotaLeft(queue)) return std::nullopt;
  std::string message =
      absl::StrFormat("needs %d workers; of the %d that jobs of %s may hold together %d are held",
                      workers, QuotaOf(queue), queue.record.queue().name(), queue.held);
  if (!CanBeWithinQuota(queue, workers)) {
    message += ": it never can be placed with this quota";
  } else if (queue.kept > 0) {
    absl::StrAppendFormat(&message, ", and jobs before it need %d", queue.kept);
  }
  v1::PendingReason reason;
  reason.set_code(kWaitingForQuota);
  reason.set_message(std::move(message));
  return reason;
}

}  // namespace ringmaster::coordinator
