#include "coordinator/page/status_page.h"

#include <algorithm>
#include <regex>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "coordinator/core/times.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ringmaster::coordinator {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using v1::TrainingJobStatus;

constexpr char kEvil[] = "<img src=x onerror=alert(1)>";
const absl::Time kNow = absl::FromUnixSeconds(1'770'000'000);

v1::TrainingJob Job(const std::string& name, TrainingJobStatus::State state) {
  v1::TrainingJob job;
  job.set_name(name);
  job.mutable_spec()->set_steps(1000);
  job.mutable_spec()->mutable_parallel()->set_ring_size(4);
  job.mutable_status()->set_state(state);
  *job.mutable_create_time() = ToProto(kNow - absl::Minutes(10));
  return job;
}

class StatusPageTest : public ::testing::Test {
 protected:
  StatusPageTest() {
    snapshot_.epoch = 7;
    snapshot_.jobs = {{TrainingJobStatus::RUNNING, 2}, {TrainingJobStatus::QUEUED, 12'345}};
    snapshot_.workers = {{v1::Worker::ACTIVE, 8}, {v1::Worker::LOST, 0}};
  }

  std::string Page(const Overview& overview, const std::string& project = "") const {
    return OverviewPage({snapshot_, project, kNow}, overview);
  }

  CoreSnapshot snapshot_;
};

TEST_F(StatusPageTest, RunningJobShowsWhatItDoes) {
  v1::TrainingJob job = Job("projects/vision/trainingJobs/bible", TrainingJobStatus::RUNNING);
  v1::Progress* progress = job.mutable_status()->mutable_progress();
  progress->set_step(250);
  progress->set_loss(1.23456);
  progress->set_tokens_per_second(45'600);
  *progress->mutable_step_time() = ToProto(kNow);
  *progress->mutable_remaining() = ToProto(absl::Minutes(20));
  job.mutable_status()->set_generation(3);
  job.mutable_status()->add_ranks();
  snapshot_.active_jobs = {job};
  const std::string page = Page({});
  for (const char* part : {"<a href=\"/jobs/vision/bible\">vision/bible</a>", "running</span>",
                           "1.2346", "45.6k", "250 / 1,000", "20 min",
                           "4<span class=\"dim\"> g3</span>", "10 min", "epoch 7", "8 active"}) {
    EXPECT_THAT(page, HasSubstr(part));
  }
  EXPECT_THAT(page, Not(HasSubstr("0 lost")));
}

TEST_F(StatusPageTest, TroubleComesFirstAndAThousandRingsAreTooMany) {
  for (int i = 0; i < 1000; ++i) {
    snapshot_.active_jobs.push_back(
        Job(absl::StrCat("projects/vision/trainingJobs/job-", i),
            i == 999 ? TrainingJobStatus::RECOVERING : TrainingJobStatus::RUNNING));
  }
  // It waits, and is shown with those that do.
  snapshot_.active_jobs.push_back(
      Job("projects/vision/trainingJobs/queued", TrainingJobStatus::QUEUED));
  const std::string page = Page({});
  EXPECT_LT(page.find(">vision/job-999<"), page.find(">vision/job-0<"));
  EXPECT_THAT(page, HasSubstr(">vision/job-198<"));
  EXPECT_THAT(page, Not(HasSubstr(">vision/job-199<")));
  EXPECT_THAT(page, Not(HasSubstr("vision/queued")));
  EXPECT_THAT(page, HasSubstr("200 of them; <a href=\"/jobs?group=running\">all</a>"));
}

TEST_F(StatusPageTest, OfManyThatHaveEndedSomeAreShown) {
  for (int i = 0; i < 1000; ++i) {
    snapshot_.ended_jobs.push_back(
        Job(absl::StrCat("projects/vision/trainingJobs/job-", i), TrainingJobStatus::SUCCEEDED));
  }
  const std::string page = Page({});
  EXPECT_THAT(page, HasSubstr(">vision/job-199<"));
  EXPECT_THAT(page, Not(HasSubstr(">vision/job-200<")));
  EXPECT_THAT(page, HasSubstr("200 of those within five minutes; "
                              "<a href=\"/jobs?group=ended\">all</a>"));
}

TEST_F(StatusPageTest, WaitingJobSaysWhyAndWhere) {
  v1::TrainingJob job = Job("projects/vision/trainingJobs/bible", TrainingJobStatus::QUEUED);
  job.mutable_status()->mutable_pending_reason()->set_message("4 workers are needed, 1 is idle");
  job.mutable_status()->mutable_pending_reason()->set_queue_position(17);
  Overview overview;
  *overview.waiting.add_training_jobs() = job;
  overview.waiting.set_next_page_token("more");
  const std::string page = Page(overview);
  EXPECT_THAT(page, HasSubstr("#17 </span>4 workers are needed, 1 is idle"));
  EXPECT_THAT(page, HasSubstr("the newest 1 of them; <a href=\"/jobs?group=waiting\">all</a>"));
  EXPECT_THAT(page, HasSubstr("12,345"));
}

TEST_F(StatusPageTest, NobodysTextIsMarkup) {
  v1::TrainingJob job =
      Job(absl::StrCat("projects/vision/trainingJobs/", kEvil), TrainingJobStatus::FAILED);
  job.mutable_spec()->set_queue(kEvil);
  job.mutable_status()->set_state_reason(kEvil);
  v1::RecoveryEpisode* episode = job.mutable_status()->add_episodes();
  episode->set_message(kEvil);
  snapshot_.ended_jobs.push_back(job);
  Overview overview;
  *overview.waiting.add_training_jobs() = job;
  overview.queues.add_queues()->set_name(absl::StrCat("queues/", kEvil));
  overview.queues.mutable_queues(0)->add_projects(absl::StrCat("projects/", kEvil));
  v1::Worker* worker = overview.workers.emplace().add_workers();
  worker->set_name(absl::StrCat("workers/", kEvil));
  worker->set_training_job(job.name());
  worker->set_version(kEvil);
  worker->mutable_hardware()->set_device_name(kEvil);
  worker->mutable_hardware()->set_host(kEvil);
  worker->mutable_cordon()->set_reason(kEvil);
  const std::string page = Page(overview);
  EXPECT_THAT(page, Not(HasSubstr("<img")));
  EXPECT_THAT(page, HasSubstr("&lt;img"));
  EXPECT_THAT(page, Not(HasSubstr("onerror=alert(1)\"")));
}

TEST_F(StatusPageTest, WorkersShowWhatTheyDoBelowTheRightHeadings) {
  v1::ListWorkersResponse workers;
  v1::Worker* worker = workers.add_workers();
  worker->set_name("workers/one");
  worker->set_state(v1::Worker::ACTIVE);
  worker->set_training_job("projects/vision/trainingJobs/bible");
  worker->set_rank(3);
  worker->set_version("0.1.0");
  worker->mutable_hardware()->set_device_name("H200");
  worker->mutable_hardware()->set_host("host-1");
  worker->mutable_hardware()->set_zone("zone-2");
  worker->mutable_heartbeat_age()->set_seconds(2);
  worker->mutable_cordon()->set_reason("new disk");
  worker->mutable_cordon()->set_drain(true);
  // Without its markup, and with a bar between cells.
  std::string text = WorkersPage({snapshot_, "", kNow}, workers);
  for (const char* end : {"</th>", "</td>"}) absl::StrReplaceAll({{end, "|"}}, &text);
  text = std::regex_replace(text, std::regex("<[^>]*>"), "");
  EXPECT_THAT(text, HasSubstr("worker|state|job|rank|device|where|heartbeat|version|cordon|"
                              "one|active|vision/bible|3|H200|host-1, zone-2|2 s|0.1.0|"
                              "draining: new disk|"));
}

TEST_F(StatusPageTest, OneProjectIsToldNothingOfTheCluster) {
  v1::TrainingJob own = Job("projects/vision/trainingJobs/own", TrainingJobStatus::RUNNING);
  own.mutable_status()->add_episodes()->set_message("our worker died");
  v1::TrainingJob other = Job("projects/vision-2/trainingJobs/other", TrainingJobStatus::RUNNING);
  other.mutable_status()->add_episodes()->set_message("their worker died");
  snapshot_.active_jobs = {own, other};
  const std::string page = Page({}, "projects/vision");
  EXPECT_THAT(page, HasSubstr("our worker died"));
  EXPECT_THAT(page, Not(HasSubstr("their worker died")));
  EXPECT_THAT(page, Not(HasSubstr("12,345")));
  EXPECT_THAT(page, Not(HasSubstr("8 active")));
  EXPECT_THAT(page, Not(HasSubstr("/workers")));
  EXPECT_THAT(page, HasSubstr("/jobs?group=running&amp;project=vision\""));
}

TEST_F(StatusPageTest, NewestRecoveriesComeFirst) {
  v1::TrainingJob job = Job("projects/vision/trainingJobs/bible", TrainingJobStatus::RUNNING);
  for (int i = 0; i < 30; ++i) {
    v1::RecoveryEpisode* episode = job.mutable_status()->add_episodes();
    *episode->mutable_detect_time() = ToProto(kNow - absl::Minutes(100 - i));
    episode->set_message(absl::StrCat("fault ", i, "."));
    episode->set_cause(v1::RecoveryEpisode::WORKER_EXIT);
    episode->set_abort_ms(1234);
  }
  snapshot_.active_jobs = {job};
  const std::string page = Page({});
  EXPECT_LT(page.find("fault 29."), page.find("fault 28."));
  EXPECT_THAT(page, HasSubstr("fault 10."));
  EXPECT_THAT(page, Not(HasSubstr("fault 9.")));
  EXPECT_THAT(page, HasSubstr("worker exit"));
  EXPECT_THAT(page, HasSubstr("1,234"));
}

TEST_F(StatusPageTest, TroubleOfTheCoordinatorIsAtTheTop) {
  EXPECT_THAT(Page({}), Not(HasSubstr("alarm")));
  snapshot_.draining = true;
  snapshot_.store_full = true;
  EXPECT_THAT(Page({}), HasSubstr("draining"));
  EXPECT_THAT(Page({}), HasSubstr("the store is full"));
}

TEST_F(StatusPageTest, PagesLeadToTheNextOne) {
  v1::ListTrainingJobsResponse jobs;
  jobs.set_next_page_token("Zm9v");
  const std::string page =
      JobsPage({snapshot_, "projects/vision", kNow}, *FindJobGroup("waiting"), jobs);
  EXPECT_THAT(page, HasSubstr("href=\"/jobs?group=waiting&amp;project=vision&amp;page=Zm9v\""));
  v1::ListWorkersResponse workers;
  workers.set_next_page_token("Zm9v");
  EXPECT_THAT(WorkersPage({snapshot_, "", kNow}, workers),
              HasSubstr("href=\"/workers?page=Zm9v\""));
}

TEST(JobGroupsTest, EveryStateIsInOneOfTheThreeAndAllHasAll) {
  EXPECT_EQ(FindJobGroup("none"), nullptr);
  EXPECT_THAT(FindJobGroup("all")->states, IsEmpty());
  for (int state = TrainingJobStatus::State_MIN; state <= TrainingJobStatus::State_MAX; ++state) {
    if (!TrainingJobStatus::State_IsValid(state) || state == 0) continue;
    int groups = 0;
    for (const char* id : {"running", "waiting", "ended"}) {
      const auto& states = FindJobGroup(id)->states;
      groups += static_cast<int>(std::count(states.begin(), states.end(), state));
    }
    EXPECT_EQ(groups, 1) << state;
  }
}

}  // namespace
}  // namespace ringmaster::coordinator
