#include "coordinator/page/status_page.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/version.h"
#include "coordinator/core/times.h"
#include "coordinator/page/tables.h"
#include "coordinator/page/words.h"

namespace ringmaster::coordinator {
namespace {

using Status = v1::TrainingJobStatus;

constexpr size_t kRecoveriesShown = 20;
constexpr size_t kJobsShown = 200;

// "&project=vision" where only that is shown.
std::string ProjectParameter(const PageContext& context, const char* joint) {
  if (context.project.empty()) return "";
  return absl::StrCat(joint, "project=", absl::StripPrefix(context.project, "projects/"));
}

Html Heading(const char* text, const Html& more = {}) {
  return Html::Element("h2", {}, Html(text) + " " + Html::Element("small", {}, more));
}

std::string GroupAddress(const PageContext& context, const JobGroup& group) {
  return absl::StrCat("/jobs?group=", group.name, ProjectParameter(context, "&"));
}

bool IsIn(const JobGroup& group, Status::State state) {
  const auto& states = group.states;
  return states.empty() || std::find(states.begin(), states.end(), state) != states.end();
}

int64_t JobsIn(const CoreSnapshot& snapshot, const JobGroup& group) {
  int64_t sum = 0;
  for (const auto& [state, count] : snapshot.jobs) sum += IsIn(group, state) ? count : 0;
  return sum;
}

// Links to all groups, with how many jobs they have where that may be told.
Html GroupLinks(const PageContext& context, const JobGroup* here) {
  Html links;
  for (const JobGroup& group : JobGroups()) {
    Html text = group.name;
    if (context.project.empty()) {
      text += Marked("dim", absl::StrCat(" ", Count(JobsIn(context.snapshot, group))));
    }
    links += &group == here ? Marked("here", text) : Link(GroupAddress(context, group), text);
  }
  return Html::Element("nav", {}, links);
}

std::string WorkerCounts(const CoreSnapshot& snapshot) {
  std::string text;
  for (const auto& [state, count] : snapshot.workers) {
    if (count == 0) continue;
    absl::StrAppend(&text, text.empty() ? "" : ", ", Count(count), " ",
                    Plain(v1::Worker::State_Name(state)));
  }
  return text;
}

using Jobs = std::vector<const v1::TrainingJob*>;

// Of a group, those that may be shown.
Jobs JobsOf(const PageContext& context, const std::vector<v1::TrainingJob>& jobs,
            const JobGroup& group) {
  const std::string prefix = context.project.empty() ? "" : context.project + "/";
  Jobs found;
  for (const v1::TrainingJob& job : jobs) {
    if (IsIn(group, job.status().state()) && absl::StartsWith(job.name(), prefix)) {
      found.push_back(&job);
    }
  }
  return found;
}

Jobs Pointers(const v1::ListTrainingJobsResponse& jobs) {
  Jobs pointers;
  for (const v1::TrainingJob& job : jobs.training_jobs()) pointers.push_back(&job);
  return pointers;
}

// A group on the overview. `what`: which of them are there, when not all are.
Html GroupSection(const PageContext& context, const char* name, const Html& what,
                  const Jobs& jobs) {
  const JobGroup& group = *FindJobGroup(name);
  const Html more = what.empty() ? Html() : what + " " + Link(GroupAddress(context, group), "all");
  return Html::Element("section", {{"id", name}},
                       Heading(name, more) + JobsTable(jobs, context.now));
}

// Whether there were more than are shown.
bool Cut(Jobs& jobs) {
  const size_t all = jobs.size();
  jobs.resize(std::min(all, kJobsShown));
  return jobs.size() < all;
}

// What is not as it should be comes first.
Html RunningSection(const PageContext& context) {
  Jobs jobs = JobsOf(context, context.snapshot.active_jobs, *FindJobGroup("running"));
  std::stable_partition(jobs.begin(), jobs.end(), [](const v1::TrainingJob* job) {
    return job->status().state() != Status::RUNNING;
  });
  const bool cut = Cut(jobs);
  return GroupSection(context, "running",
                      cut ? Html(absl::StrCat(jobs.size(), " of them;")) : Html(), jobs);
}

Html WaitingSection(const PageContext& context, const v1::ListTrainingJobsResponse& waiting) {
  const bool more = !waiting.next_page_token().empty();
  const std::string what = absl::StrCat("the newest ", waiting.training_jobs_size(), " of them;");
  return GroupSection(context, "waiting", more ? Html(what) : Html(), Pointers(waiting));
}

Html EndedSection(const PageContext& context) {
  Jobs jobs = JobsOf(context, context.snapshot.ended_jobs, *FindJobGroup("ended"));
  const std::string what = Cut(jobs) ? absl::StrCat(jobs.size(), " of those ") : "";
  return GroupSection(context, "ended", what + "within five minutes;", jobs);
}

// The newest of the jobs that have a ring, or had one lately.
Html RecoveriesSection(const PageContext& context) {
  std::vector<Recovery> recoveries;
  for (const auto* jobs : {&context.snapshot.active_jobs, &context.snapshot.ended_jobs}) {
    for (const v1::TrainingJob* job : JobsOf(context, *jobs, *FindJobGroup("all"))) {
      for (const v1::RecoveryEpisode& episode : job->status().episodes()) {
        recoveries.push_back({job, &episode});
      }
    }
  }
  const auto newer = [](const Recovery& a, const Recovery& b) {
    return FromProto(a.episode->detect_time()) > FromProto(b.episode->detect_time());
  };
  const size_t shown = std::min(kRecoveriesShown, recoveries.size());
  std::partial_sort(recoveries.begin(), recoveries.begin() + static_cast<ptrdiff_t>(shown),
                    recoveries.end(), newer);
  recoveries.resize(shown);
  return Heading("recoveries", "the newest, of jobs that run or ended within five minutes") +
         RecoveriesTable(recoveries, /*of_one_job=*/false, context.now);
}

Html MoreLink(const std::string& address, const std::string& token) {
  if (token.empty()) return {};
  return Html::Element("p", {}, Link(absl::StrCat(address, "page=", token), "more"));
}

}  // namespace

absl::Span<const JobGroup> JobGroups() {
  static const std::vector<JobGroup> groups = {
      {"running",
       {Status::STARTING, Status::RUNNING, Status::RECOVERING, Status::PAUSING,
        Status::CANCELLING}},
      {"waiting", {Status::QUEUED, Status::PAUSED}},
      {"ended", {Status::SUCCEEDED, Status::FAILED, Status::CANCELLED}},
      {"failed", {Status::FAILED}},
      {"all", {}}};
  return groups;
}

const JobGroup* FindJobGroup(absl::string_view name) {
  for (const JobGroup& group : JobGroups()) {
    if (name == group.name) return &group;
  }
  return nullptr;
}

Html PageHeader(const PageContext& context) {
  const std::string here = ProjectParameter(context, "?");
  Html header = Html::Element("b", {}, Link("/" + here, "Ringmaster"));
  if (!context.project.empty()) header += Html::Element("span", {}, context.project);
  if (context.project.empty()) {
    header += Html::Element(
        "span", {}, Html(WorkerCounts(context.snapshot)) + " " + Link("/workers", "workers"));
  }
  if (context.snapshot.draining) header += Marked("alarm", "draining: nothing new is begun");
  if (context.snapshot.store_full) {
    header += Marked("alarm", "the store is full: submissions are refused");
  }
  header += Marked("dim", absl::StrCat(Version(), " (", Commit(), "), epoch ",
                                       context.snapshot.epoch, ", ", Utc(context.now)));
  return header;
}

std::string OverviewPage(const PageContext& context, const Overview& overview) {
  Html main = GroupLinks(context, nullptr) + RunningSection(context) +
              WaitingSection(context, overview.waiting) + EndedSection(context) +
              RecoveriesSection(context);
  main += Heading("queues") + QueuesTable(overview.queues);
  if (overview.workers.has_value()) {
    const bool more = !overview.workers->next_page_token().empty();
    main += Heading("workers", more ? Link("/workers", "all") : Html()) +
            WorkersTable(*overview.workers);
  }
  return WholePage("Ringmaster", PageHeader(context), main);
}

std::string JobsPage(const PageContext& context, const JobGroup& group,
                     const v1::ListTrainingJobsResponse& jobs) {
  return WholePage(absl::StrCat(group.name, " jobs"), PageHeader(context),
                   GroupLinks(context, &group) + JobsTable(Pointers(jobs), context.now) +
                       MoreLink(GroupAddress(context, group) + "&", jobs.next_page_token()));
}

std::string WorkersPage(const PageContext& context, const v1::ListWorkersResponse& workers) {
  return WholePage("workers", PageHeader(context),
                   Heading("workers") + WorkersTable(workers) +
                       MoreLink("/workers?", workers.next_page_token()));
}

}  // namespace ringmaster::coordinator
