#include "coordinator/core/jobs.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "coordinator/core/admission.h"
#include "coordinator/core/checkpoints.h"
#include "coordinator/core/journal.h"
#include "coordinator/core/lifecycle.h"
#include "coordinator/core/names.h"
#include "coordinator/core/pages.h"
#include "coordinator/core/pause.h"
#include "coordinator/core/queues.h"
#include "coordinator/core/recovery.h"
#include "coordinator/core/spec.h"
#include "coordinator/core/times.h"
#include "coordinator/core/update.h"
#include "proto/rpc_status.h"

namespace ringmaster::coordinator {
namespace {

using S = v1::TrainingJobStatus;

// `field` is where the request names it.
absl::StatusOr<Job*> Find(State& state, const std::string& name, const char* field = "name") {
  RETURN_IF_ERROR(ParseJobName(field, name).status());
  Job* job = state.FindJob(name);
  if (job == nullptr) return NotFound("training job", name);
  return job;
}

absl::Status CheckEtag(const Job& job, const std::string& etag) {
  if (etag.empty() || etag == job.record.job().etag()) return absl::OkStatus();
  return Aborted("ETAG_MISMATCH",
                 absl::StrCat(job.name(), " has changed since etag ", etag, "; read it again"),
                 {{"current_etag", job.record.job().etag()}});
}

// The record of an earlier request with this id; null when the id is new. An id that was used for
// something else is an error.
absl::StatusOr<const store::RequestRecord*> EarlierRequest(
    const State& state, const std::string& request_id, const google::protobuf::Message& request) {
  const auto found = state.requests.find(request_id);
  if (request_id.empty() || found == state.requests.end()) return nullptr;
  if (found->second.request_hash() != RequestHash(request)) {
    return AlreadyExists("REQUEST_ID_REUSED", "request", request_id,
                         absl::StrCat("request_id ", request_id, " was used for another ",
                                      found->second.method(), " about ", found->second.resource()));
  }
  return &found->second;
}

// The job that an earlier request was about; another one may have got its name since.
absl::StatusOr<Job*> JobOf(State& state, const store::RequestRecord& earlier) {
  if (earlier.uid().empty()) return Find(state, earlier.resource());
  Job* job = state.FindJobByUid(earlier.uid());
  if (job == nullptr) return NotFound("training job", earlier.resource());
  return job;
}

void RememberRequest(State& state, const std::string& request_id, const char* method,
                     const google::protobuf::Message& request, const Job& job) {
  if (request_id.empty()) return;
  store::RequestRecord record;
  record.set_method(method);
  record.set_request_hash(RequestHash(request));
  record.set_resource(job.name());
  record.set_uid(job.uid());
  *record.mutable_create_time() = ToProto(state.now);
  Put(state, Table::kRequests, request_id, record);
  state.requests[request_id] = std::move(record);
  state.timers.Set(TimerKind::kForgetRequest, request_id, state.now + state.options.request_id_ttl);
}

// Of a change that also makes rows when the store is full: the loop tries to make room for them.
absl::Status RefusalOfChange(const State& state) {
  return state.draining ? Refusal(state) : absl::OkStatus();
}

absl::Status CheckGoesOn(const Job& job) {
  const bool ends = job.status().state() == S::CANCELLING;
  if (!ends && !IsTerminal(job.status().state())) return absl::OkStatus();
  return FailedPrecondition(
      "JOB_ENDED", job.name(),
      absl::StrCat(job.name(), ends ? " is being cancelled" : " has ended already"));
}

// Whether a new job takes its turn among those that wait. A higher one does, one of another queue
// than theirs, as its share may be smaller (but where nothing is kept for them, that gains it
// nothing), and one that is older, as the clock was set back; of one instant any may be first, so
// that it does not.
bool GoesBeforeOthers(const State& state, const Job& job) {
  if (job.queue_key().first <= state.last_lacking.first) return true;
  const size_t of_its_queue = state.queues.at(job.spec().queue()).waiting.size();
  const bool takes_turns = state.keeps_idle || state.options.preemption;
  if (takes_turns && of_its_queue < state.queue.size()) return true;
  const auto place = [](const Job& one) {
    return std::pair(-one.spec().priority(), one.age_key().first);
  };
  return place(*state.queue.rbegin()->second) > place(job);
}

// The job that a request is about.
struct Target {
  const std::string& name;
  const std::string& etag;
  const char* field = "name";
};

// A request that changes a job. `change` says whether it is remembered by its id.
template <typename Request, typename Change>
absl::StatusOr<v1::TrainingJob> ChangeJob(State& state, const char* method, const Request& request,
                                          const Target& target, const Change& change) {
  if (!request.request_id().empty() && !IsUuid(request.request_id())) {
    return InvalidField("request_id", absl::StrCat("'", request.request_id(), "' is not a UUID"));
  }
  ASSIGN_OR_RETURN(Job * job, Find(state, target.name, target.field));
  ASSIGN_OR_RETURN(const auto* earlier, EarlierRequest(state, request.request_id(), request));
  if (earlier != nullptr) {
    ASSIGN_OR_RETURN(job, JobOf(state, *earlier));
    return job->record.job();
  }
  RETURN_IF_ERROR(CheckEtag(*job, target.etag));
  ASSIGN_OR_RETURN(const bool remember, change(*job));
  if (remember) RememberRequest(state, request.request_id(), method, request, *job);
  return job->record.job();
}

}  // namespace

absl::StatusOr<v1::TrainingJob> CreateJob(
    State& state, const v1::CreateTrainingJobRequest& request,
    const std::optional<absl::StatusOr<ManifestFile>>& manifest) {
  ASSIGN_OR_RETURN(const std::string project, ParseParent("parent", request.parent(), false));
  if (!request.validate_only()) {
    ASSIGN_OR_RETURN(const auto* earlier, EarlierRequest(state, request.request_id(), request));
    if (earlier != nullptr) {
      ++state.counters.submissions_deduplicated;
      ASSIGN_OR_RETURN(const Job* job, JobOf(state, *earlier));
      return job->record.job();
    }
    RETURN_IF_ERROR(Refusal(state));
  }
  std::string id = request.training_job_id();
  while (id.empty() || (request.training_job_id().empty() &&
                        state.FindJob(FormatJobName(project, id)) != nullptr)) {
    id = state.ids.JobId();
  }
  ASSIGN_OR_RETURN(store::JobRecord record,
                   Admit(state, request, project, id, state.ids.Uuid(), manifest));
  const std::string name = record.job().name();
  if (state.FindJob(name) != nullptr) {
    return AlreadyExists("TRAINING_JOB_EXISTS", "training job", name,
                         absl::StrCat(name, " exists already"));
  }
  const int64_t limit = state.options.unfinished_jobs_max;
  if (static_cast<int64_t>(state.unfinished.size()) >= limit) {
    return ResourceExhausted(
        "TOO_MANY_JOBS", limit,
        absl::StrFormat("%d jobs are unfinished already; wait until some end", limit));
  }
  *record.mutable_job()->mutable_create_time() = ToProto(state.now);
  *record.mutable_job()->mutable_update_time() = ToProto(state.now);
  if (request.validate_only()) return record.job();

  Job& job = AddJob(state, std::move(record));
  Store(state, job);
  RememberRequest(state, request.request_id(), "CreateTrainingJob", request, job);
  ++state.counters.jobs_submitted;
  if (GoesBeforeOthers(state, job)) state.placement_due = true;
  state.new_jobs.push_back(name);
  return job.record.job();
}

absl::StatusOr<v1::TrainingJob> GetJob(State& state, const v1::GetTrainingJobRequest& request) {
  ASSIGN_OR_RETURN(const Job* job, Find(state, request.name()));
  return job->record.job();
}

absl::StatusOr<v1::TrainingJob> CancelJob(State& state,
                                          const v1::CancelTrainingJobRequest& request) {
  return ChangeJob(state, "CancelTrainingJob", request, {request.name(), request.etag()},
                   [&](Job& job) -> absl::StatusOr<bool> {
                     const JobState current = job.status().state();
                     if (IsTerminal(current) || current == S::CANCELLING) return false;
                     RETURN_IF_ERROR(RefusalOfChange(state));
                     if (current == S::QUEUED || current == S::PAUSED) {
                       SetState(state, job, S::CANCELLING, "a user asked for it");
                       FinishCancel(state, job);
                     } else {
                       BeginCancel(state, job);
                     }
                     return true;
                   });
}

absl::StatusOr<v1::TrainingJob> UpdateJob(State& state,
                                          const v1::UpdateTrainingJobRequest& request) {
  const v1::TrainingJob& update = request.training_job();
  const auto change = [&](Job& job) -> absl::StatusOr<bool> {
    RETURN_IF_ERROR(Refusal(state));
    const QueueKey place = job.queue_key();
    ASSIGN_OR_RETURN(
        const bool changed,
        ApplyUpdate(update, request.update_mask(), QueueOf(state, job), job.record.mutable_job()));
    // What is asked for again is nothing that others would have to read anew.
    if (!changed) return false;
    SetEtag(job);
    Store(state, job);
    MoveInQueue(state, job, place);
    return true;
  };
  return ChangeJob(state, "UpdateTrainingJob", request,
                   {update.name(), update.etag(), "training_job.name"}, change);
}

absl::StatusOr<v1::TrainingJob> PauseJob(State& state, const v1::PauseTrainingJobRequest& request) {
  return ChangeJob(state, "PauseTrainingJob", request, {request.name(), request.etag()},
                   [&](Job& job) -> absl::StatusOr<bool> {
                     RETURN_IF_ERROR(CheckGoesOn(job));
                     // A ring that has finished would wait until there is room for its checkpoint.
                     RETURN_IF_ERROR(Refusal(state));
                     if (!job.status().pause_requested()) RequestPause(state, job);
                     return true;
                   });
}

absl::StatusOr<v1::TrainingJob> ResumeJob(State& state,
                                          const v1::ResumeTrainingJobRequest& request) {
  return ChangeJob(state, "ResumeTrainingJob", request, {request.name(), request.etag()},
                   [&](Job& job) -> absl::StatusOr<bool> {
                     RETURN_IF_ERROR(CheckGoesOn(job));
                     RETURN_IF_ERROR(RefusalOfChange(state));
                     if (job.status().pause_requested()) RequestResume(state, job);
                     return true;
                   });
}

absl::StatusOr<google::protobuf::Empty> DeleteJob(State& state,
                                                  const v1::DeleteTrainingJobRequest& request) {
  ASSIGN_OR_RETURN(Job * job, Find(state, request.name()));
  RETURN_IF_ERROR(CheckEtag(*job, request.etag()));
  if (!IsTerminal(job->status().state())) {
    return FailedPrecondition("JOB_NOT_ENDED", job->name(),
                              absl::StrCat(job->name(), " has not ended; cancel it first"));
  }
  RETURN_IF_ERROR(Refusal(state));
  EraseCheckpoints(state, *job);
  RemoveJob(state, *job);
  return google::protobuf::Empty();
}

}  // namespace ringmaster::coordinator
