// Which queue's job is next.
#include "coordinator/core/fair_order.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/coordinator/core/core_driver.h"
#include "tests/coordinator/core/job_requests.h"
#include "tests/coordinator/core/queue_requests.h"
#include "tests/coordinator/core/running_jobs.h"

namespace ringmaster::coordinator {
namespace {

using ::testing::ElementsAre;

void MakeQueue(CoreDriver& d, const std::string& id, int32_t weight) {
  ASSERT_TRUE(CreateQueue(d, id, [&](v1::Queue& q) { q.set_weight(weight); }).ok());
}

// Those that wait, the next one first.
Names Waiting(CoreDriver& d) {
  std::vector<const v1::TrainingJob*> jobs = d.Core().Jobs("projects/-");
  std::erase_if(jobs, [](const v1::TrainingJob* job) {
    return job->status().state() != v1::TrainingJobStatus::QUEUED;
  });
  std::sort(jobs.begin(), jobs.end(), [](const auto* one, const auto* other) {
    return one->status().pending_reason().queue_position() <
           other->status().pending_reason().queue_position();
  });
  Names names;
  for (const auto* job : jobs) names.push_back(job->name().substr(job->name().rfind('/') + 1));
  return names;
}

// All workers, called a, b, c..., are busy with one job of the default queue.
void Occupy(CoreDriver& d, int workers) {
  for (int i = 0; i < workers; ++i) {
    const char name = static_cast<char>('a' + i);
    d.Hello(std::string(1, name), name);
  }
  ASSERT_TRUE(Submit(d, "busy", 0, workers).ok());
  d.Form("busy");
}

void EndBusy(CoreDriver& d, int workers) {
  ASSERT_TRUE(Cancel(d, "busy").ok());
  for (int rank = 0; rank < workers; ++rank) d.Aborted("busy", rank);
}

TEST(FairOrderTest, OfTwoQueuesTheOneThatHoldsLessForItsWeightIsNext) {
  CoreDriver d;
  MakeQueue(d, "one", 1);
  MakeQueue(d, "three", 3);
  Occupy(d, 4);
  for (int i = 1; i <= 2; ++i) {
    for (const char* queue : {"one", "three"}) {
      ASSERT_TRUE(SubmitTo(d, queue, absl::StrCat(queue, "-", i)).ok());
    }
  }
  for (int i = 3; i <= 6; ++i) ASSERT_TRUE(SubmitTo(d, "three", absl::StrCat("three-", i)).ok());
  // The older one of equal shares: 0 and 0; 1 and 3/3.
  EXPECT_THAT(Waiting(d), ElementsAre("one-1", "three-1", "three-2", "three-3", "one-2", "three-4",
                                      "three-5", "three-6"));
  // All are looked at again.
  ASSERT_TRUE(SubmitTo(d, "default", "anybody", -1).ok());
  EXPECT_THAT(Waiting(d), ElementsAre("one-1", "three-1", "three-2", "three-3", "one-2", "three-4",
                                      "three-5", "three-6", "anybody"));
  EndBusy(d, 4);
  EXPECT_THAT(Waiting(d), ElementsAre("one-2", "three-4", "three-5", "three-6", "anybody"));
  // What the last three hold now decides, whatever the coordinator.
  d.Start();
  d.Tick();
  EXPECT_THAT(Waiting(d), ElementsAre("one-2", "three-4", "three-5", "three-6", "anybody"));
}

TEST(FairOrderTest, WhatQueuesHoldDecides) {
  CoreDriver d;
  MakeQueue(d, "large", 1);
  MakeQueue(d, "small", 1);
  for (int i = 0; i < 4; ++i) d.Hello(std::string(1, static_cast<char>('a' + i)), 'a' + i);
  ASSERT_TRUE(SubmitTo(d, "large", "large-1", 0, 3).ok());
  ASSERT_TRUE(SubmitTo(d, "small", "small-1").ok());
  ASSERT_TRUE(SubmitTo(d, "large", "large-2").ok());
  ASSERT_TRUE(SubmitTo(d, "small", "small-2").ok());
  EXPECT_EQ(d.Job("small-2").status().pending_reason().queue_position(), 1) << "the reply says so";
  EXPECT_THAT(Waiting(d), ElementsAre("small-2", "large-2"));
  d.Form("small-1");
  ASSERT_TRUE(Cancel(d, "small-1").ok());
  d.Aborted("small-1", 0);
  EXPECT_EQ(d.StateOf("small-2"), "STARTING");
  EXPECT_THAT(Waiting(d), ElementsAre("large-2"));
}

TEST(FairOrderTest, PrioritiesGoBeforeShares) {
  CoreDriver d;
  MakeQueue(d, "one", 1);
  MakeQueue(d, "two", 1000);
  Occupy(d, 2);
  ASSERT_TRUE(SubmitTo(d, "two", "two-a").ok());
  ASSERT_TRUE(SubmitTo(d, "one", "one-a", 1).ok());
  ASSERT_TRUE(SubmitTo(d, "one", "one-b", 1).ok());
  EXPECT_THAT(Waiting(d), ElementsAre("one-a", "one-b", "two-a"));
}

// However many jobs the other one has, and however soon the next comes.
TEST(FairOrderTest, AQueueWithManyJobsDoesNotStarveAnother) {
  CoreDriver d;
  MakeQueue(d, "many", 1);
  MakeQueue(d, "few", 1);
  Occupy(d, 2);
  ASSERT_TRUE(SubmitTo(d, "many", "many-0").ok());
  ASSERT_TRUE(SubmitTo(d, "few", "pair", 0, 2).ok());
  for (int i = 1; i < 50; ++i) ASSERT_TRUE(SubmitTo(d, "many", absl::StrCat("many-", i)).ok());
  EXPECT_THAT(Waiting(d)[1], "pair");
  EndBusy(d, 2);
  EXPECT_EQ(d.StateOf("many-0"), "STARTING");
  EXPECT_EQ(d.StateOf("pair"), "QUEUED");
  EXPECT_EQ(d.StateOf("many-1"), "QUEUED") << "the other worker is kept";
  d.Form("many-0");
  ASSERT_TRUE(Cancel(d, "many-0").ok());
  d.Aborted("many-0", 0);
  EXPECT_EQ(d.StateOf("pair"), "STARTING");
}

TEST(FairOrderTest, WhoCanNotBePlacedHasNoShareOfIt) {
  CoreDriver d;
  MakeQueue(d, "one", 1);
  MakeQueue(d, "two", 1);
  Occupy(d, 2);
  ASSERT_TRUE(SubmitTo(d, "one", "too-large", 0, 50).ok());
  ASSERT_TRUE(SubmitTo(d, "one", "one-a").ok());
  ASSERT_TRUE(SubmitTo(d, "two", "two-a").ok());
  EXPECT_THAT(Waiting(d), ElementsAre("too-large", "one-a", "two-a"));
}

TEST(FairOrderTest, AnotherWeightActsAtOnce) {
  CoreDriver d;
  MakeQueue(d, "one", 1);
  MakeQueue(d, "two", 1);
  Occupy(d, 2);
  for (const char* id : {"1", "2", "3"}) {
    for (const char* queue : {"one", "two"}) {
      ASSERT_TRUE(SubmitTo(d, queue, absl::StrCat(queue, "-", id)).ok());
    }
  }
  EXPECT_THAT(Waiting(d), ElementsAre("one-1", "two-1", "one-2", "two-2", "one-3", "two-3"));
  ASSERT_TRUE(UpdateQueue(d, "two", [](v1::Queue& q) { q.set_weight(10); }).ok());
  EXPECT_THAT(Waiting(d), ElementsAre("one-1", "two-1", "two-2", "two-3", "one-2", "one-3"));
}

TEST(FairOrderTest, WeightsAreBounded) {
  CoreDriver d;
  EXPECT_EQ(GetQueue(d, "default")->weight(), 1);
  for (const int32_t weight : {-1, 1'000'001}) {
    const auto edit = [&](v1::Queue& q) { q.set_weight(weight); };
    const absl::Status status = CreateQueue(d, "a", edit).status();
    ASSERT_EQ(Details(status).fields.size(), 1) << status;
    EXPECT_EQ(Details(status).fields[0].field, "queue.weight");
  }
}

}  // namespace
}  // namespace ringmaster::coordinator
