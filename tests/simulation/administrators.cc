#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/simulation/queues.h"
#include "tests/simulation/simulation.h"

// What administrators do to queues, and what users are told of it.
namespace ringmaster::simulation {
namespace {

constexpr char kOther[] = "research";

}  // namespace

template <typename Request>
void Simulation::Administer(const Request& request, bool insists,
                            std::function<void(const absl::Status&)> done) {
  if (!insists && !faults_) return;
  const auto retry = [=, this] {
    scheduler_.After(scheduler_.Ms(200, 1000), [=, this] { Administer(request, insists, done); });
  };
  if (core_ == nullptr) return retry();
  const uint64_t call = ++last_call_;
  calls_[call] = [retry, done](const coordinator::Reply* reply) {
    if (reply == nullptr || reply->response.status().code() == absl::StatusCode::kUnavailable) {
      return retry();
    }
    if (done) done(reply->response.status());
  };
  Handle(coordinator::ApiRequest{call, request, std::nullopt});
}

void Simulation::PlanAdministrators() {
  if (!scheduler_.Chance(0.6)) return;
  const auto quota = static_cast<int32_t>(scheduler_.Chance(0.5) ? scheduler_.Int(1, 4) : 0);
  scheduler_.After(scheduler_.Ms(0, 3000), [this, quota] { MakeQueue(quota); });
  for (Submission& submission : submissions_) {
    if (scheduler_.Chance(0.6)) {
      submission.request.mutable_training_job()->mutable_spec()->set_queue(kOther);
    }
  }
  for (int64_t edits = scheduler_.Int(0, 8); edits > 0; --edits) {
    scheduler_.After(scheduler_.Ms(1000, 58000), [this] { EditQueue(); });
  }
  if (scheduler_.Chance(0.2)) {
    scheduler_.After(scheduler_.Ms(5000, 58000), [this] { DeleteQueue(); });
  }
}

void Simulation::MakeQueue(int32_t max_workers) {
  v1::CreateQueueRequest request;
  request.set_queue_id(kOther);
  request.mutable_queue()->set_max_workers(max_workers);
  Administer(request, /*insists=*/true);
}

void Simulation::EditQueue() {
  ++injected_["queue edits"];
  v1::UpdateQueueRequest request;
  v1::Queue* queue = request.mutable_queue();
  queue->set_name(absl::StrCat("queues/", scheduler_.Chance(0.6) ? kOther : "default"));
  switch (scheduler_.Int(0, 4)) {
    case 0:
      queue->set_max_priority(static_cast<int32_t>(scheduler_.Int(-2, 3)));
      break;
    case 1:
      queue->set_weight(static_cast<int32_t>(scheduler_.Int(1, 4)));
      break;
    default:
      request.mutable_update_mask()->add_paths("max_workers");
      queue->set_max_workers(static_cast<int32_t>(scheduler_.Int(0, 6)));
  }
  Administer(request, /*insists=*/false);
}

// And makes it anew.
void Simulation::DeleteQueue() {
  v1::DeleteQueueRequest request;
  request.set_name(absl::StrCat("queues/", kOther));
  Administer(request, /*insists=*/false, [this](const absl::Status& status) {
    if (status.ok()) ++injected_["deleted queues"];
    const bool used = status.code() == absl::StatusCode::kFailedPrecondition;
    const bool gone = status.code() == absl::StatusCode::kNotFound;
    if (!status.ok() && !used && !gone) {
      invariants_.Violated(absl::StrCat("delete a queue: ", status.ToString()));
    }
    // Perhaps after all quotas were lifted.
    MakeQueue(0);
  });
}

void Simulation::LiftQuotas() {
  for (const char* id : {"default", kOther}) {
    v1::UpdateQueueRequest request;
    request.mutable_update_mask()->add_paths("max_workers");
    request.mutable_queue()->set_name(absl::StrCat("queues/", id));
    Administer(request, /*insists=*/true);
  }
}

bool Simulation::IsRefusedByQueue(const v1::TrainingJobSpec& spec,
                                  const absl::Status& status) const {
  const std::vector<Queues> recent = store_.RecentQueues();
  return std::any_of(recent.begin(), recent.end(), [&](const Queues& queues) {
    const auto queue = queues.find(spec.queue().empty() ? "default" : spec.queue());
    if (queue == queues.end()) return status.code() == absl::StatusCode::kPermissionDenied;
    return status.code() == absl::StatusCode::kInvalidArgument &&
           spec.priority() > queue->second.max_priority();
  });
}

}  // namespace ringmaster::simulation
