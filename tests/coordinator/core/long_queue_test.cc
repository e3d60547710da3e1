// Looks at a queue whose end nobody needs to see, and at several events at once.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/coordinator/core/core_driver.h"
#include "tests/coordinator/core/job_requests.h"
#include "tests/coordinator/core/queue_requests.h"

namespace ringmaster::coordinator {
namespace {

CoreOptions OptionsShowing(int positions) {
  CoreOptions options = CoreDriver::Options();
  options.preemption = false;
  options.shown_positions = positions;
  return options;
}

std::string ReasonOf(const v1::TrainingJob& job) {
  const v1::PendingReason& reason = job.status().pending_reason();
  return absl::StrCat(reason.queue_position(), " ", reason.code(), " ", reason.message());
}

// A coordinator that looks at the head of the queue, and one that always looks at all of it.
class TwoCores {
 public:
  explicit TwoCores(uint32_t seed) : random_(seed) {
    Both([](CoreDriver& d) {
      ASSERT_TRUE(CreateQueue(d, "bounded", [](v1::Queue& q) { q.set_max_workers(4); }).ok());
      ASSERT_TRUE(CreateQueue(d, "heavy", [](v1::Queue& q) { q.set_weight(3); }).ok());
    });
  }

  void DoSomething() {
    const int what = Below(16);
    if (what < 6) return Submit();
    if (what < 8) return AddWorker();
    if (what < 11) return EndOne();
    if (what == 11)
      return WithQueued([](CoreDriver& d, auto& id) { EXPECT_TRUE(Cancel(d, id).ok()); });
    if (what == 12)
      return WithQueued([](CoreDriver& d, auto& id) { EXPECT_TRUE(Pause(d, id).ok()); });
    if (what == 13) return ResumeOne();
    if (what == 14)
      return WithQueued([](CoreDriver& d, auto& id) { EXPECT_TRUE(Reprioritise(d, id, 1).ok()); });
    Both([](CoreDriver& d) { d.Advance(absl::Milliseconds(250)); });
  }

  void ExpectSamePlacements() {
    for (const v1::TrainingJob* job : all_.Core().Jobs("projects/-")) {
      const v1::TrainingJob* other = head_.Core().FindJob(job->name());
      ASSERT_NE(other, nullptr);
      EXPECT_EQ(job->status().state(), other->status().state()) << job->name();
      ASSERT_EQ(job->status().ranks_size(), other->status().ranks_size()) << job->name();
      for (int rank = 0; rank < job->status().ranks_size(); ++rank) {
        EXPECT_EQ(job->status().ranks(rank).worker(), other->status().ranks(rank).worker());
      }
      EXPECT_EQ(job->status().has_pending_reason(), other->status().has_pending_reason());
      stale_ += ReasonOf(*job) != ReasonOf(*other);
    }
  }

  void ExpectSameReasonsSoon() {
    Both([](CoreDriver& d) { d.Advance(absl::Milliseconds(1250)); });
    for (const v1::TrainingJob* job : all_.Core().Jobs("projects/-")) {
      EXPECT_EQ(ReasonOf(*job), ReasonOf(*head_.Core().FindJob(job->name()))) << job->name();
    }
  }

  // Reasons that the look at the head left as they were.
  int stale() const { return stale_; }

 private:
  template <typename Do>
  void Both(const Do& action) {
    action(head_);
    action(all_);
  }
  int Below(int bound) { return static_cast<int>(random_() % static_cast<uint32_t>(bound)); }
  std::vector<std::string> JobsIn(v1::TrainingJobStatus::State state) {
    std::vector<std::string> ids;
    for (const v1::TrainingJob* job : all_.Core().Jobs("projects/-")) {
      if (job->status().state() == state)
        ids.push_back(job->name().substr(job->name().rfind('/') + 1));
    }
    return ids;
  }
  template <typename Do>
  void WithQueued(const Do& action) {
    const std::vector<std::string> ids = JobsIn(v1::TrainingJobStatus::QUEUED);
    if (ids.empty()) return;
    const std::string& id = ids[static_cast<size_t>(Below(static_cast<int>(ids.size())))];
    Both([&](CoreDriver& d) { action(d, id); });
  }

  void Submit() {
    static constexpr const char* kQueues[] = {"default", "bounded", "heavy"};
    const std::string id = absl::StrCat("job-", jobs_++);
    const char* queue = kQueues[Below(3)];
    const int priority = Below(8) == 0 ? 1 : 0;
    const int ring = 1 + Below(3);
    Both([&](CoreDriver& d) { ASSERT_TRUE(SubmitTo(d, queue, id, priority, ring).ok()); });
  }
  void AddWorker() {
    if (workers_ == 9) return;
    const char name = static_cast<char>('a' + workers_++);
    Both([&](CoreDriver& d) {
      d.Hello(std::string(1, name), name, CoreDriver::Cpu(name < 'e' ? "h0" : "h1"));
    });
  }
  void EndOne() {
    const std::vector<std::string> ids = JobsIn(v1::TrainingJobStatus::STARTING);
    if (ids.empty()) return;
    Both([&](CoreDriver& d) {
      d.Form(ids.front());
      d.FinishRing(ids.front(), 10);
    });
  }
  void ResumeOne() {
    const std::vector<std::string> ids = JobsIn(v1::TrainingJobStatus::PAUSED);
    if (ids.empty()) return;
    Both([&](CoreDriver& d) { EXPECT_TRUE(Resume(d, ids.front()).ok()); });
  }

  std::mt19937 random_;
  CoreDriver head_{OptionsShowing(2)};
  CoreDriver all_{OptionsShowing(1000)};
  int jobs_ = 0;
  int workers_ = 0;
  int stale_ = 0;
};

TEST(LongQueueTest, WhoeverLooksAtTheHeadAlonePlacesTheSameJobs) {
  int stale = 0;
  for (uint32_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    TwoCores cores(seed);
    for (int i = 0; i < 150 && !testing::Test::HasFailure(); ++i) {
      cores.DoSomething();
      cores.ExpectSamePlacements();
      if (i % 30 == 29) cores.ExpectSameReasonsSoon();
    }
    ASSERT_FALSE(testing::Test::HasFailure());
    stale += cores.stale();
  }
  // Else it looked at all, too.
  EXPECT_GT(stale, 100);
}

class BatchTest : public testing::Test {
 protected:
  Event Submission(const std::string& id, uint64_t call) {
    return ApiRequest{call, CoreDriver::CreateRequest(id, 1), {}};
  }
  std::vector<v1::TrainingJob> Handle(const std::vector<Event>& events) {
    std::vector<const Event*> all;
    for (const Event& event : events) all.push_back(&event);
    std::vector<v1::TrainingJob> jobs;
    for (const Reply& reply : d_.Core().Handle(d_.now(), all).replies) {
      EXPECT_TRUE(reply.response.ok()) << reply.response.status();
      if (reply.response.ok()) jobs.push_back(std::get<v1::TrainingJob>(*reply.response));
    }
    return jobs;
  }

  CoreDriver d_;
};

TEST_F(BatchTest, RepliesTellOfWhatTheWholeBatchLedTo) {
  d_.Hello("a", 'a');
  const std::vector<v1::TrainingJob> jobs =
      Handle({Submission("job-a", 1), Submission("job-b", 2), Submission("job-c", 3)});
  ASSERT_EQ(jobs.size(), 3);
  EXPECT_EQ(jobs[0].status().state(), v1::TrainingJobStatus::STARTING);
  EXPECT_EQ(ReasonOf(jobs[1]).substr(0, 14), "1 WORKERS_BUSY");
  EXPECT_EQ(ReasonOf(jobs[2]).substr(0, 14), "2 WORKERS_BUSY");
}

TEST_F(BatchTest, WhatIsCancelledAtOnceIsNotPlaced) {
  d_.Hello("a", 'a');
  v1::CancelTrainingJobRequest cancel;
  cancel.set_name("projects/default/trainingJobs/job-b");
  const std::vector<v1::TrainingJob> jobs =
      Handle({Submission("job-b", 1), ApiRequest{2, cancel, {}}, Submission("job-c", 3)});
  ASSERT_EQ(jobs.size(), 3);
  EXPECT_EQ(jobs[0].status().state(), v1::TrainingJobStatus::CANCELLED);
  EXPECT_EQ(jobs[1].status().state(), v1::TrainingJobStatus::CANCELLED);
  EXPECT_EQ(jobs[0].etag(), jobs[1].etag());
  EXPECT_EQ(jobs[2].status().state(), v1::TrainingJobStatus::STARTING);
}

// What the first one keeps is the second one's turn, as its queue holds less.
TEST_F(BatchTest, JobsOfTwoQueuesTakeTurnsWithinABatch) {
  CoreDriver d(OptionsShowing(100));
  ASSERT_TRUE(CreateQueue(d, "a").ok());
  ASSERT_TRUE(CreateQueue(d, "b").ok());
  for (char name = 'a'; name < 'd'; ++name) d.Hello(std::string(1, name), name);
  ASSERT_TRUE(SubmitTo(d, "a", "a-holds", 0, 1).ok());
  std::vector<Event> events;
  for (const auto& [queue, ring] : {std::pair("a", 3), std::pair("b", 2)}) {
    v1::CreateTrainingJobRequest request =
        CoreDriver::CreateRequest(absl::StrCat("job-", queue), ring);
    request.mutable_training_job()->mutable_spec()->set_queue(queue);
    events.push_back(ApiRequest{events.size() + 1, request, {}});
  }
  const Output output = d.Core().Handle(d.now(), {&events[0], &events[1]});
  EXPECT_EQ(d.StateOf("job-a"), "QUEUED");
  EXPECT_EQ(d.StateOf("job-b"), "STARTING");
}

// Far behind: it is the look at new jobs that tells it why it waits.
TEST_F(BatchTest, WhoComesToTheQueueTwiceIsCountedOnce) {
  CoreDriver d(OptionsShowing(1));
  ASSERT_TRUE(CreateQueue(d, "a", [](v1::Queue& q) { q.set_max_workers(3); }).ok());
  d.Hello("a", 'a');
  ASSERT_TRUE(SubmitTo(d, "a", "job-1").ok());
  ASSERT_TRUE(SubmitTo(d, "a", "job-2").ok());
  v1::CreateTrainingJobRequest create = CoreDriver::CreateRequest("job-3", 1);
  create.mutable_training_job()->mutable_spec()->set_queue("a");
  v1::PauseTrainingJobRequest pause;
  v1::ResumeTrainingJobRequest resume;
  for (std::string* name : {pause.mutable_name(), resume.mutable_name()}) {
    *name = "projects/default/trainingJobs/job-3";
  }
  const std::vector<Event> events = {ApiRequest{1, create, {}}, ApiRequest{2, pause, {}},
                                     ApiRequest{3, resume, {}}};
  d.Sleep(absl::Milliseconds(1));
  const Output output = d.Core().Handle(d.now(), {&events[0], &events[1], &events[2]});
  EXPECT_EQ(ReasonOf(d.Job("job-3")).substr(0, 14), "2 WORKERS_BUSY");
}

TEST(LongQueueTest, NumbersInReasonsAreOfPlacementsSinceWithinASecond) {
  CoreDriver d(OptionsShowing(100));
  ASSERT_TRUE(CreateQueue(d, "a", [](v1::Queue& q) { q.set_max_workers(2); }).ok());
  for (char name = 'a'; name < 'e'; ++name) d.Hello(std::string(1, name), name);
  ASSERT_TRUE(SubmitTo(d, "a", "too-large", 0, 4).ok());
  ASSERT_TRUE(SubmitTo(d, "a", "small", 0, 2).ok());
  ASSERT_EQ(d.StateOf("small"), "STARTING");
  d.Advance(absl::Milliseconds(1250));
  EXPECT_THAT(ReasonOf(d.Job("too-large")), testing::HasSubstr("together 2 are held"));
}

// After an hour without a change, what is due to be told is due now.
TEST(LongQueueTest, ExplanationsAreNoLagOfTheLoop) {
  CoreDriver d(OptionsShowing(1));
  d.Hello("a", 'a');
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(Submit(d, absl::StrCat("job-", i), 0).ok());
  d.Form("job-0");
  d.Advance(absl::Seconds(60));
  d.FinishRing("job-0", 10);
  ASSERT_EQ(d.StateOf("job-1"), "STARTING");
  EXPECT_GE(d.Core().NextTick(), d.now());
}

TEST_F(BatchTest, AHigherOneOfTheSameBatchIsFirst) {
  d_.Hello("a", 'a');
  Event urgent = Submission("job-b", 2);
  std::get<v1::CreateTrainingJobRequest>(std::get<ApiRequest>(urgent).message)
      .mutable_training_job()
      ->mutable_spec()
      ->set_priority(1);
  const std::vector<v1::TrainingJob> jobs = Handle({Submission("job-a", 1), urgent});
  ASSERT_EQ(jobs.size(), 2);
  EXPECT_EQ(jobs[0].status().state(), v1::TrainingJobStatus::QUEUED);
  EXPECT_EQ(jobs[1].status().state(), v1::TrainingJobStatus::STARTING);
}

}  // namespace
}  // namespace ringmaster::coordinator
