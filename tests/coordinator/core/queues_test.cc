// Queues as administrators see them: who may submit what.
#include "coordinator/core/queues.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "ringmaster/store/records.pb.h"
#include "tests/coordinator/core/core_driver.h"
#include "tests/coordinator/core/job_requests.h"
#include "tests/coordinator/core/queue_requests.h"

namespace ringmaster::coordinator {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Code = absl::StatusCode;

std::vector<std::string> Listed(CoreDriver& d, const std::string& parent) {
  v1::ListQueuesRequest request;
  request.set_parent(parent);
  std::vector<std::string> names;
  const v1::ListQueuesResponse response = *d.Call<v1::ListQueuesResponse>(request);
  for (const v1::Queue& queue : response.queues()) names.push_back(queue.name());
  return names;
}

TEST(QueuesTest, TheDefaultOneIsThereWithoutLimits) {
  CoreDriver d;
  const auto queue = GetQueue(d, "default");
  ASSERT_TRUE(queue.ok()) << queue.status();
  EXPECT_EQ(queue->max_priority(), 1000);
  EXPECT_TRUE(queue->projects().empty());
  EXPECT_TRUE(d.rows().empty()) << "nobody has edited it";
  d.Create("job-a");
  EXPECT_EQ(d.Job("job-a").spec().queue(), "default");
  EXPECT_EQ(DeleteQueue(d, "default").code(), Code::kFailedPrecondition);
  ASSERT_TRUE(UpdateQueue(d, "default", [](v1::Queue& q) { q.set_max_priority(5); }).ok());
  d.Start();
  EXPECT_EQ(GetQueue(d, "default")->max_priority(), 5);
}

TEST(QueuesTest, WhatIsEditedIsStored) {
  CoreDriver d;
  ASSERT_TRUE(CreateQueue(d, "a", [](v1::Queue& q) {
                q.set_max_priority(-3);
                q.add_projects("projects/vision");
                q.set_held_workers(7);
              }).ok());
  const auto check = [&](int32_t priority, size_t projects) {
    for (int life = 0; life < 2; ++life, d.Start()) {
      const v1::Queue queue = *GetQueue(d, "a");
      EXPECT_EQ(queue.name(), "queues/a");
      EXPECT_EQ(queue.max_priority(), priority);
      EXPECT_EQ(queue.projects_size(), projects);
      EXPECT_EQ(queue.held_workers(), 0) << "OUTPUT_ONLY";
    }
  };
  check(-3, 1);
  ASSERT_TRUE(UpdateQueue(d, "a", [](v1::Queue& q) { q.set_max_priority(0); }).ok());
  check(0, 1);
  ASSERT_TRUE(UpdateQueue(d, "a", [](v1::Queue&) {}).ok());
  check(0, 1);
  ASSERT_TRUE(UpdateQueue(d, "a", [](v1::Queue& q) { q.set_max_priority(9); }, {"projects"}).ok());
  check(0, 0);
  ASSERT_TRUE(UpdateQueue(d, "a", [](v1::Queue& q) { q.add_projects("projects/x"); }, {"*"}).ok());
  check(1000, 1);
  ASSERT_TRUE(DeleteQueue(d, "a").ok());
  for (int life = 0; life < 2; ++life, d.Start()) {
    EXPECT_EQ(GetQueue(d, "a").status().code(), Code::kNotFound);
  }
}

TEST(QueuesTest, Refusals) {
  CoreDriver d;
  ASSERT_TRUE(CreateQueue(d, "a").ok());
  struct Row {
    const char* name;
    absl::Status status;
    Code code;
    const char* field;
  };
  const auto nothing = [](v1::Queue&) {};
  const auto too_high = [](v1::Queue& q) { q.set_max_priority(1001); };
  const auto no_project = [](v1::Queue& q) { q.add_projects("vision"); };
  const auto nameless = [](v1::Queue& q) { q.add_projects(""); };
  const auto many = [](v1::Queue& q) {
    for (int i = 0; i < 257; ++i) q.add_projects("projects/x");
  };
  const std::vector<Row> rows = {
      {"it is there", CreateQueue(d, "a").status(), Code::kAlreadyExists, ""},
      {"no id", CreateQueue(d, "").status(), Code::kInvalidArgument, "queue_id"},
      {"capitals", CreateQueue(d, "A").status(), Code::kInvalidArgument, "queue_id"},
      {"ceiling", CreateQueue(d, "b", too_high).status(), Code::kInvalidArgument,
       "queue.max_priority"},
      {"no project's name", CreateQueue(d, "b", no_project).status(), Code::kInvalidArgument,
       "queue.projects[0]"},
      {"no name", CreateQueue(d, "b", nameless).status(), Code::kInvalidArgument,
       "queue.projects[0]"},
      {"projects", UpdateQueue(d, "a", many).status(), Code::kInvalidArgument, "queue.projects"},
      {"an update's ceiling", UpdateQueue(d, "a", too_high).status(), Code::kInvalidArgument,
       "queue.max_priority"},
      {"not a field", UpdateQueue(d, "a", nothing, {"name"}).status(), Code::kInvalidArgument,
       "update_mask"},
      {"none to update", UpdateQueue(d, "b", nothing).status(), Code::kNotFound, ""},
      {"a name to update", UpdateQueue(d, "B", nothing).status(), Code::kInvalidArgument,
       "queue.name"},
      {"none to get", GetQueue(d, "b").status(), Code::kNotFound, ""},
      {"a name to get", GetQueue(d, "b/c").status(), Code::kInvalidArgument, "name"},
      {"none to delete", DeleteQueue(d, "b"), Code::kNotFound, ""},
  };
  for (const Row& row : rows) {
    EXPECT_EQ(row.status.code(), row.code) << row.name << ": " << row.status;
    if (*row.field == '\0') continue;
    ASSERT_FALSE(Details(row.status).fields.empty()) << row.name << ": " << row.status;
    EXPECT_EQ(Details(row.status).fields[0].field, row.field) << row.name;
  }
}

TEST(QueuesTest, WhileTheStoreIsFullNoneIsEdited) {
  CoreDriver d;
  ASSERT_TRUE(CreateQueue(d, "a").ok());
  d.Core().SetStoreFull(d.now(), true);
  EXPECT_EQ(CreateQueue(d, "b").status().code(), Code::kUnavailable);
  EXPECT_EQ(UpdateQueue(d, "a", [](v1::Queue& q) { q.set_max_priority(1); }).status().code(),
            Code::kUnavailable);
  EXPECT_EQ(DeleteQueue(d, "a").code(), Code::kUnavailable);
  EXPECT_EQ(GetQueue(d, "a")->max_priority(), 1000);
}

TEST(QueuesTest, NoMoreThanSoMany) {
  CoreDriver d;
  for (int i = 1; i < 1024; ++i) ASSERT_TRUE(CreateQueue(d, absl::StrCat("q", i)).ok());
  EXPECT_EQ(CreateQueue(d, "one-more").status().code(), Code::kResourceExhausted);
  ASSERT_TRUE(DeleteQueue(d, "q7").ok());
  EXPECT_TRUE(CreateQueue(d, "one-more").ok());
}

// The answer is the same for a queue that there is not.
TEST(QueuesTest, OnlyItsProjectsSubmitToAQueue) {
  CoreDriver d;
  ASSERT_TRUE(CreateQueue(d, "a", [](v1::Queue& q) { q.add_projects("projects/vision"); }).ok());
  EXPECT_TRUE(SubmitTo(d, "a", "job-a", 0, 1, "projects/vision").ok());
  std::vector<std::string> messages;
  for (const char* queue : {"a", "b"}) {
    const absl::Status status = SubmitTo(d, queue, "job-b").status();
    EXPECT_EQ(status.code(), Code::kPermissionDenied) << status;
    EXPECT_EQ(Details(status).reason, "QUEUE_NOT_OPEN");
    EXPECT_THAT(std::string(status.message()),
                HasSubstr(absl::StrCat("projects/default may submit to no queue '", queue, "'")));
    messages.emplace_back(status.message());
  }
  messages[0].replace(messages[0].find("'a'"), 3, "'b'");
  EXPECT_EQ(messages[0], messages[1]);
  EXPECT_EQ(SubmitTo(d, "A", "job-b").status().code(), Code::kInvalidArgument);
  EXPECT_THAT(Listed(d, ""), ElementsAre("queues/default"));
  EXPECT_THAT(Listed(d, "projects/vision"), ElementsAre("queues/a", "queues/default"));
  EXPECT_THAT(Listed(d, "projects/-"), ElementsAre("queues/a", "queues/default"));
}

TEST(QueuesTest, OneProjectDoesNotSeeTheOthersOfAQueue) {
  CoreDriver d;
  ASSERT_TRUE(CreateQueue(d, "a", [](v1::Queue& q) {
                q.add_projects("projects/vision");
                q.add_projects("projects/speech");
              }).ok());
  v1::ListQueuesRequest request;
  request.set_parent("projects/vision");
  const v1::Queue queue = d.Call<v1::ListQueuesResponse>(request)->queues(0);
  EXPECT_THAT(queue.projects(), ElementsAre("projects/vision"));
}

TEST(QueuesTest, APriorityAboveTheCeilingIsRefused) {
  CoreDriver d;
  ASSERT_TRUE(CreateQueue(d, "a", [](v1::Queue& q) { q.set_max_priority(5); }).ok());
  ASSERT_TRUE(SubmitTo(d, "a", "job-a", 5).ok());
  for (const absl::Status& status :
       {SubmitTo(d, "a", "job-b", 6).status(), Reprioritise(d, "job-a", 6).status()}) {
    ASSERT_EQ(Details(status).fields.size(), 1) << status;
    EXPECT_EQ(Details(status).fields[0].field, "training_job.spec.priority");
    EXPECT_EQ(Details(status).fields[0].description, "is 6; in queues/a it must be at most 5");
  }
  EXPECT_TRUE(Reprioritise(d, "job-a", 4).ok());
  EXPECT_TRUE(Submit(d, "job-b", 6).ok()) << "it is of another queue";
}

TEST(QueuesTest, ALoweredCeilingLowersPriorities) {
  CoreDriver d;
  ASSERT_TRUE(CreateQueue(d, "a").ok());
  ASSERT_TRUE(SubmitTo(d, "a", "job-a", 9).ok());
  ASSERT_TRUE(SubmitTo(d, "a", "job-b", -1).ok());
  ASSERT_TRUE(Submit(d, "job-c", 3).ok());
  ASSERT_TRUE(SubmitTo(d, "a", "ended", 9).ok());
  ASSERT_TRUE(Cancel(d, "ended").ok());
  const std::string etag = d.Job("job-a").etag();
  ASSERT_TRUE(UpdateQueue(d, "a", [](v1::Queue& q) { q.set_max_priority(0); }).ok());
  EXPECT_NE(d.Job("job-a").etag(), etag);
  for (int life = 0; life < 2; ++life, d.Start(), d.Tick()) {
    EXPECT_EQ(d.Job("job-a").spec().priority(), 0);
    EXPECT_EQ(d.Job("job-b").spec().priority(), -1);
    EXPECT_EQ(d.Job("job-c").spec().priority(), 3);
    EXPECT_EQ(d.Job("ended").spec().priority(), 9);
    EXPECT_EQ(d.Job("job-c").status().pending_reason().queue_position(), 1);
    EXPECT_EQ(d.Job("job-a").status().pending_reason().queue_position(), 2);
  }
}

TEST(QueuesTest, AQueueWithJobsThatHaveNotEndedStays) {
  CoreDriver d;
  ASSERT_TRUE(CreateQueue(d, "a").ok());
  ASSERT_TRUE(SubmitTo(d, "a", "job-a").ok());
  ASSERT_TRUE(Pause(d).ok());
  const absl::Status status = DeleteQueue(d, "a");
  EXPECT_EQ(status.code(), Code::kFailedPrecondition) << status;
  EXPECT_EQ(Details(status).reason, "QUEUE_IN_USE");
  ASSERT_TRUE(Cancel(d).ok());
  EXPECT_TRUE(DeleteQueue(d, "a").ok());
  // An ended job may outlive its queue.
  for (int life = 0; life < 2; ++life, d.Start()) {
    EXPECT_EQ(GetQueue(d, "a").status().code(), Code::kNotFound);
    EXPECT_EQ(d.Job("job-a").spec().queue(), "a");
    EXPECT_TRUE(Reprioritise(d, "job-a", 10 + life).ok());
  }
}

TEST(QueuesTest, JobsAreCountedWhereTheyAre) {
  CoreDriver d;
  ASSERT_TRUE(CreateQueue(d, "a").ok());
  const auto expect = [&](int pending, int admitted, int held) {
    const v1::Queue queue = *GetQueue(d, "a");
    EXPECT_EQ(queue.pending_jobs(), pending);
    EXPECT_EQ(queue.admitted_jobs(), admitted);
    EXPECT_EQ(queue.held_workers(), held);
  };
  ASSERT_TRUE(SubmitTo(d, "a", "job-a", 0, 2).ok());
  ASSERT_TRUE(SubmitTo(d, "a", "job-b").ok());
  ASSERT_TRUE(Submit(d, "job-c", 0).ok());
  expect(2, 0, 0);
  d.Hello("a", 'a');
  d.Hello("b", 'b');
  EXPECT_EQ(d.StateOf("job-a"), "QUEUED") << "one has gone to job-b";
  d.Hello("c", 'c');
  d.Hello("d", 'd');
  expect(0, 2, 3);
  d.Form("job-a");
  expect(0, 2, 3);
  d.Start();
  expect(0, 2, 3);
  ASSERT_TRUE(Cancel(d, "job-b").ok());
  expect(0, 2, 3);
}

// Rows of coordinators before there were queues.
TEST(QueuesTest, JobsOfOlderCoordinatorsAreOfTheDefaultOne) {
  CoreDriver d;
  d.RunningPair();
  StoredState stored = d.Stored();
  for (Row& row : stored.rows) {
    ASSERT_EQ(row.table, Table::kJobs);
    store::JobRecord record;
    ASSERT_TRUE(record.ParseFromString(row.value));
    record.mutable_job()->mutable_spec()->clear_queue();
    row.value = record.SerializeAsString();
  }
  const auto core = *Core::Create(CoreDriver::Options(), stored, 9, d.now(), 1);
  ASSERT_EQ(core->Jobs("projects/-").size(), 1);
  EXPECT_EQ(core->Jobs("projects/-")[0]->spec().queue(), "default");
  v1::GetQueueRequest request;
  request.set_name("queues/default");
  const Output output = core->Handle(d.now(), ApiRequest{1, request, std::nullopt});
  EXPECT_EQ(std::get<v1::Queue>(*output.replies[0].response).held_workers(), 2);
}

TEST(QueuesTest, AFieldThatIsNamedTwiceIsSetOnce) {
  CoreDriver d;
  ASSERT_TRUE(CreateQueue(d, "a").ok());
  for (const std::vector<std::string>& mask : std::vector<std::vector<std::string>>{
           {"max_workers", "max_workers"}, {"*", "max_workers"}}) {
    const int32_t wanted = static_cast<int32_t>(mask[0].size());
    ASSERT_TRUE(UpdateQueue(
                    d, "a", [&](v1::Queue& queue) { queue.set_max_workers(wanted); }, mask)
                    .ok());
    EXPECT_EQ(GetQueue(d, "a")->max_workers(), wanted);
  }
}

}  // namespace
}  // namespace ringmaster::coordinator
