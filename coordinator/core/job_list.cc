#include "coordinator/core/job_list.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "coordinator/core/job_filter.h"
#include "coordinator/core/job_order.h"
#include "coordinator/core/names.h"
#include "coordinator/core/pages.h"
#include "proto/rpc_status.h"

namespace ringmaster::coordinator {
namespace {

std::string AgeKey(const Job& job) {
  const auto [nanos, uid] = job.age_key();
  return absl::StrCat(nanos, "/", uid);
}

// The map's position from which the page goes on towards older jobs.
JobsByAge::const_reverse_iterator PageStart(const State& state, const std::string& after) {
  int64_t nanos = 0;
  const size_t slash = after.find('/');
  if (slash == std::string::npos || !absl::SimpleAtoi(after.substr(0, slash), &nanos)) {
    return state.jobs_by_age.rbegin();
  }
  return JobsByAge::const_reverse_iterator(
      state.jobs_by_age.lower_bound({nanos, after.substr(slash + 1)}));
}

// Takes jobs until the page is full.
class Page {
 public:
  explicit Page(int size) : size_(size) {}

  // False if there was no place left.
  bool Add(const Job& job, std::string key) {
    if (response_.training_jobs_size() == size_ || bytes_ >= kPageBytes) return false;
    *response_.add_training_jobs() = job.record.job();
    bytes_ += job.record.job().ByteSizeLong();
    last_ = std::move(key);
    return true;
  }

  // `bound` is the request without its page.
  v1::ListTrainingJobsResponse Take(bool more, const v1::ListTrainingJobsRequest& bound) {
    if (more) response_.set_next_page_token(MakePageToken(bound, last_));
    return std::move(response_);
  }

 private:
  const int size_;
  v1::ListTrainingJobsResponse response_;
  size_t bytes_ = 0;
  std::string last_;
};

absl::Status CheckStates(const v1::ListTrainingJobsRequest& request) {
  for (const int wanted : request.states()) {
    if (!v1::TrainingJobStatus::State_IsValid(wanted) ||
        wanted == v1::TrainingJobStatus::STATE_UNSPECIFIED) {
      return InvalidField("states", absl::StrCat("holds the unknown state ", wanted));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<v1::ListTrainingJobsResponse> ListJobs(const State& state,
                                                      const v1::ListTrainingJobsRequest& request) {
  ASSIGN_OR_RETURN(const std::string project, ParseParent("parent", request.parent(), true));
  ASSIGN_OR_RETURN(const int size, PageSize(request.page_size()));
  RETURN_IF_ERROR(CheckStates(request));
  ASSIGN_OR_RETURN(const JobPredicate filter, ParseJobFilter(request.filter()));
  ASSIGN_OR_RETURN(const JobOrder order, JobOrder::Parse(request.order_by()));
  v1::ListTrainingJobsRequest bound = request;
  bound.clear_page_size();
  bound.clear_page_token();
  ASSIGN_OR_RETURN(const std::string after, ParsePageToken(bound, request.page_token()));
  const std::string prefix = absl::StrCat("projects/", project, "/");
  const auto& states = request.states();
  const auto wanted = [&](const Job& job) {
    return (project == "-" || absl::StartsWith(job.name(), prefix)) &&
           (states.empty() ||
            std::find(states.begin(), states.end(), job.status().state()) != states.end()) &&
           filter(job.record.job());
  };
  Page page(size);
  if (order.empty()) {
    auto it = PageStart(state, after);
    const auto skip = [&] {
      while (it != state.jobs_by_age.rend() && !wanted(*it->second)) ++it;
    };
    for (skip(); it != state.jobs_by_age.rend(); skip()) {
      if (!page.Add(*it->second, AgeKey(*it->second))) break;
      ++it;
    }
    return page.Take(it != state.jobs_by_age.rend(), bound);
  }
  std::vector<std::pair<std::string, const Job*>> jobs;
  for (const auto& [name, job] : state.jobs) {
    if (!wanted(*job)) continue;
    std::string key = order.Key(job->record.job());
    if (key > after) jobs.emplace_back(std::move(key), job.get());
  }
  // One more than the page holds says whether there are more.
  const auto sorted = jobs.begin() + std::min<ptrdiff_t>(size + 1, std::ssize(jobs));
  std::partial_sort(jobs.begin(), sorted, jobs.end());
  auto it = jobs.begin();
  while (it != sorted && page.Add(*it->second, it->first)) ++it;
  return page.Take(it != sorted, bound);
}

}  // namespace ringmaster::coordinator
