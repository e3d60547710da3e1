#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "coordinator/core/state.h"
#include "coordinator/core/violations.h"

// Queues: which jobs there may be, and what those that there are hold. Field and error rules are
// those of queue_service.proto.
namespace ringmaster::coordinator {

absl::StatusOr<v1::Queue> CreateQueue(State& state, const v1::CreateQueueRequest& request);
absl::StatusOr<v1::Queue> GetQueue(State& state, const v1::GetQueueRequest& request);
absl::StatusOr<v1::ListQueuesResponse> ListQueues(State& state,
                                                  const v1::ListQueuesRequest& request);
absl::StatusOr<v1::Queue> UpdateQueue(State& state, const v1::UpdateQueueRequest& request);
absl::StatusOr<google::protobuf::Empty> DeleteQueue(State& state,
                                                    const v1::DeleteQueueRequest& request);

// The queue with this id, for a new job of `project`. PermissionDenied: it takes no jobs of the
// project, or there is none; which of both is not for everybody to know.
absl::StatusOr<const ClusterQueue*> OpenQueue(const State& state, const std::string& id,
                                              const std::string& project);

// The queue of a job; as new, where the job has ended and its queue is gone.
v1::Queue QueueOf(const State& state, const Job& job);

// A priority that a job of the queue is to get.
void CheckCeiling(const v1::Queue& queue, int32_t priority, Violations* violations);

// `queue`, which was read before, as it is now; unchanged when it is gone.
void Refresh(const State& state, v1::Queue& queue);

// Lists the job where it waits, counts what it holds.
void CountInQueue(State& state, Job& job);

// Once all rows are read: queues that nobody has edited are as new.
void CompleteQueues(State& state);

}  // namespace ringmaster::coordinator
