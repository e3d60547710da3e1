#include <atomic>
#include <fstream>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "proto/stream_header.h"
#include "tests/coordinator/services/test_server.h"

namespace ringmaster::coordinator {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kUuid[] = "3f2a9c1e-5b7d-4e1a-9c3b-0d6f8a7e5b21";

class JobsTest : public ServerTest {
 protected:
  // The next message of a watch as text.
  static std::string Next(grpc::ClientReader<v1::WatchTrainingJobsResponse>& reader) {
    v1::WatchTrainingJobsResponse message;
    if (!reader.Read(&message)) return "end";
    if (message.has_synced()) return "synced";
    if (message.has_deleted_name()) return "deleted";
    return v1::TrainingJobStatus::State_Name(message.job().status().state());
  }
};

TEST_F(JobsTest, CreateStoresWithEveryDefault) {
  const absl::StatusOr<v1::TrainingJob> created = Create(CreateRequest("bible"));
  ASSERT_TRUE(created.ok()) << created.status();
  EXPECT_EQ(created->name(), Name("bible"));
  EXPECT_FALSE(created->uid().empty());
  EXPECT_EQ(created->status().state(), v1::TrainingJobStatus::QUEUED);
  EXPECT_EQ(created->spec().directory(),
            temporary_.path() + "/shared/default/bible-" + created->uid().substr(0, 8));
  EXPECT_GT(created->spec().model().layers(), 0);
  const absl::StatusOr<v1::TrainingJob> read = Get("bible");
  ASSERT_TRUE(read.ok());
  EXPECT_EQ(read->SerializeAsString(), created->SerializeAsString());
}

TEST_F(JobsTest, RepeatedRequestIdIsOneJobAlsoAfterARestart) {
  v1::CreateTrainingJobRequest request = CreateRequest("");
  request.set_request_id(kUuid);
  const absl::StatusOr<v1::TrainingJob> first = Create(request);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(Create(request)->uid(), first->uid());
  server_.reset();
  Start();
  EXPECT_EQ(Create(request)->uid(), first->uid());
  request.mutable_training_job()->mutable_spec()->set_steps(11);
  const absl::Status reused = Create(request).status();
  EXPECT_EQ(reused.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(Details(reused).reason, "REQUEST_ID_REUSED");
}

TEST_F(JobsTest, ValidateOnlyStoresNothing) {
  v1::CreateTrainingJobRequest request = CreateRequest("bible");
  request.set_validate_only(true);
  const absl::StatusOr<v1::TrainingJob> checked = Create(request);
  ASSERT_TRUE(checked.ok()) << checked.status();
  EXPECT_GT(checked->spec().model().dim(), 0);
  EXPECT_EQ(Get("bible").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(JobsTest, ListsInPagesWithoutGapsOrRepeats) {
  std::set<std::string> want;
  for (int i = 0; i < 25; ++i) want.insert(Create(CreateRequest(absl::StrCat("job-", i)))->name());
  v1::ListTrainingJobsRequest request;
  request.set_page_size(10);
  std::set<std::string> seen;
  std::vector<int> sizes;
  do {
    v1::ListTrainingJobsResponse page;
    ASSERT_TRUE(Call(&v1::JobService::Stub::ListTrainingJobs, jobs_, request, &page).ok());
    sizes.push_back(page.training_jobs_size());
    for (const v1::TrainingJob& job : page.training_jobs())
      EXPECT_TRUE(seen.insert(job.name()).second);
    if (sizes.size() == 1) {
      // Newer and cancelled jobs do not move the pages that follow.
      ASSERT_TRUE(Create(CreateRequest("newer")).ok());
      ASSERT_TRUE(Cancel("job-3").ok());
    }
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  EXPECT_THAT(sizes, ElementsAre(10, 10, 5));
  EXPECT_EQ(seen, want);
}

TEST_F(JobsTest, PagesOfLargeJobsStayBelowWhatClientsAccept) {
  for (int i = 0; i < 8; ++i) {
    v1::CreateTrainingJobRequest request = CreateRequest(absl::StrCat("job-", i));
    for (int path = 0; path < 900; ++path) {
      request.mutable_training_job()->mutable_spec()->mutable_data()->add_paths(
          "/" + std::string(1000, 'x'));
    }
    const absl::Status status = Create(request).status();
    ASSERT_TRUE(status.ok()) << status;
  }
  v1::ListTrainingJobsRequest request;
  request.set_page_size(1000);
  int jobs = 0;
  int pages = 0;
  do {
    v1::ListTrainingJobsResponse page;
    const absl::Status status =
        Call(&v1::JobService::Stub::ListTrainingJobs, jobs_, request, &page);
    ASSERT_TRUE(status.ok()) << status;
    jobs += page.training_jobs_size();
    ++pages;
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  EXPECT_EQ(jobs, 8);
  EXPECT_GT(pages, 2);

  v1::CreateTrainingJobRequest too_large = CreateRequest("too-large");
  too_large.mutable_training_job()->mutable_spec()->mutable_data()->add_paths(
      "/" + std::string(3 << 20, 'x'));
  EXPECT_EQ(Create(too_large).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(JobsTest, CancelAndDelete) {
  const std::string etag = Create(CreateRequest("bible"))->etag();
  EXPECT_EQ(Delete("bible").code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Cancel("bible", "\"other\"").status().code(), absl::StatusCode::kAborted);
  const absl::StatusOr<v1::TrainingJob> cancelled = Cancel("bible", etag);
  ASSERT_TRUE(cancelled.ok()) << cancelled.status();
  EXPECT_EQ(cancelled->status().state(), v1::TrainingJobStatus::CANCELLED);
  EXPECT_TRUE(Cancel("bible").ok());
  EXPECT_TRUE(Delete("bible").ok());
  EXPECT_EQ(Get("bible").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Delete("bible").code(), absl::StatusCode::kNotFound);
}

TEST_F(JobsTest, JobsSurviveARestart) {
  ASSERT_TRUE(Create(CreateRequest("kept")).ok());
  ASSERT_TRUE(Create(CreateRequest("gone")).ok());
  ASSERT_TRUE(Cancel("gone").ok());
  const v1::TrainingJob before = *Get("gone");
  server_.reset();
  Start();
  EXPECT_EQ(Get("kept")->status().state(), v1::TrainingJobStatus::QUEUED);
  EXPECT_EQ(Get("gone")->SerializeAsString(), before.SerializeAsString());
}

TEST_F(JobsTest, WatchShowsSnapshotAndChanges) {
  ASSERT_TRUE(Create(CreateRequest("bible")).ok());
  grpc::ClientContext context;
  v1::WatchTrainingJobsRequest request;
  request.set_name(Name("bible"));
  auto reader = jobs_->WatchTrainingJobs(&context, request);
  EXPECT_EQ(Next(*reader), "QUEUED");
  EXPECT_EQ(Next(*reader), "synced");
  ASSERT_TRUE(Create(CreateRequest("other")).ok());
  ASSERT_TRUE(Cancel("bible").ok());
  std::string last = Next(*reader);
  if (last == "CANCELLING") last = Next(*reader);
  EXPECT_EQ(last, "CANCELLED");
  ASSERT_TRUE(Delete("bible").ok());
  EXPECT_EQ(Next(*reader), "deleted");
  context.TryCancel();
  EXPECT_EQ(Next(*reader), "end");
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(JobsTest, WatchThatIsNotReadIsEnded) {
  ASSERT_TRUE(Create(CreateRequest("bible")).ok());
  grpc::ClientContext context;
  auto reader = jobs_->WatchTrainingJobs(&context, v1::WatchTrainingJobsRequest());
  EXPECT_EQ(Next(*reader), "QUEUED");
  EXPECT_EQ(Next(*reader), "synced");
  // Jobs large enough that the connection's buffers hold only some of the changes.
  const auto evicted = [this] {
    const std::string text = HttpGet(server_->http_address(), "/metrics");
    return text.find("ringmaster_watch_evictions_total{reason=\"slow\"} 1") != std::string::npos;
  };
  v1::CreateTrainingJobRequest request = CreateRequest("");
  for (int path = 0; path < 8; ++path) {
    request.mutable_training_job()->mutable_spec()->mutable_data()->add_paths(
        "/" + std::string(4000, 'x'));
  }
  int jobs = 0;
  while (jobs < 5000 && !(jobs % 20 == 19 && evicted())) {
    ASSERT_TRUE(Create(request).ok());
    ++jobs;
  }
  EXPECT_TRUE(evicted()) << jobs;
  std::string last;
  while ((last = Next(*reader)) != "end") EXPECT_EQ(last, "QUEUED");
  const absl::Status status = FromGrpc(reader->Finish());
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted) << status;
  EXPECT_EQ(Details(status).reason, "WATCH_TOO_SLOW");
}

TEST_F(JobsTest, WatchOfAnUnknownJobEnds) {
  for (const auto& [name, code] : std::vector<std::pair<std::string, absl::StatusCode>>{
           {Name("none"), absl::StatusCode::kNotFound},
           {"none", absl::StatusCode::kInvalidArgument}}) {
    grpc::ClientContext context;
    v1::WatchTrainingJobsRequest request;
    request.set_name(name);
    auto reader = jobs_->WatchTrainingJobs(&context, request);
    EXPECT_EQ(Next(*reader), "end");
    const absl::Status status = FromGrpc(reader->Finish());
    EXPECT_EQ(status.code(), code) << name;
    EXPECT_FALSE(Details(status).reason.empty());
  }
}

TEST_F(JobsTest, StreamsMetricsAndLogsOfAJob) {
  const v1::TrainingJob job = *Create(CreateRequest("bible"));
  const std::string directory = job.spec().directory();
  std::filesystem::create_directories(directory + "/logs");
  std::ofstream steps(directory + "/steps.jsonl");
  for (int step = 1; step <= 600; ++step) {
    steps << "{\"step\":" << step << ",\"generation\":1,\"loss\":5.5}" << std::endl;
  }
  std::ofstream log(directory + "/logs/rank-0.log");
  log << "2026-01-31T12:00:00.123Z I workers/w g1 one\n2026-01-31T12:00:01.123Z I workers/w g1 two"
      << std::endl;

  grpc::ClientContext metrics_context;
  v1::StreamTrainingJobMetricsRequest metrics_request;
  metrics_request.set_name(job.name());
  metrics_request.set_start_step(3);
  auto metrics = jobs_->StreamTrainingJobMetrics(&metrics_context, metrics_request);
  int64_t next = 3;
  v1::StreamTrainingJobMetricsResponse records;
  while (metrics->Read(&records)) {
    for (const v1::StepRecord& record : records.records()) EXPECT_EQ(record.step(), next++);
  }
  EXPECT_TRUE(metrics->Finish().ok());
  EXPECT_EQ(next, 601);

  // Followed, it ends with the job, with what came meanwhile.
  grpc::ClientContext logs_context;
  v1::StreamTrainingJobLogsRequest logs_request;
  logs_request.set_name(job.name());
  logs_request.set_tail_lines(1);
  logs_request.set_follow(true);
  auto logs = jobs_->StreamTrainingJobLogs(&logs_context, logs_request);
  v1::StreamTrainingJobLogsResponse lines;
  ASSERT_TRUE(logs->Read(&lines));
  EXPECT_THAT(lines.lines(0).text(), HasSubstr("two"));
  log << "2026-01-31T12:00:02.123Z I workers/w g1 three" << std::endl;
  ASSERT_TRUE(logs->Read(&lines));
  EXPECT_THAT(lines.lines(0).text(), HasSubstr("three"));
  ASSERT_TRUE(Cancel("bible").ok());
  EXPECT_FALSE(logs->Read(&lines));
  EXPECT_TRUE(logs->Finish().ok());
}

TEST_F(JobsTest, AStreamOfRecordsIsServedBeforeThereIsOne) {
  ASSERT_TRUE(Create(CreateRequest("bible")).ok());
  const auto served = [this](const std::string& id, auto request, auto open) {
    grpc::ClientContext context;
    // Hangs where the metadata waits for a record.
    context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(30)));
    request.set_name(Name(id));
    request.set_follow(true);
    auto stream = (jobs_.get()->*open)(&context, request);
    return AwaitStream(context, *stream);
  };
  const v1::StreamTrainingJobLogsRequest logs;
  const v1::StreamTrainingJobMetricsRequest metrics;
  EXPECT_TRUE(served("bible", logs, &v1::JobService::Stub::StreamTrainingJobLogs));
  EXPECT_TRUE(served("bible", metrics, &v1::JobService::Stub::StreamTrainingJobMetrics));
  EXPECT_FALSE(served("absent", logs, &v1::JobService::Stub::StreamTrainingJobLogs));
  EXPECT_FALSE(served("absent", metrics, &v1::JobService::Stub::StreamTrainingJobMetrics));
}

TEST_F(JobsTest, FollowerThatLeavesIsNoticed) {
  ASSERT_TRUE(Create(CreateRequest("bible")).ok());
  grpc::ClientContext context;
  v1::StreamTrainingJobLogsRequest request;
  request.set_name(Name("bible"));
  request.set_follow(true);
  auto logs = jobs_->StreamTrainingJobLogs(&context, request);
  context.TryCancel();
  v1::StreamTrainingJobLogsResponse lines;
  EXPECT_FALSE(logs->Read(&lines));
  EXPECT_EQ(logs->Finish().error_code(), grpc::StatusCode::CANCELLED);
  server_.reset();  // Would hang if the stream were forgotten.
}

TEST_F(JobsTest, ImportedCheckpointCanBeStartedFrom) {
  const std::string directory = temporary_.path() + "/checkpoint";
  std::filesystem::create_directories(directory);
  std::ofstream(directory + "/a.safetensors") << "12345";
  std::ofstream(directory + "/manifest.json")
      << R"({"format": "ringmaster-checkpoint-1", "step": 5, "generation": 2, "create_time": "2026-01-31T12:00:00Z",
             "shards": [{"file": "a.safetensors", "rank": 0, "bytes": 5, "xxh3": "0123456789abcdef"}]})";
  v1::ImportCheckpointRequest request;
  request.set_directory(directory);
  v1::Checkpoint imported;
  const absl::Status status =
      Call(&v1::CheckpointService::Stub::ImportCheckpoint, checkpoints_, request, &imported);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(imported.step(), 5);
  v1::GetCheckpointRequest get;
  get.set_name(imported.name());
  v1::Checkpoint read;
  ASSERT_TRUE(Call(&v1::CheckpointService::Stub::GetCheckpoint, checkpoints_, get, &read).ok());
  EXPECT_EQ(read.SerializeAsString(), imported.SerializeAsString());

  v1::CreateTrainingJobRequest create = CreateRequest("bible");
  create.mutable_training_job()->mutable_spec()->set_resume_from(directory);
  EXPECT_TRUE(Create(create).ok());
  create.set_training_job_id("other");
  create.mutable_training_job()->mutable_spec()->set_init_from(directory + "/nowhere");
  const absl::Status missing = Create(create).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kInvalidArgument);
  ASSERT_EQ(Details(missing).fields.size(), 1);
  EXPECT_EQ(Details(missing).fields[0].field, "training_job.spec.init_from");
}

TEST_F(JobsTest, EstimatesDoNotWaitForTheLoop) {
  server_.reset();
  std::atomic<bool> hold = false;
  std::once_flag once;
  absl::Notification held;
  absl::Notification released;
  ServerOptions options = Options();
  options.now = [&] {
    if (hold) {
      std::call_once(once, [&] { held.Notify(); });
      released.WaitForNotification();
    }
    return absl::Now();
  };
  Start(options);
  hold = true;
  // The loop asks for the time at least once a second.
  held.WaitForNotification();
  v1::EstimateTrainingJobRequest request;
  *request.mutable_spec() = CreateRequest("bible").training_job().spec();
  v1::EstimateTrainingJobResponse reply;
  EXPECT_TRUE(Call(&v1::JobService::Stub::EstimateTrainingJob, jobs_, request, &reply).ok());
  EXPECT_GT(reply.parameters(), 0);
  hold = false;
  released.Notify();
  server_.reset();
}

}  // namespace
}  // namespace ringmaster::coordinator
