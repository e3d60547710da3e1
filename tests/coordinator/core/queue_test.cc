// Who is next: the order of the queue, and what priorities do to it.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "proto/rpc_status.h"
#include "tests/coordinator/core/core_driver.h"
#include "tests/coordinator/core/job_requests.h"

namespace ringmaster::coordinator {
namespace {

int PlaceOf(const v1::TrainingJob& job) { return job.status().pending_reason().queue_position(); }
int PlaceOf(const absl::StatusOr<v1::TrainingJob>& job) { return PlaceOf(*job); }

// From first to last, as their reasons to wait tell it.
void ExpectQueue(CoreDriver& d, const std::vector<std::string>& ids) {
  for (size_t i = 0; i < ids.size(); ++i) {
    EXPECT_EQ(d.StateOf(ids[i]), "QUEUED") << ids[i];
    EXPECT_EQ(PlaceOf(d.Job(ids[i])), i + 1) << ids[i];
  }
}

TEST(QueueTest, HigherPrioritiesGoFirstAndOfOneTheOldest) {
  CoreDriver d;
  EXPECT_EQ(PlaceOf(Submit(d, "job-a", 0)), 1);
  EXPECT_EQ(PlaceOf(Submit(d, "job-b", 5)), 1);
  EXPECT_EQ(PlaceOf(Submit(d, "job-c", 5)), 2);
  EXPECT_EQ(PlaceOf(Submit(d, "job-d", -1)), 4);
  EXPECT_EQ(PlaceOf(Submit(d, "job-e", 0)), 4);
  const std::vector<std::string> order = {"job-b", "job-c", "job-a", "job-e", "job-d"};
  ExpectQueue(d, order);
  // It is stored.
  d.Start();
  d.Tick();
  ExpectQueue(d, order);
  for (size_t i = 0; i < order.size(); ++i) {
    d.Hello(std::string(1, static_cast<char>('a' + i)), static_cast<char>('a' + i));
    EXPECT_EQ(d.StateOf(order[i]), "STARTING") << order[i];
    ExpectQueue(d, {order.begin() + static_cast<int64_t>(i) + 1, order.end()});
  }
}

// The clock was set back between two coordinators: who came later is the older one.
TEST(QueueTest, AfterTheClockSteppedBackANewJobTakesItsPlaceAmongTheOthers) {
  CoreDriver d;
  d.Hello("a", 'a');
  ASSERT_TRUE(Submit(d, "running", 0).ok());
  ASSERT_TRUE(Submit(d, "job-a", 0).ok());
  ASSERT_TRUE(Submit(d, "job-b", 0).ok());
  d.Sleep(-absl::Hours(1));
  d.Start();
  d.Hello("a", 'a');
  EXPECT_EQ(PlaceOf(Submit(d, "job-c", 0)), 1);
  EXPECT_EQ(PlaceOf(Submit(d, "job-d", 0)), 2);
  ExpectQueue(d, {"job-c", "job-d", "job-a", "job-b"});
}

TEST(QueueTest, OfOneInstantTheFirstComesFirst) {
  CoreDriver d;
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(PlaceOf(d.Call<v1::TrainingJob>(CoreDriver::CreateRequest(absl::StrCat("job-", i)))),
              i + 1);
  }
}

TEST(QueueTest, AnUpdateMovesAJob) {
  CoreDriver d;
  for (const char* id : {"job-a", "job-b", "job-c"}) ASSERT_TRUE(Submit(d, id, 0).ok());
  EXPECT_EQ(PlaceOf(Reprioritise(d, "job-c", 1)), 1);
  ExpectQueue(d, {"job-c", "job-a", "job-b"});
  EXPECT_EQ(PlaceOf(Reprioritise(d, "job-a", -1)), 3);
  ExpectQueue(d, {"job-c", "job-b", "job-a"});
  ASSERT_TRUE(Reprioritise(d, "job-c", 0).ok());
  ExpectQueue(d, {"job-b", "job-c", "job-a"});
  const std::string etag = d.Job("job-a").etag();
  EXPECT_EQ(Reprioritise(d, "job-a", -1)->etag(), etag) << "it changes nothing";
  EXPECT_NE(Reprioritise(d, "job-a", -2)->etag(), etag);
  // It is stored.
  d.Start();
  d.Tick();
  ExpectQueue(d, {"job-b", "job-c", "job-a"});
  ASSERT_TRUE(Cancel(d, "job-c").ok());
  ExpectQueue(d, {"job-b", "job-a"});
}

// One worker is kept for the first job, which needs two.
TEST(QueueTest, WhatIsKeptForAJobIsKeptFromThoseBehindIt) {
  CoreDriver d;
  d.Hello("a", 'a');
  d.Hello("b", 'b');
  ASSERT_TRUE(Submit(d, "running", 0).ok());
  EXPECT_EQ(d.StateOf("running"), "STARTING");
  ASSERT_TRUE(Submit(d, "large", 1, 2).ok());
  EXPECT_EQ(d.Job("large").status().pending_reason().code(), "WORKERS_BUSY");
  ASSERT_TRUE(Submit(d, "lower", 0).ok());
  ASSERT_TRUE(Submit(d, "alike", 1).ok());
  ExpectQueue(d, {"large", "alike", "lower"});
  EXPECT_EQ(Submit(d, "higher", 2)->status().state(), v1::TrainingJobStatus::STARTING)
      << "the reply says so";
}

TEST(QueueTest, AJobThatPassesOneThatWaitsIsPlacedAtOnce) {
  CoreDriver d;
  d.Hello("a", 'a');
  d.Hello("b", 'b');
  ASSERT_TRUE(Submit(d, "running", 0).ok());
  ASSERT_TRUE(Submit(d, "large", 1, 2).ok());
  ASSERT_TRUE(Submit(d, "lower", 0).ok());
  EXPECT_EQ(Reprioritise(d, "lower", 2)->status().state(), v1::TrainingJobStatus::STARTING);
}

TEST(QueueTest, AJobThatFitsNowhereHoldsUpNobody) {
  CoreDriver d;
  ASSERT_TRUE(Submit(d, "large", 1000, 2).ok());
  ASSERT_TRUE(Submit(d, "small", -1000).ok());
  d.Hello("a", 'a');
  EXPECT_EQ(d.StateOf("small"), "STARTING");
  ExpectQueue(d, {"large"});
}

TEST(QueueTest, APriorityCountsWhenTheJobIsQueuedAgain) {
  CoreDriver d;
  d.RunningPair();
  d.Heard("a");
  const std::string etag = d.Job("job-a").etag();
  EXPECT_EQ(Reprioritise(d, "job-a", 3)->spec().priority(), 3);
  EXPECT_NE(d.Job("job-a").etag(), etag);
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  EXPECT_EQ(d.Heard("a"), "");
  ASSERT_TRUE(Submit(d, "job-b", 2, 2).ok());
  ASSERT_TRUE(Submit(d, "job-c", 4, 2).ok());
  ASSERT_TRUE(Pause(d, "job-a").ok());
  d.FinishRing("job-a", 1);
  EXPECT_EQ(d.StateOf("job-a"), "PAUSED");
  EXPECT_EQ(d.StateOf("job-c"), "STARTING");
  EXPECT_EQ(PlaceOf(Resume(d)), 1);
  ExpectQueue(d, {"job-a", "job-b"});
}

TEST(QueueTest, AJobThatHasEndedTakesAPriority) {
  CoreDriver d;
  ASSERT_TRUE(Submit(d, "ended", 0).ok());
  ASSERT_TRUE(Cancel(d, "ended").ok());
  EXPECT_EQ(Reprioritise(d, "ended", 9)->spec().priority(), 9);
  d.Hello("a", 'a');
  EXPECT_EQ(d.StateOf("ended"), "CANCELLED");
}

TEST(QueueTest, PrioritiesAreBounded) {
  CoreDriver d;
  for (const int32_t priority : {-1001, 1001}) {
    v1::CreateTrainingJobRequest request = CoreDriver::CreateRequest("job-a");
    request.mutable_training_job()->mutable_spec()->set_priority(priority);
    const absl::Status status = d.Call<v1::TrainingJob>(request).status();
    ASSERT_EQ(Details(status).fields.size(), 1) << status;
    EXPECT_EQ(Details(status).fields[0].field, "training_job.spec.priority");
  }
}

}  // namespace
}  // namespace ringmaster::coordinator
