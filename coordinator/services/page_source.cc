#include "coordinator/services/page_source.h"

#include <chrono>
#include <future>
#include <memory>
#include <optional>
#include <utility>
#include <variant>

#include "base/status_macros.h"

namespace ringmaster::coordinator {
namespace {

// For the core, and for the disk.
constexpr absl::Duration kPatience = absl::Seconds(2);
constexpr int kJobsOnAPage = 100;
constexpr int kWaitingOnTheOverview = 50;
constexpr int kWorkersOnAPage = 500;
constexpr int kWorkersOnTheOverview = 100;
constexpr int kCheckpointsShown = 20;

// A question to the core, answered as those of gRPC are. It is asked at once.
template <typename Response>
class Question {
 public:
  Question(EventLoop& loop, ApiMessage request) {
    auto promise = std::make_shared<std::promise<absl::StatusOr<ApiResponse>>>();
    answer_ = promise->get_future();
    loop.Call(
        std::move(request), std::nullopt, loop.Now() + kPatience,
        [promise](absl::StatusOr<ApiResponse> reply) { promise->set_value(std::move(reply)); });
  }

  absl::StatusOr<Response> Answer() {
    if (answer_.wait_for(absl::ToChronoNanoseconds(kPatience)) != std::future_status::ready) {
      return absl::DeadlineExceededError("the coordinator is busy");
    }
    ASSIGN_OR_RETURN(ApiResponse reply, answer_.get());
    Response* const response = std::get_if<Response>(&reply);
    if (response == nullptr) return absl::InternalError("the core answered another call");
    return std::move(*response);
  }

 private:
  std::future<absl::StatusOr<ApiResponse>> answer_;
};

v1::ListTrainingJobsRequest ListRequest(const std::string& project, const JobGroup& group,
                                        int page_size, const std::string& page_token) {
  v1::ListTrainingJobsRequest request;
  request.set_parent(project.empty() ? "projects/-" : project);
  request.set_page_size(page_size);
  request.set_page_token(page_token);
  for (const auto state : group.states) request.add_states(state);
  return request;
}

v1::ListWorkersRequest WorkersRequest(int page_size, const std::string& page_token) {
  v1::ListWorkersRequest request;
  request.set_page_size(page_size);
  request.set_page_token(page_token);
  return request;
}

}  // namespace

PageSource::PageSource(const ServiceContext& services) : services_(services), steps_(kPatience) {}

absl::StatusOr<std::string> PageSource::Overview(const std::string& project) const {
  EventLoop& loop = *services_.loop;
  Question<v1::ListTrainingJobsResponse> waiting(
      loop, ListRequest(project, *FindJobGroup("waiting"), kWaitingOnTheOverview, ""));
  v1::ListQueuesRequest queues_request;
  queues_request.set_parent(project.empty() ? "projects/-" : project);
  Question<v1::ListQueuesResponse> queues(loop, queues_request);
  struct Overview overview;
  if (project.empty()) {
    Question<v1::ListWorkersResponse> workers(loop, WorkersRequest(kWorkersOnTheOverview, ""));
    ASSIGN_OR_RETURN(overview.workers, workers.Answer());
  }
  ASSIGN_OR_RETURN(overview.waiting, waiting.Answer());
  ASSIGN_OR_RETURN(overview.queues, queues.Answer());
  const auto snapshot = loop.snapshot();
  return OverviewPage({*snapshot, project, loop.Now()}, overview);
}

absl::StatusOr<std::string> PageSource::Jobs(const std::string& project, const std::string& group,
                                             const std::string& page_token) const {
  const JobGroup* const found = FindJobGroup(group.empty() ? "all" : group);
  if (found == nullptr) return absl::NotFoundError("no such group of jobs");
  EventLoop& loop = *services_.loop;
  Question<v1::ListTrainingJobsResponse> question(
      loop, ListRequest(project, *found, kJobsOnAPage, page_token));
  ASSIGN_OR_RETURN(const v1::ListTrainingJobsResponse jobs, question.Answer());
  const auto snapshot = loop.snapshot();
  return JobsPage({*snapshot, project, loop.Now()}, *found, jobs);
}

absl::StatusOr<std::string> PageSource::Workers(const std::string& page_token) const {
  EventLoop& loop = *services_.loop;
  Question<v1::ListWorkersResponse> question(loop, WorkersRequest(kWorkersOnAPage, page_token));
  ASSIGN_OR_RETURN(const v1::ListWorkersResponse workers, question.Answer());
  const auto snapshot = loop.snapshot();
  return WorkersPage({*snapshot, "", loop.Now()}, workers);
}

absl::StatusOr<std::string> PageSource::Job(const std::string& project,
                                            const std::string& name) const {
  EventLoop& loop = *services_.loop;
  v1::GetTrainingJobRequest get;
  get.set_name(name);
  Question<v1::TrainingJob> job(loop, get);
  v1::ListCheckpointsRequest list;
  list.set_parent(name);
  list.set_page_size(kCheckpointsShown);
  Question<v1::ListCheckpointsResponse> checkpoints(loop, list);
  JobDetails details;
  ASSIGN_OR_RETURN(details.job, job.Answer());
  ASSIGN_OR_RETURN(details.checkpoints, checkpoints.Answer());
  details.steps = steps_.Of(details.job.spec().directory() + "/steps.jsonl", details.job.uid());
  const auto snapshot = loop.snapshot();
  return JobPage({*snapshot, project, loop.Now()}, details);
}

}  // namespace ringmaster::coordinator
