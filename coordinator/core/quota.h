#pragma once

#include <optional>

#include "coordinator/core/state.h"

// How many workers the jobs of a queue may hold. Jobs of one queue keep their order also where the
// quota is what they wait for: what a large one needs is not given to small ones behind it, which
// would starve it.
namespace ringmaster::coordinator {

// Why a job waits: its queue would hold more workers than it may.
inline constexpr char kWaitingForQuota[] = "WAITING_FOR_QUOTA";

// Workers that one more job of the queue may hold, beside those that are held and kept.
int QuotaLeft(const ClusterQueue& queue);

// Nothing when a job with so many `workers` is within the quota.
std::optional<v1::PendingReason> ExceedsQuota(const ClusterQueue& queue, int workers);

// What is held beyond a quota that was lowered: the first one that waits gets nothing before that
// is free, too. 0 once there is one before.
int QuotaOverdrawn(const ClusterQueue& queue);

// Whether it ever can be, as the quota is at present.
bool CanBeWithinQuota(const ClusterQueue& queue, int workers);

}  // namespace ringmaster::coordinator
