#include "coordinator/core/queues.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"
#include "coordinator/core/journal.h"
#include "coordinator/core/lifecycle.h"
#include "coordinator/core/names.h"
#include "coordinator/core/spec.h"
#include "google/protobuf/field_mask.pb.h"

namespace ringmaster::coordinator {
namespace {

using S = v1::TrainingJobStatus;
using google::protobuf::FieldDescriptor;
using google::protobuf::Reflection;

constexpr size_t kQueuesMax = 1024;
constexpr int kProjectsMax = 256;
constexpr int32_t kWeightMax = 1'000'000;

// What an administrator decides of a queue.
constexpr const char* kFields[] = {"max_priority", "weight", "max_workers", "projects"};

void FillIn(v1::Queue* queue) {
  if (!queue->has_max_priority()) queue->set_max_priority(kPriorityMax);
  if (queue->weight() == 0) queue->set_weight(1);
}

v1::Queue NewQueue(const std::string& id) {
  v1::Queue queue;
  queue.set_name(FormatQueueName(id));
  FillIn(&queue);
  return queue;
}

bool Takes(const v1::Queue& queue, const std::string& project) {
  const auto& projects = queue.projects();
  return projects.empty() ||
         std::find(projects.begin(), projects.end(), FormatProjectName(project)) != projects.end();
}

// With what its jobs do at present.
v1::Queue ToProtoQueue(const ClusterQueue& queue) {
  v1::Queue proto = queue.record.queue();
  proto.set_pending_jobs(static_cast<int32_t>(queue.waiting.size()));
  proto.set_admitted_jobs(queue.admitted);
  proto.set_held_workers(queue.held);
  return proto;
}

using Entry = std::pair<const std::string, ClusterQueue>;

absl::StatusOr<Entry*> Find(State& state, const char* field, const std::string& name) {
  ASSIGN_OR_RETURN(const std::string id, ParseQueueName(field, name));
  const auto found = state.queues.find(id);
  if (found == state.queues.end()) return NotFound("queue", name);
  return &*found;
}

std::vector<Job*> UnfinishedJobs(const State& state, const std::string& queue) {
  std::vector<Job*> jobs;
  for (const auto& [age, job] : state.unfinished) {
    if (job->spec().queue() == queue) jobs.push_back(job);
  }
  return jobs;
}

// Takes the fields from one to the other, and checks them.
absl::Status Apply(v1::Queue from, const std::vector<const FieldDescriptor*>& fields,
                   v1::Queue* to) {
  to->GetReflection()->SwapFields(to, &from, fields);
  FillIn(to);
  Violations violations("queue");
  CheckPriority("max_priority", to->max_priority(), &violations);
  if (to->weight() < 1 || to->weight() > kWeightMax) {
    violations.Field("weight",
                     absl::StrFormat("is %d; it must be 1 to %d", to->weight(), kWeightMax));
  }
  if (to->max_workers() < 0) {
    violations.Field("max_workers", absl::StrFormat("is %d; it must be at least 1, or 0 for any "
                                                    "number",
                                                    to->max_workers()));
  }
  if (to->projects_size() > kProjectsMax) {
    violations.Field("projects", absl::StrFormat("has %d entries; at most %d are possible",
                                                 to->projects_size(), kProjectsMax));
  }
  for (int i = 0; i < std::min(to->projects_size(), kProjectsMax); ++i) {
    const std::string where = absl::StrCat("projects[", i, "]");
    const bool named =
        !to->projects(i).empty() && ParseParent(where, to->projects(i), /*wildcard=*/false).ok();
    if (!named) {
      violations.Field(where, absl::StrCat("'", to->projects(i),
                                           "' is not a project's name; it looks like "
                                           "projects/default"));
    }
  }
  return violations.empty() ? absl::OkStatus() : violations.ToStatus();
}

absl::StatusOr<std::vector<const FieldDescriptor*>> FieldsOf(
    const google::protobuf::FieldMask& mask, const v1::Queue& queue) {
  std::vector<const FieldDescriptor*> fields;
  const auto all = [&](const auto& wanted) {
    for (const char* name : kFields) {
      const FieldDescriptor* field = v1::Queue::descriptor()->FindFieldByName(name);
      const bool named = std::find(fields.begin(), fields.end(), field) != fields.end();
      if (!named && wanted(*field)) fields.push_back(field);
    }
  };
  const Reflection& reflection = *queue.GetReflection();
  if (mask.paths().empty()) {
    all([&](const FieldDescriptor& field) {
      return field.is_repeated() ? reflection.FieldSize(queue, &field) > 0
                                 : reflection.HasField(queue, &field);
    });
  }
  for (const std::string& path : mask.paths()) {
    if (path != "*" &&
        std::find(std::begin(kFields), std::end(kFields), path) == std::end(kFields)) {
      return InvalidField("update_mask", absl::StrFormat("'%s' is not one of %s", path,
                                                         absl::StrJoin(kFields, ", ")));
    }
    all([&](const FieldDescriptor& field) { return path == "*" || field.name() == path; });
  }
  return fields;
}

void Edit(State& state, const std::string& id, v1::Queue edited) {
  ClusterQueue& queue = state.queues[id];
  *queue.record.mutable_queue() = std::move(edited);
  Put(state, Table::kQueues, id, queue.record);
  state.placement_due = state.explanation_due = true;
  const int32_t ceiling = queue.record.queue().max_priority();
  for (Job* job : UnfinishedJobs(state, id)) {
    if (job->spec().priority() <= ceiling) continue;
    const QueueKey place = job->queue_key();
    job->record.mutable_job()->mutable_spec()->set_priority(ceiling);
    SetEtag(*job);
    Store(state, *job);
    MoveInQueue(state, *job, place);
  }
}

}  // namespace

absl::StatusOr<v1::Queue> CreateQueue(State& state, const v1::CreateQueueRequest& request) {
  const std::string& id = request.queue_id();
  if (!IsQueueId(id)) {
    return InvalidField("queue_id", absl::StrCat("'", id, "' ", kQueueIdRule));
  }
  v1::Queue created = NewQueue(id);
  ASSIGN_OR_RETURN(const auto fields, FieldsOf({}, request.queue()));
  RETURN_IF_ERROR(Apply(request.queue(), fields, &created));
  if (state.queues.count(id) > 0) {
    return AlreadyExists("QUEUE_EXISTS", "queue", created.name(),
                         absl::StrCat(created.name(), " exists already"));
  }
  if (state.queues.size() >= kQueuesMax) {
    return ResourceExhausted(
        "TOO_MANY_QUEUES", kQueuesMax,
        absl::StrFormat("there are %d queues already; delete one first", kQueuesMax));
  }
  RETURN_IF_ERROR(Refusal(state));
  Edit(state, id, std::move(created));
  return ToProtoQueue(state.queues.at(id));
}

absl::StatusOr<v1::Queue> GetQueue(State& state, const v1::GetQueueRequest& request) {
  ASSIGN_OR_RETURN(const Entry* found, Find(state, "name", request.name()));
  return ToProtoQueue(found->second);
}

absl::StatusOr<v1::ListQueuesResponse> ListQueues(State& state,
                                                  const v1::ListQueuesRequest& request) {
  ASSIGN_OR_RETURN(const std::string project,
                   ParseParent("parent", request.parent(), /*wildcard=*/true));
  v1::ListQueuesResponse response;
  for (const auto& [id, queue] : state.queues) {
    if (project != "-" && !Takes(queue.record.queue(), project)) continue;
    v1::Queue* listed = response.add_queues();
    *listed = ToProtoQueue(queue);
    if (project == "-" || listed->projects().empty()) continue;
    listed->clear_projects();
    listed->add_projects(FormatProjectName(project));
  }
  return response;
}

absl::StatusOr<v1::Queue> UpdateQueue(State& state, const v1::UpdateQueueRequest& request) {
  ASSIGN_OR_RETURN(Entry * found, Find(state, "queue.name", request.queue().name()));
  ASSIGN_OR_RETURN(const auto fields, FieldsOf(request.update_mask(), request.queue()));
  v1::Queue updated = found->second.record.queue();
  RETURN_IF_ERROR(Apply(request.queue(), fields, &updated));
  RETURN_IF_ERROR(Refusal(state));
  Edit(state, found->first, std::move(updated));
  return ToProtoQueue(found->second);
}

absl::StatusOr<google::protobuf::Empty> DeleteQueue(State& state,
                                                    const v1::DeleteQueueRequest& request) {
  ASSIGN_OR_RETURN(const Entry* found, Find(state, "name", request.name()));
  const std::string id = found->first;
  if (id == kDefaultQueue) {
    return FailedPrecondition("DEFAULT_QUEUE", request.name(),
                              absl::StrCat(request.name(), " is always there"));
  }
  if (const size_t jobs = UnfinishedJobs(state, id).size(); jobs > 0) {
    return FailedPrecondition("QUEUE_IN_USE", request.name(),
                              absl::StrFormat("jobs of %s that have not ended: %d; cancel them, "
                                              "or let them end, first",
                                              request.name(), jobs));
  }
  RETURN_IF_ERROR(Refusal(state));
  state.queues.erase(id);
  Erase(state, Table::kQueues, id);
  return google::protobuf::Empty();
}

absl::StatusOr<const ClusterQueue*> OpenQueue(const State& state, const std::string& id,
                                              const std::string& project) {
  const auto found = state.queues.find(id);
  if (found != state.queues.end() && Takes(found->second.record.queue(), project)) {
    return &found->second;
  }
  return WithErrorInfo(
      absl::PermissionDeniedError(absl::StrFormat(
          "projects/%s may submit to no queue '%s': it is for other projects, or there is none",
          project, id)),
      "QUEUE_NOT_OPEN", {{"queue", FormatQueueName(id)}});
}

void Refresh(const State& state, v1::Queue& queue) {
  const absl::StatusOr<std::string> id = ParseQueueName("name", queue.name());
  if (!id.ok()) return;
  const auto found = state.queues.find(*id);
  if (found != state.queues.end()) queue = ToProtoQueue(found->second);
}

v1::Queue QueueOf(const State& state, const Job& job) {
  const auto found = state.queues.find(job.spec().queue());
  return found == state.queues.end() ? NewQueue(job.spec().queue()) : found->second.record.queue();
}

void CheckCeiling(const v1::Queue& queue, int32_t priority, Violations* violations) {
  // Beyond every queue's, it is told by CheckPriority.
  if (priority <= queue.max_priority() || priority > kPriorityMax) return;
  violations->Field("priority", absl::StrFormat("is %d; in %s it must be at most %d", priority,
                                                queue.name(), queue.max_priority()));
}

void CountInQueue(State& state, Job& job) {
  const JobState current = job.status().state();
  if (current == S::QUEUED) {
    state.queues[job.spec().queue()].waiting[job.queue_key()] = &job;
  } else if (const auto queue = state.queues.find(job.spec().queue());
             queue != state.queues.end()) {
    queue->second.waiting.erase(job.queue_key());
  }
  // A ring that looks for a member is to have all of them again.
  const bool holds = current != S::QUEUED && current != S::PAUSED && !IsTerminal(current);
  const int held = holds ? job.world_size() : 0;
  if (held == job.held) return;
  ClusterQueue& queue = state.queues[job.spec().queue()];
  queue.admitted += static_cast<int>(held > 0) - static_cast<int>(job.held > 0);
  queue.held += held - job.held;
  job.held = held;
}

void CompleteQueues(State& state) {
  state.queues.try_emplace(kDefaultQueue);
  for (auto& [id, queue] : state.queues) {
    if (queue.record.queue().name().empty()) *queue.record.mutable_queue() = NewQueue(id);
    FillIn(queue.record.mutable_queue());
  }
}

}  // namespace ringmaster::coordinator
