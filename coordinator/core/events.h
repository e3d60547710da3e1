#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "google/protobuf/empty.pb.h"
#include "ringmaster/v1/checkpoint_service.pb.h"
#include "ringmaster/v1/cluster_service.pb.h"
#include "ringmaster/v1/job_service.pb.h"
#include "ringmaster/v1/queue_service.pb.h"
#include "ringmaster/v1/worker_service.pb.h"

// What goes into and comes out of the coordinator's core: plain values, no pointers.
namespace ringmaster::coordinator {

// ---- stored rows

enum class Table { kJobs, kRequests, kCheckpoints, kCordons, kQueues };

// `value` is a serialized message of proto/ringmaster/store/records.proto; nullopt deletes the row.
struct RowChange {
  Table table = Table::kJobs;
  std::string key;
  std::optional<std::string> value;
};

struct Row {
  Table table = Table::kJobs;
  std::string key;
  std::string value;
};

struct StoredState {
  std::vector<Row> rows;
};

// ---- events

using ApiMessage =
    std::variant<v1::CreateTrainingJobRequest, v1::GetTrainingJobRequest,
                 v1::ListTrainingJobsRequest, v1::CancelTrainingJobRequest,
                 v1::UpdateTrainingJobRequest, v1::PauseTrainingJobRequest,
                 v1::ResumeTrainingJobRequest, v1::DeleteTrainingJobRequest, v1::ListWorkersRequest,
                 v1::GetWorkerRequest, v1::CordonWorkerRequest, v1::DrainWorkerRequest,
                 v1::UncordonWorkerRequest, v1::ListCheckpointsRequest, v1::GetCheckpointRequest,
                 v1::ImportCheckpointRequest, v1::CreateQueueRequest, v1::GetQueueRequest,
                 v1::ListQueuesRequest, v1::UpdateQueueRequest, v1::DeleteQueueRequest>;

// A manifest.json that the shell has read because a request names it: ImportCheckpoint.directory,
// TrainingJobSpec.init_from or resume_from (a directory or the file itself). File sizes were
// checked.
struct ManifestFile {
  // `directory` and shard paths are absolute; `name` is whatever the file says.
  v1::Checkpoint checkpoint;
  // The spec of the job that wrote it, when the file has it.
  std::optional<v1::TrainingJobSpec> spec;
};

// A call of a user. `call` is the caller's own number and comes back in the Reply. `manifest` is
// set exactly when the request names a checkpoint path; its error (NotFound, InvalidArgument) is
// turned into one that names the field.
struct ApiRequest {
  uint64_t call = 0;
  ApiMessage message;
  std::optional<absl::StatusOr<ManifestFile>> manifest;
};

// `stream` numbers a WorkerService.Session call; never reused while the core lives.
struct WorkerReported {
  uint64_t stream = 0;
  v1::WorkerReport report;
};
// The stream ended, whoever ended it.
struct StreamClosed {
  uint64_t stream = 0;
};
// WorkerService.ReportFault; answered by a Reply.
struct WorkerExited {
  uint64_t call = 0;
  v1::ReportFaultRequest request;
};
// The process is about to end: nothing new is begun, rings go on without a coordinator.
struct DrainRequested {};

using Event = std::variant<ApiRequest, WorkerReported, StreamClosed, WorkerExited, DrainRequested>;

// ---- outputs

using ApiResponse =
    std::variant<v1::TrainingJob, v1::ListTrainingJobsResponse, google::protobuf::Empty,
                 v1::ListWorkersResponse, v1::Worker, v1::ListCheckpointsResponse, v1::Checkpoint,
                 v1::ReportFaultResponse, v1::Queue, v1::ListQueuesResponse>;

struct Reply {
  uint64_t call = 0;
  absl::StatusOr<ApiResponse> response;
};

// One message down a stream, or the stream's end (then `directive` may be unset). Per stream the
// order counts.
struct DirectiveTo {
  uint64_t stream = 0;
  std::optional<v1::Directive> directive;
  // End the stream with `close_status` once the directive is written.
  bool close = false;
  absl::Status close_status;
};

// For watchers; the job as it is now is Core::FindJob(name).
struct JobChange {
  std::string name;
  bool deleted = false;
  // Rises with every change of any job, also over restarts.
  int64_t resource_version = 0;
};

// A recovery that ended with its first new step (or with the job), for metrics.
struct EpisodeEnded {
  std::string training_job;
  v1::RecoveryEpisode episode;
};

// Commit `rows` first, in one transaction; then, and only then, release the rest. When the commit
// fails nothing of it may be released, and the core must be given Core::Reload.
struct Output {
  std::vector<RowChange> rows;
  std::vector<Reply> replies;
  std::vector<DirectiveTo> directives;
  std::vector<JobChange> changes;
  std::vector<EpisodeEnded> episodes;
  // From submission to placement, of the jobs placed for the first time.
  std::vector<absl::Duration> queue_waits;
};

}  // namespace ringmaster::coordinator
