#pragma once

#include <functional>
#include <string>
#include <vector>

#include "tests/coordinator/core/core_driver.h"

// What administrators ask for of queues, and users of jobs in them.
namespace ringmaster::coordinator {

using EditQueue = std::function<void(v1::Queue&)>;

inline absl::StatusOr<v1::Queue> CreateQueue(
    CoreDriver& d, const std::string& id, const EditQueue& edit = [](auto&) {}) {
  v1::CreateQueueRequest request;
  request.set_queue_id(id);
  edit(*request.mutable_queue());
  return d.Call<v1::Queue>(request);
}

// `fields`: the mask.
inline absl::StatusOr<v1::Queue> UpdateQueue(CoreDriver& d, const std::string& id,
                                             const EditQueue& edit,
                                             const std::vector<std::string>& fields = {}) {
  v1::UpdateQueueRequest request;
  edit(*request.mutable_queue());
  request.mutable_queue()->set_name("queues/" + id);
  for (const std::string& field : fields) request.mutable_update_mask()->add_paths(field);
  return d.Call<v1::Queue>(request);
}

inline absl::StatusOr<v1::Queue> GetQueue(CoreDriver& d, const std::string& id) {
  v1::GetQueueRequest request;
  request.set_name("queues/" + id);
  return d.Call<v1::Queue>(request);
}

inline absl::Status DeleteQueue(CoreDriver& d, const std::string& id) {
  v1::DeleteQueueRequest request;
  request.set_name("queues/" + id);
  return d.Call<google::protobuf::Empty>(request).status();
}

// A job of the queue, younger than those before.
inline absl::StatusOr<v1::TrainingJob> SubmitTo(CoreDriver& d, const std::string& queue,
                                                const std::string& id, int32_t priority = 0,
                                                int ring = 1,
                                                const std::string& parent = "projects/default") {
  v1::CreateTrainingJobRequest request = CoreDriver::CreateRequest(id, ring);
  request.set_parent(parent);
  request.mutable_training_job()->mutable_spec()->set_priority(priority);
  request.mutable_training_job()->mutable_spec()->set_queue(queue);
  d.Sleep(absl::Milliseconds(1));
  return d.Call<v1::TrainingJob>(request);
}

}  // namespace ringmaster::coordinator
