#include "coordinator/core/update.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/rpc_status.h"
#include "tests/coordinator/core/core_driver.h"

namespace ringmaster::coordinator {
namespace {

using ::testing::HasSubstr;
using Texts = std::map<std::string, std::string>;

v1::Queue AnyPriority() {
  v1::Queue queue;
  queue.set_max_priority(1000);
  return queue;
}

struct Row {
  const char* name;
  std::vector<std::string> mask;
  Texts update;
  // The labels afterwards; before, they are a=1 and b=2.
  Texts after;
  // Where and why it is refused.
  const char* field = "";
  const char* why = "";
};

TEST(UpdateTest, WhatTheMaskNamesIsChanged) {
  const Texts before = {{"a", "1"}, {"b", "2"}};
  const std::string longest(63, 'x');
  const std::vector<Row> rows = {
      {"nothing", {}, {}, before},
      {"without a mask all", {}, {{"c", "3"}}, {{"c", "3"}}},
      {"all", {"labels"}, {{"c", "3"}}, {{"c", "3"}}},
      {"star", {"*"}, {{"c", "3"}}, {{"c", "3"}}},
      {"all gone", {"labels"}, {}, {}},
      {"one new", {"labels.c"}, {{"c", "3"}}, {{"a", "1"}, {"b", "2"}, {"c", "3"}}},
      {"one other", {"labels.a"}, {{"a", "9"}, {"b", "9"}}, {{"a", "9"}, {"b", "2"}}},
      {"one gone", {"labels.a"}, {{"b", "9"}}, {{"b", "2"}}},
      {"two", {"labels.a", "labels.b"}, {{"b", ""}}, {{"b", ""}}},
      {"as long as may be", {"labels"}, {{longest, longest}}, {{longest, longest}}},
      {"no word", {"labels.A"}, {{"A", "1"}}, before, "training_job.labels", "[a-z0-9_-]"},
      {"no key", {"labels."}, {{"", "1"}}, before, "training_job.labels", "[a-z0-9_-]"},
      {"too long", {"labels"}, {{longest + "x", ""}}, before, "training_job.labels", "63"},
      {"not to be changed", {"spec.steps"}, {}, before, "update_mask", "cannot be changed"},
      {"nor its queue", {"spec.queue"}, {}, before, "update_mask", "cannot be changed"},
      {"nor this", {"name"}, {}, before, "update_mask", "cannot be changed"},
      {"not there", {"label"}, {}, before, "update_mask", "names nothing"},
      {"none to remove", {"labels.A"}, {}, before, "update_mask", "names nothing"},
      {"nor without a key", {"labels."}, {}, before, "update_mask", "names nothing"},
      {"one bad path of two", {"labels.c", "x"}, {{"c", "3"}}, before, "update_mask", "'x'"},
  };
  for (const Row& row : rows) {
    v1::TrainingJob job, update;
    job.mutable_labels()->insert(before.begin(), before.end());
    update.mutable_labels()->insert(row.update.begin(), row.update.end());
    google::protobuf::FieldMask mask;
    for (const std::string& path : row.mask) mask.add_paths(path);
    const absl::Status status = ApplyUpdate(update, mask, AnyPriority(), &job).status();
    EXPECT_EQ(Texts(job.labels().begin(), job.labels().end()), row.after) << row.name;
    EXPECT_EQ(status.ok(), std::string(row.field).empty()) << row.name << ": " << status;
    if (status.ok()) continue;
    ASSERT_EQ(Details(status).fields.size(), 1) << row.name;
    EXPECT_EQ(Details(status).fields[0].field, row.field) << row.name;
    EXPECT_THAT(Details(status).fields[0].description, HasSubstr(row.why)) << row.name;
  }
}

TEST(UpdateTest, NoMoreThanSixtyFour) {
  v1::TrainingJob job, update;
  google::protobuf::FieldMask mask;
  mask.add_paths("labels.one-more");
  for (int i = 0; i < 64; ++i) (*job.mutable_labels())[absl::StrCat("l", i)] = "";
  (*update.mutable_labels())["one-more"] = "";
  EXPECT_FALSE(ApplyUpdate(update, mask, AnyPriority(), &job).ok());
  job.mutable_labels()->erase("l0");
  EXPECT_TRUE(ApplyUpdate(update, mask, AnyPriority(), &job).ok());
}

TEST(UpdateTest, ThePriorityIsChanged) {
  struct {
    const char* name;
    std::vector<std::string> mask;
    int32_t update;
    // Before, it is 5.
    int32_t after;
    const char* field = "";
  } const rows[] = {
      {"by its path", {"spec.priority"}, 7, 7},
      {"to what it was", {"spec.priority"}, 5, 5},
      {"to nothing", {"spec.priority"}, 0, 0},
      {"to less", {"spec.priority"}, -1000, -1000},
      {"to the highest", {"spec.priority"}, 1000, 1000},
      {"with all else", {"*"}, 7, 7},
      {"without a mask", {}, 7, 7},
      {"not by another path", {"labels"}, 7, 5},
      {"too high", {"spec.priority"}, 1001, 5, "training_job.spec.priority"},
      {"too low", {"*"}, -1001, 5, "training_job.spec.priority"},
      {"without a mask too low", {}, -1001, 5, "training_job.spec.priority"},
      {"not a part of it", {"spec.priority.x"}, 7, 5, "update_mask"},
      {"nor the spec", {"spec"}, 7, 5, "update_mask"},
  };
  for (const auto& row : rows) {
    v1::TrainingJob job;
    job.mutable_spec()->set_priority(5);
    v1::TrainingJob update = job;
    update.mutable_spec()->set_priority(row.update);
    google::protobuf::FieldMask mask;
    for (const std::string& path : row.mask) mask.add_paths(path);
    const auto changed = ApplyUpdate(update, mask, AnyPriority(), &job);
    EXPECT_EQ(job.spec().priority(), row.after) << row.name;
    if (changed.ok()) {
      EXPECT_EQ(*row.field, '\0') << row.name;
      EXPECT_EQ(*changed, row.after != 5) << row.name;
      continue;
    }
    ASSERT_EQ(Details(changed.status()).fields.size(), 1) << row.name;
    EXPECT_EQ(Details(changed.status()).fields[0].field, row.field) << row.name;
  }
}

TEST(UpdateTest, WithoutASpecThePriorityStays) {
  for (const bool star : {false, true}) {
    v1::TrainingJob job, update;
    google::protobuf::FieldMask mask;
    if (star) mask.add_paths("*");
    job.mutable_spec()->set_priority(5);
    (*update.mutable_labels())["c"] = "3";
    EXPECT_TRUE(*ApplyUpdate(update, mask, AnyPriority(), &job));
    EXPECT_EQ(job.spec().priority(), 5);
  }
}

TEST(UpdateTest, OfAWholeJobNothingElseMayDiffer) {
  for (const bool star : {false, true}) {
    v1::TrainingJob job, update;
    google::protobuf::FieldMask mask;
    if (star) mask.add_paths("*");
    update.mutable_spec()->set_steps(7);
    const absl::Status status = ApplyUpdate(update, mask, AnyPriority(), &job).status();
    ASSERT_EQ(Details(status).fields.size(), 1) << status;
    EXPECT_EQ(Details(status).fields[0].field, "training_job.spec");
  }
}

TEST(UpdateTest, AJobSentBackWholeIsTaken) {
  CoreDriver d;
  d.Create("job-a");
  v1::UpdateTrainingJobRequest request;
  *request.mutable_training_job() = d.Job("job-a");
  const std::string before = d.Job("job-a").etag();
  (*request.mutable_training_job()->mutable_labels())["team"] = "vision";
  const auto updated = d.Call<v1::TrainingJob>(request);
  ASSERT_TRUE(updated.ok()) << updated.status();
  EXPECT_EQ(updated->labels().at("team"), "vision");
  EXPECT_NE(updated->etag(), before);
  EXPECT_EQ(d.Call<v1::TrainingJob>(request).status().code(), absl::StatusCode::kAborted)
      << "its etag is another by now";
  request.mutable_training_job()->clear_etag();
  request.mutable_training_job()->mutable_spec()->set_steps(11);
  const absl::Status status = d.Call<v1::TrainingJob>(request).status();
  ASSERT_EQ(Details(status).fields.size(), 1) << status;
  EXPECT_EQ(Details(status).fields[0].field, "training_job.spec");
  // It survives.
  d.Start();
  EXPECT_EQ(d.Job("job-a").labels().at("team"), "vision");
}

TEST(UpdateTest, ChangesNothingOfARunningRing) {
  CoreDriver d;
  d.RunningPair();
  d.Heard("a");
  v1::UpdateTrainingJobRequest request;
  request.mutable_training_job()->set_name(d.Job("job-a").name());
  (*request.mutable_training_job()->mutable_labels())["team"] = "vision";
  request.set_request_id("6a7d5f10-3c3c-4b3e-9a53-2f6e0f1f7a03");
  ASSERT_TRUE(d.Call<v1::TrainingJob>(request).ok());
  EXPECT_EQ(d.Heard("a"), "");
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  const std::string etag = d.Job("job-a").etag();
  ASSERT_TRUE(d.Call<v1::TrainingJob>(request).ok());
  EXPECT_EQ(d.Job("job-a").etag(), etag) << "the same request, told again";
  request.clear_request_id();
  ASSERT_TRUE(d.Call<v1::TrainingJob>(request).ok());
  EXPECT_EQ(d.Job("job-a").etag(), etag) << "it changes nothing";
}

}  // namespace
}  // namespace ringmaster::coordinator
