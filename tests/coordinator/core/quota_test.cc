// How many workers the jobs of a queue may hold together.
#include "coordinator/core/quota.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/coordinator/core/core_driver.h"
#include "tests/coordinator/core/job_requests.h"
#include "tests/coordinator/core/queue_requests.h"
#include "tests/coordinator/core/running_jobs.h"

namespace ringmaster::coordinator {
namespace {

using ::testing::HasSubstr;

void MakeQueue(CoreDriver& d, const std::string& id, int32_t max_workers) {
  ASSERT_TRUE(CreateQueue(d, id, [&](v1::Queue& q) { q.set_max_workers(max_workers); }).ok());
}

void SetQuota(CoreDriver& d, const std::string& id, int32_t max_workers) {
  const auto edit = [&](v1::Queue& q) { q.set_max_workers(max_workers); };
  ASSERT_TRUE(UpdateQueue(d, id, edit, {"max_workers"}).ok());
}

// Workers a, b, c...
void Attach(CoreDriver& d, int count) {
  for (int i = 0; i < count; ++i) {
    const char name = static_cast<char>('a' + i);
    d.Hello(std::string(1, name), name);
  }
}

void ExpectWaits(CoreDriver& d, const std::string& id, const std::string& code,
                 const std::string& why = "") {
  EXPECT_EQ(d.StateOf(id), "QUEUED") << id;
  EXPECT_EQ(d.Job(id).status().pending_reason().code(), code) << id;
  EXPECT_THAT(d.Job(id).status().pending_reason().message(), HasSubstr(why)) << id;
}

TEST(QuotaTest, AJobThatWouldPassItWaitsWithNumbers) {
  CoreDriver d;
  MakeQueue(d, "a", 3);
  Attach(d, 6);
  ASSERT_TRUE(SubmitTo(d, "a", "job-a", 0, 2).ok());
  EXPECT_EQ(d.StateOf("job-a"), "STARTING");
  const auto waits = SubmitTo(d, "a", "job-b", 0, 2);
  EXPECT_EQ(waits->status().pending_reason().message(),
            "needs 2 workers; of the 3 that jobs of queues/a may hold together 2 are held");
  EXPECT_EQ(waits->status().pending_reason().queue_position(), 1);
  ExpectWaits(d, "job-b", kWaitingForQuota);
  CoreSnapshot snapshot = d.Core().Snapshot(d.now());
  EXPECT_EQ(snapshot.waiting, (std::map<std::string, int64_t>{{kWaitingForQuota, 1}}));
  const QueueUse use = snapshot.queues["a"];
  EXPECT_EQ(use.pending_jobs, 1);
  EXPECT_EQ(use.admitted_jobs, 1);
  EXPECT_EQ(use.held_workers, 2);
  EXPECT_EQ(use.max_workers, 3);
  EXPECT_EQ(snapshot.queues["default"].max_workers, 0);
  // It holds back nobody else.
  ASSERT_TRUE(Submit(d, "other", -5, 4).ok());
  EXPECT_EQ(d.StateOf("other"), "STARTING");
  ASSERT_TRUE(Cancel(d, "other").ok());
  for (int rank : {0, 1, 2, 3}) d.Aborted("other", rank);
  // Nor does it wait for longer than it has to.
  d.Form("job-a");
  ASSERT_TRUE(Cancel(d, "job-a").ok());
  ExpectWaits(d, "job-b", kWaitingForQuota, "2 are held");
  for (int rank : {0, 1}) d.Aborted("job-a", rank);
  EXPECT_EQ(d.StateOf("job-b"), "STARTING");
}

TEST(QuotaTest, RingsThatFormHoldTheirWorkers) {
  CoreDriver d;
  MakeQueue(d, "a", 1);
  Attach(d, 2);
  ASSERT_TRUE(SubmitTo(d, "a", "job-a").ok());
  ASSERT_TRUE(SubmitTo(d, "a", "job-b").ok());
  EXPECT_EQ(d.StateOf("job-a"), "STARTING");
  ExpectWaits(d, "job-b", kWaitingForQuota);
  // Whichever coordinator looks at it.
  d.Start();
  Attach(d, 2);
  ExpectWaits(d, "job-b", kWaitingForQuota, "1 are held");
}

// What is left of the quota is for the first one: else small jobs could starve a large one.
TEST(QuotaTest, WithinAQueueTheOrderIsKept) {
  CoreDriver d;
  MakeQueue(d, "a", 3);
  Attach(d, 6);
  ASSERT_TRUE(SubmitTo(d, "a", "first", 0, 2).ok());
  ASSERT_TRUE(SubmitTo(d, "a", "large", 0, 2).ok());
  ASSERT_TRUE(SubmitTo(d, "a", "small", 0, 1).ok());
  ExpectWaits(d, "large", kWaitingForQuota);
  ExpectWaits(d, "small", kWaitingForQuota, "2 are held, and jobs before it need 2");
  // A higher one goes before.
  ASSERT_TRUE(SubmitTo(d, "a", "higher", 1, 1).ok());
  EXPECT_EQ(d.StateOf("higher"), "STARTING");
}

TEST(QuotaTest, WhoeverWaitsForWorkersKeepsItsPlaceInTheQuota) {
  CoreDriver d;
  MakeQueue(d, "a", 2);
  Attach(d, 3);
  ASSERT_TRUE(Submit(d, "busy", 0, 2).ok());
  ASSERT_TRUE(SubmitTo(d, "a", "large", 0, 2).ok());
  ExpectWaits(d, "large", "WORKERS_BUSY");
  ASSERT_TRUE(SubmitTo(d, "a", "small", 0, 1).ok());
  ExpectWaits(d, "small", kWaitingForQuota, "0 are held, and jobs before it need 2");
  // All are looked at again.
  ASSERT_TRUE(Submit(d, "anybody", 0, 1).ok());
  ExpectWaits(d, "small", kWaitingForQuota, "0 are held, and jobs before it need 2");
}

TEST(QuotaTest, WhoNeedsMoreThanAllOfItHoldsUpNobody) {
  CoreDriver d;
  MakeQueue(d, "a", 2);
  Attach(d, 4);
  ASSERT_TRUE(SubmitTo(d, "a", "large", 9, 3).ok());
  ASSERT_TRUE(SubmitTo(d, "a", "small", 0, 1).ok());
  ExpectWaits(d, "large", kWaitingForQuota, "needs 3 workers; of the 2 ");
  ExpectWaits(d, "large", kWaitingForQuota, "never");
  EXPECT_EQ(d.StateOf("small"), "STARTING");
  SetQuota(d, "a", 4);
  EXPECT_EQ(d.StateOf("large"), "STARTING");
}

TEST(QuotaTest, WhatNoWorkersAreThereForNeedsNoQuota) {
  CoreDriver d;
  MakeQueue(d, "a", 4);
  Attach(d, 2);
  ASSERT_TRUE(SubmitTo(d, "a", "large", 9, 4).ok());
  for (const char* id : {"small-1", "small-2"}) {
    ASSERT_TRUE(SubmitTo(d, "a", id, 0, 1).ok());
    ExpectWaits(d, "large", "NOT_ENOUGH_WORKERS");
    EXPECT_EQ(d.StateOf(id), "STARTING");
  }
}

TEST(QuotaTest, NothingIsStoppedForALoweredOne) {
  CoreDriver d;
  MakeQueue(d, "a", 0);
  Attach(d, 4);
  ASSERT_TRUE(SubmitTo(d, "a", "job-a", 0, 2).ok());
  d.Form("job-a");
  d.Heard("a");
  SetQuota(d, "a", 1);
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  EXPECT_EQ(d.Heard("a"), "");
  ASSERT_TRUE(SubmitTo(d, "a", "job-b").ok());
  ExpectWaits(d, "job-b", kWaitingForQuota, "of the 1 that jobs of queues/a may hold together 2");
  // Nor is a recovery held back.
  d.Exit("a", 9);
  d.Aborted("job-a", d.WorkerAt("job-a", 0) == "a" ? 1 : 0);
  EXPECT_EQ(d.StateOf("job-a"), "RECOVERING");
  EXPECT_EQ(d.Job("job-a").status().generation(), 2);
  // Paused, it holds nothing; resumed, it waits like others.
  d.Form("job-a", CoreDriver::Held(0));
  ASSERT_TRUE(Pause(d, "job-a").ok());
  d.FinishRing("job-a", 1);
  EXPECT_EQ(d.StateOf("job-a"), "PAUSED");
  EXPECT_EQ(d.StateOf("job-b"), "STARTING");
  ASSERT_TRUE(Resume(d, "job-a").ok());
  ExpectWaits(d, "job-a", kWaitingForQuota, "needs 2 workers; of the 1 ");
}

TEST(QuotaTest, ARaisedOneActsAtOnce) {
  CoreDriver d;
  MakeQueue(d, "a", 1);
  Attach(d, 2);
  ASSERT_TRUE(SubmitTo(d, "a", "job-a").ok());
  ASSERT_TRUE(SubmitTo(d, "a", "job-b").ok());
  ExpectWaits(d, "job-b", kWaitingForQuota);
  SetQuota(d, "a", 2);
  EXPECT_EQ(d.StateOf("job-b"), "STARTING");
  EXPECT_EQ(GetQueue(d, "a")->held_workers(), 2);
}

TEST(QuotaTest, TheDefaultQueueMayHaveOne) {
  CoreDriver d;
  SetQuota(d, "default", 1);
  Attach(d, 2);
  ASSERT_TRUE(Submit(d, "job-a", 0).ok());
  ASSERT_TRUE(Submit(d, "job-b", 0).ok());
  ExpectWaits(d, "job-b", kWaitingForQuota, "queues/default");
}

TEST(QuotaTest, NegativeIsNone) {
  CoreDriver d;
  const auto edit = [](v1::Queue& q) { q.set_max_workers(-1); };
  const absl::Status status = CreateQueue(d, "a", edit).status();
  ASSERT_EQ(Details(status).fields.size(), 1) << status;
  EXPECT_EQ(Details(status).fields[0].field, "queue.max_workers");
}

// A job that runs in a queue, on workers of its own.
void RunIn(CoreDriver& d, const std::string& queue, const std::string& id, int32_t priority,
           int ring, char first) {
  for (int i = 0; i < ring; ++i) {
    const char name = static_cast<char>(first + i);
    d.Hello(std::string(1, name), name);
  }
  ASSERT_TRUE(SubmitTo(d, queue, id, priority, ring).ok());
  d.Form(id);
  d.Step(id, 1);
  ASSERT_EQ(d.StateOf(id), "RUNNING");
}

TEST(QuotaTest, WhoIsHeldBackStopsJobsOfItsOwnQueueOnly) {
  struct {
    const char* name;
    // Of job-a and job-c, which are of the queue; job-b, of another one, has the lowest priority.
    int32_t lower, higher;
    int idle;
    int32_t quota;
    int needs;
    Names stopped;
  } const rows[] = {
      {"the lowest of its own", 0, 1, 0, 2, 1, {"job-a"}},
      {"idle workers are no quota", 0, 1, 3, 2, 1, {"job-a"}},
      {"as many as it takes", 0, 1, 0, 2, 2, {"job-a", "job-c"}},
      {"what is left counts", 0, 1, 1, 3, 2, {"job-a"}},
      {"what is left, of workers that are idle", 0, 1, 0, 3, 2, {"job-a", "job-c"}},
      {"none of the same priority", 5, 5, 2, 2, 1, {}},
      {"none in vain", 0, 5, 0, 2, 2, {}},
      {"nor for one that is too large", 0, 1, 3, 2, 3, {}},
      {"within the quota, of all", 0, 1, 0, 3, 1, {"job-b"}},
  };
  for (const auto& row : rows) {
    SCOPED_TRACE(row.name);
    CoreDriver d;
    MakeQueue(d, "a", row.quota);
    RunIn(d, "a", "job-a", row.lower, 1, 'a');
    RunIn(d, "default", "job-b", -9, 1, 'b');
    RunIn(d, "a", "job-c", row.higher, 1, 'c');
    for (int i = 0; i < row.idle; ++i) {
      d.Hello(std::string(1, static_cast<char>('d' + i)), static_cast<char>('d' + i));
    }
    ASSERT_TRUE(SubmitTo(d, "a", "waits", 5, row.needs).ok());
    EXPECT_EQ(Pausing(d), row.stopped);
    // Another look stops no more.
    ASSERT_TRUE(Submit(d, "anybody", -10, 50).ok());
    EXPECT_EQ(Pausing(d), row.stopped);
  }
}

// Else each job that ends would tell every watcher of all that wait.
TEST(QuotaTest, NumbersOfPlacesFarBehindAreNotTold) {
  CoreDriver d;
  MakeQueue(d, "a", 1);
  Attach(d, 1);
  ASSERT_TRUE(SubmitTo(d, "a", "runs").ok());
  ASSERT_TRUE(SubmitTo(d, "a", "last", -1).ok());
  const std::string before = d.Job("last").status().pending_reason().message();
  const std::string last = d.Job("last").name();
  int told = 0;
  for (int i = 0; i < 150; ++i) {
    ASSERT_TRUE(SubmitTo(d, "a", absl::StrCat("job-", i)).ok());
    for (const JobChange& change : d.last().changes) told += change.name == last ? 1 : 0;
  }
  EXPECT_NE(d.Job("last").status().pending_reason().message(), before);
  EXPECT_EQ(d.Job("last").status().pending_reason().queue_position(), 151);
  EXPECT_GT(told, 90);
  EXPECT_LE(told, 101);
}

// What one ring frees is enough for both.
TEST(QuotaTest, TwoThatWaitShareWhatOneFrees) {
  CoreDriver d;
  MakeQueue(d, "a", 4);
  RunIn(d, "a", "lower", 0, 2, 'a');
  RunIn(d, "a", "next", 1, 2, 'c');
  ASSERT_TRUE(SubmitTo(d, "a", "first", 5, 1).ok());
  ASSERT_TRUE(SubmitTo(d, "a", "second", 5, 1).ok());
  EXPECT_EQ(Pausing(d), Names{"lower"});
  ASSERT_TRUE(SubmitTo(d, "a", "three", 5, 1).ok());
  EXPECT_EQ(Pausing(d), (Names{"lower", "next"}));
}

// What is held beyond a lowered quota would have to be free as well.
TEST(QuotaTest, NobodyStopsInVainForALoweredOne) {
  for (const int32_t lowered : {3, 4}) {
    CoreDriver d;
    MakeQueue(d, "a", 0);
    RunIn(d, "a", "lower", 0, 2, 'a');
    RunIn(d, "a", "high", 9, 2, 'c');
    SetQuota(d, "a", lowered);
    ASSERT_TRUE(SubmitTo(d, "a", "waits", 5, 2).ok());
    EXPECT_EQ(Pausing(d), lowered == 4 ? Names{"lower"} : Names{});
  }
}

TEST(QuotaTest, WhatItStoppedMakesItsQuota) {
  CoreDriver d;
  MakeQueue(d, "a", 2);
  RunIn(d, "a", "lower", 0, 2, 'a');
  d.Hello("c", 'c');
  ASSERT_TRUE(SubmitTo(d, "a", "higher", 1, 2).ok());
  EXPECT_EQ(Pausing(d), Names{"lower"});
  ExpectWaits(d, "higher", kWaitingForQuota);
  d.FinishRing("lower", 2);
  EXPECT_EQ(d.StateOf("higher"), "STARTING");
  ExpectWaits(d, "lower", kWaitingForQuota, "2 are held");
}

// The ring broke while it stopped for a job that has to wait for its quota by now.
TEST(QuotaTest, ForALoweredOneNoJobOfAnotherQueueStops) {
  CoreDriver d;
  MakeQueue(d, "a", 0);
  RunIn(d, "default", "lower", 0, 2, 'a');
  ASSERT_TRUE(SubmitTo(d, "a", "higher", 1, 2).ok());
  EXPECT_EQ(Pausing(d), Names{"lower"});
  d.Exit("a", 9);
  d.Hello("c", 'c');
  SetQuota(d, "a", 1);
  ExpectWaits(d, "higher", kWaitingForQuota);
  d.Aborted("lower", d.WorkerAt("lower", 0) == "a" ? 1 : 0, CoreDriver::Held(1));
  d.Form("lower", CoreDriver::Held(1));
  EXPECT_EQ(d.StateOf("lower"), "RUNNING");
}

TEST(QuotaTest, BehindOneThatStoppedNobodyNobodyIsStopped) {
  CoreDriver d;
  MakeQueue(d, "a", 2);
  RunIn(d, "a", "lower", 0, 1, 'a');
  RunIn(d, "a", "alike", 2, 1, 'b');
  d.Hello("c", 'c');
  d.Hello("d", 'd');
  ASSERT_TRUE(SubmitTo(d, "a", "large", 2, 2).ok());
  EXPECT_EQ(Pausing(d), Names());
  ASSERT_TRUE(SubmitTo(d, "a", "small", 1, 1).ok());
  EXPECT_EQ(Pausing(d), Names());
  d.Advance(absl::Seconds(1));
  EXPECT_EQ(Pausing(d), Names());
}

}  // namespace
}  // namespace ringmaster::coordinator
