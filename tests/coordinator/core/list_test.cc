// Which jobs a list holds, in which order, and its pages.
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "coordinator/core/job_filter.h"
#include "coordinator/core/job_order.h"
#include "tests/coordinator/core/core_driver.h"

namespace ringmaster::coordinator {
namespace {

using Code = absl::StatusCode;

// Labels apart: ThreadSanitizer changes the layout of maps in protobuf's headers, so that its
// library, which is not instrumented, must not be the one to fill them.
v1::TrainingJob JobOf(const std::string& text,
                      const std::map<std::string, std::string>& labels = {}) {
  v1::TrainingJob job;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &job)) << text;
  for (const auto& [key, value] : labels) (*job.mutable_labels())[key] = value;
  return job;
}

// A job of which something of every kind is set.
v1::TrainingJob SomeJob() {
  return JobOf(R"(
    name: "projects/default/trainingJobs/exp-7" uid: "7"
    create_time { seconds: 1767225600 nanos: 500 }
    spec { steps: 100 priority: -5 seed: 18446744073709551615 activation_checkpointing: true dropout: 0.25
           model { preset: "tiny" tied_embeddings: false } parallel { ring_size: 4 }
           recovery { hop_deadline { seconds: 90 } } resume_from: "/a/b" }
    status { state: FAILED failure_class: OUT_OF_MEMORY generation: 3 progress { step: 42 } })",
               {{"team", "vision"}, {"or", "AND \"x\""}});
}

bool Matches(const std::string& filter, const v1::TrainingJob& job = SomeJob()) {
  const auto predicate = ParseJobFilter(filter);
  EXPECT_TRUE(predicate.ok()) << filter << ": " << predicate.status();
  return predicate.ok() && (*predicate)(job);
}

TEST(JobFilterTest, ComparesFieldsOfEveryKind) {
  for (const char* filter : {
           "",
           "  ",
           "state = FAILED",
           "status.state=failed",
           "state != RUNNING",
           "failure_class = OUT_OF_MEMORY",
           "generation >= 3",
           "generation<=3",
           "progress.step > 41",
           "steps < 101",
           "priority = -5",
           "spec.priority < 0",
           "spec.steps = 100",
           "seed = 18446744073709551615",
           "seed > 9223372036854775807",
           "dropout = 0.25",
           "dropout < 1e3",
           "activation_checkpointing = true",
           "model.tied_embeddings = false",
           "model.preset = tiny",
           "parallel.ring_size != 2",
           "recovery.hop_deadline = 1m30s",
           "recovery.hop_deadline > 89s",
           "create_time > 2026-01-01T00:00:00Z",
           "create_time = 2026-01-01T01:00:00.0000005+01:00",
           "create_time < \"2026-01-01T00:00:00.000001Z\"",
           "labels.team = vision",
           "labels.or = \"AND \\\"x\\\"\"",
           "resume_from = /a/b",
           "name = *exp-7",
           "name = projects/default/*",
           "name = */trainingJobs/*",
           "labels.team = *",
           "labels.team != vis",
           "labels.team != *text*",
       }) {
    EXPECT_TRUE(Matches(filter)) << filter;
  }
  for (const char* filter : {
           "state = RUNNING",
           "state != FAILED",
           "generation > 3",
           "steps >= 101",
           "seed < 5",
           "dropout != 0.25",
           "activation_checkpointing = false",
           "model.preset = TINY",
           "create_time <= 2026-01-01T00:00:00Z",
           "name = exp*",
           "labels.team = \"vis*\"",
           "labels.team != vis*",
       }) {
    EXPECT_FALSE(Matches(filter)) << filter;
  }
}

TEST(JobFilterTest, WhatIsUnsetIsNeitherEqualNorDifferent) {
  EXPECT_FALSE(Matches("end_time < 2030-01-01T00:00:00Z"));
  EXPECT_FALSE(Matches("end_time != 2030-01-01T00:00:00Z"));
  EXPECT_FALSE(Matches("labels.site = a"));
  EXPECT_FALSE(Matches("labels.site != a"));
  EXPECT_TRUE(Matches("NOT labels.site = a"));
  EXPECT_FALSE(Matches("optimizer.lr = 0"));
  EXPECT_FALSE(Matches("init_from = \"\""));
  EXPECT_FALSE(Matches("end_time:*"));
  EXPECT_TRUE(Matches("create_time:*"));
  EXPECT_TRUE(Matches("labels:team"));
  EXPECT_FALSE(Matches("labels:site"));
  EXPECT_TRUE(Matches("labels.team:*"));
}

TEST(JobFilterTest, OrBindsMoreTightlyThanAnd) {
  EXPECT_FALSE(Matches("steps = 100 OR steps = 1 AND steps = 1"));
  EXPECT_TRUE(Matches("steps = 1 AND steps = 1 OR steps = 100 OR steps = 2") ==
              Matches("steps = 1 AND (steps = 1 OR steps = 100 OR steps = 2)"));
  EXPECT_TRUE(Matches("steps = 100 OR (steps = 1 AND steps = 1)"));
  EXPECT_TRUE(Matches("-steps = 1 AND NOT (steps = 2 OR state = RUNNING)"));
  EXPECT_TRUE(Matches("((steps=100)AND(state=FAILED))"));
  // Words that begin as the grammar's do.
  EXPECT_TRUE(Matches("labels.or = AND* AND NOT labels.team = OR"));
}

struct Refused {
  const char* filter;
  const char* said;
};

TEST(JobFilterTest, SaysWhereItMakesNoSense) {
  for (const Refused& refused : std::vector<Refused>{
           {"stat = FAILED", "at character 1: a job has no field 'stat'"},
           {"state.x = 1", "at character 1: a job has no field 'state.x'"},
           {"state = FAILD", "at character 9: 'FAILD' is not one of STATE_UNSPECIFIED, QUEUED"},
           {"state > QUEUED", "at character 1: 'state' can be compared by = and != only"},
           {"labels.team < a", "can be compared by = and != only"},
           {"steps = many", "at character 9: 'many' is not a whole number"},
           {"steps = 1.5", "is not a whole number"},
           {"dropout = x", "is not a number"},
           {"activation_checkpointing = 1", "is not true or false"},
           {"create_time > yesterday", "is not a time like"},
           {"recovery.hop_deadline = 5", "is not a duration like"},
           {"spec = 1", "'spec' has fields of its own, like 'spec.model'; name one"},
           {"labels = 1", "'labels' holds several values"},
           {"ranks.worker = 1", "a job has no field 'ranks.worker'"},
           {"steps", "at character 6: one of = != < <= > >= : is wanted"},
           {"steps =", "at character 8: a value is wanted"},
           {"steps = 1 state = FAILED", "at character 11: AND, OR or the end is wanted"},
           {"steps = 1 AND", "at character 14: a field's name is wanted"},
           {"AND steps = 1", "one of = != < <= > >= : is wanted"},
           {"(steps = 1", "at character 11: AND, OR or ) is wanted"},
           {"steps = 1)", "at character 10: AND, OR or the end is wanted"},
           {"labels.team = \"a", "at character 15: the quote does not end"},
           {"steps:5", "at character 7: only * is wanted after :"},
           {"steps:*", "at character 1: 'steps' always has a value; compare it with one"},
           {"NOT NOT steps = 1", "one of = != < <= > >= : is wanted"},
       }) {
    const auto status = ParseJobFilter(refused.filter).status();
    EXPECT_EQ(status.code(), Code::kInvalidArgument) << refused.filter;
    EXPECT_NE(std::string(status.message()).find(refused.said), std::string::npos)
        << refused.filter << ": " << status.message();
    EXPECT_EQ(Details(status).fields[0].field, "filter");
  }
  EXPECT_FALSE(ParseJobFilter(std::string(5000, ' ')).ok());
  std::string many = "steps=1";
  for (int i = 1; i < 32; ++i) many += " OR steps=1";
  EXPECT_TRUE(ParseJobFilter(many).ok());
  EXPECT_FALSE(ParseJobFilter(many + " OR steps=1").ok());
  const std::string deep(60, '('), closed(60, ')');
  EXPECT_FALSE(ParseJobFilter(deep + "steps=1" + closed).ok());
  EXPECT_TRUE(ParseJobFilter(deep.substr(20) + "steps=1" + closed.substr(20)).ok());
}

// Whatever the bytes: an answer, and no crash.
TEST(JobFilterTest, SurvivesAnyBytes) {
  std::mt19937 random(7);
  const std::vector<std::string> pieces = {
      "steps", "=", "!=", "<", "(",     ")",   "\"", "\\", "AND",    "OR", "-", "labels",
      ".",     ":", "*",  " ", "state", "NOT", "1",  "x",  "\u00FC", "\n", "\0"};
  int read = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string filter;
    for (int n = static_cast<int>(random() % 12); n >= 0; --n) {
      filter += pieces[random() % pieces.size()];
    }
    const auto predicate = ParseJobFilter(filter);
    if (predicate.ok()) {
      (*predicate)(SomeJob());
      ++read;
    }
  }
  EXPECT_GT(read, 20);
}

std::vector<std::string> Sorted(const std::string& order, std::vector<v1::TrainingJob> jobs) {
  const auto parsed = JobOrder::Parse(order);
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  std::sort(jobs.begin(), jobs.end(),
            [&](const auto& a, const auto& b) { return parsed->Key(a) < parsed->Key(b); });
  std::vector<std::string> uids;
  for (const auto& job : jobs) uids.push_back(job.uid());
  return uids;
}

TEST(JobOrderTest, OrdersByFieldsOfEveryKind) {
  const std::vector<v1::TrainingJob> jobs = {
      JobOf(R"(uid: "a" create_time { seconds: 1 } spec { steps: 5 dropout: 0.5
               model { preset: "ab" } })",
            {{"x", "2"}}),
      JobOf(R"(uid: "b" create_time { seconds: 2 } spec { steps: -7 dropout: -1
               model { preset: "a" } } end_time { seconds: 9 })"),
      JobOf(R"(uid: "c" create_time { seconds: 3 } spec { steps: 5000000000 dropout: -2.5
               model { preset: "a\000" } } end_time { seconds: 8 })"),
  };
  using Uids = std::vector<std::string>;
  EXPECT_EQ(Sorted("", jobs), (Uids{"c", "b", "a"}));
  EXPECT_EQ(Sorted("create_time", jobs), (Uids{"a", "b", "c"}));
  EXPECT_EQ(Sorted("create_time desc", jobs), (Uids{"c", "b", "a"}));
  EXPECT_EQ(Sorted("steps", jobs), (Uids{"b", "a", "c"}));
  EXPECT_EQ(Sorted(" steps  desc ", jobs), (Uids{"c", "a", "b"}));
  EXPECT_EQ(Sorted("dropout", jobs), (Uids{"c", "b", "a"}));
  EXPECT_EQ(Sorted("model.preset", jobs), (Uids{"b", "c", "a"}));
  EXPECT_EQ(Sorted("model.preset desc", jobs), (Uids{"a", "c", "b"}));
  EXPECT_EQ(Sorted("end_time", jobs), (Uids{"a", "c", "b"}));
  EXPECT_EQ(Sorted("end_time desc", jobs), (Uids{"b", "c", "a"}));
  EXPECT_EQ(Sorted("labels.x desc,steps", jobs), (Uids{"a", "b", "c"}));
  for (const char* order : {"nothing", "steps down", "steps,", "labels", "spec", "steps desc desc",
                            "uid,uid,uid,uid,uid,uid,uid,uid,uid"}) {
    EXPECT_EQ(JobOrder::Parse(order).status().code(), Code::kInvalidArgument) << order;
  }
  EXPECT_EQ(JobOrder::Parse(std::string(2000, ',')).status().code(), Code::kInvalidArgument);
}

TEST(ListTest, PagesThroughAllJobsNewestFirst) {
  CoreDriver d;
  for (int i = 0; i < 7; ++i) d.Create(absl::StrCat("job-", i));
  v1::ListTrainingJobsRequest request;
  request.set_page_size(3);
  std::vector<std::string> seen;
  int pages = 0;
  do {
    const auto page = d.Call<v1::ListTrainingJobsResponse>(request);
    ASSERT_TRUE(page.ok()) << page.status();
    for (const auto& job : page->training_jobs()) seen.push_back(job.name());
    request.set_page_token(page->next_page_token());
    ++pages;
    // A job that comes meanwhile does not move the pages.
    d.Advance(absl::Milliseconds(250));
    d.Create(absl::StrCat("late-", pages));
  } while (!request.page_token().empty());
  EXPECT_EQ(pages, 3);
  EXPECT_EQ(seen.size(), 7);
  EXPECT_EQ(std::set<std::string>(seen.begin(), seen.end()).size(), 7);

  request.set_page_token("nonsense");
  EXPECT_EQ(d.Call<v1::ListTrainingJobsResponse>(request).status().code(), Code::kInvalidArgument);
  request.clear_page_token();
  request.set_page_token(d.Call<v1::ListTrainingJobsResponse>(request)->next_page_token());
  request.add_states(v1::TrainingJobStatus::QUEUED);
  const auto other = d.Call<v1::ListTrainingJobsResponse>(request);
  EXPECT_EQ(Details(other.status()).fields[0].field, "page_token");
  request.set_page_size(-1);
  EXPECT_EQ(d.Call<v1::ListTrainingJobsResponse>(request).status().code(), Code::kInvalidArgument);
}

TEST(ListTest, PagesKeepFilterAndOrder) {
  CoreDriver d;
  for (int i = 0; i < 40; ++i) d.Create(absl::StrCat("job-", i), /*ring=*/1 + i % 5);
  for (const char* order :
       {"", "parallel.ring_size desc", "name", "parallel.ring_size,name desc"}) {
    v1::ListTrainingJobsRequest request;
    request.set_filter("parallel.ring_size >= 2 AND name = *job-* AND NOT name = *-7");
    request.set_order_by(order);
    request.set_page_size(1000);
    std::vector<std::string> all, paged;
    const auto whole = d.Call<v1::ListTrainingJobsResponse>(request);
    ASSERT_TRUE(whole.ok()) << whole.status();
    for (const auto& job : whole->training_jobs()) {
      all.push_back(job.name());
    }
    request.set_page_size(6);
    do {
      const auto page = d.Call<v1::ListTrainingJobsResponse>(request);
      ASSERT_TRUE(page.ok()) << page.status();
      EXPECT_FALSE(page->training_jobs().empty());
      for (const auto& job : page->training_jobs()) paged.push_back(job.name());
      request.set_page_token(page->next_page_token());
    } while (!request.page_token().empty());
    EXPECT_EQ(all.size(), 31u) << order;
    EXPECT_EQ(paged, all) << order;
    request.set_page_token(d.Call<v1::ListTrainingJobsResponse>(request)->next_page_token());
    request.set_order_by("uid");
    EXPECT_EQ(Details(d.Call<v1::ListTrainingJobsResponse>(request).status()).fields[0].field,
              "page_token");
  }
}

}  // namespace
}  // namespace ringmaster::coordinator
