#include <functional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "tests/coordinator/services/test_server.h"

namespace ringmaster::coordinator {
namespace {

using ::testing::HasSubstr;

using Code = absl::StatusCode;

// What a bad request gets: the code, the reason in ErrorInfo, and the first field in BadRequest.
struct Refusal {
  const char* name;
  Code code;
  const char* reason;
  const char* field;
  std::function<absl::Status()> call;
};

class RefusalsTest : public ServerTest {
 protected:
  using Spec = v1::TrainingJobSpec;

  // A create whose spec is good but for what `spoil` does to it.
  std::function<absl::Status()> WithSpec(std::function<void(Spec&)> spoil) {
    return [this, spoil = std::move(spoil)] {
      v1::CreateTrainingJobRequest request = CreateRequest("spoiled");
      spoil(*request.mutable_training_job()->mutable_spec());
      return Create(request).status();
    };
  }
  std::function<absl::Status()> WithRequest(
      std::function<void(v1::CreateTrainingJobRequest&)> spoil) {
    return [this, spoil = std::move(spoil)] {
      v1::CreateTrainingJobRequest request = CreateRequest("spoiled");
      spoil(request);
      return Create(request).status();
    };
  }
  std::function<absl::Status()> List(std::function<void(v1::ListTrainingJobsRequest&)> spoil) {
    return [this, spoil = std::move(spoil)] {
      v1::ListTrainingJobsRequest request;
      spoil(request);
      v1::ListTrainingJobsResponse reply;
      return Call(&v1::JobService::Stub::ListTrainingJobs, jobs_, request, &reply);
    };
  }
  std::function<absl::Status()> Update(const std::string& id, const std::string& path) {
    return [this, id, path] {
      v1::UpdateTrainingJobRequest request;
      request.mutable_training_job()->set_name(Name(id));
      request.mutable_update_mask()->add_paths(path);
      v1::TrainingJob reply;
      return Call(&v1::JobService::Stub::UpdateTrainingJob, jobs_, request, &reply);
    };
  }
  std::string PageTokenOfAnotherRequest() {
    v1::ListTrainingJobsRequest request;
    request.set_page_size(1);
    request.add_states(v1::TrainingJobStatus::QUEUED);
    v1::ListTrainingJobsResponse reply;
    EXPECT_TRUE(Call(&v1::JobService::Stub::ListTrainingJobs, jobs_, request, &reply).ok());
    EXPECT_FALSE(reply.next_page_token().empty());
    return reply.next_page_token();
  }

  void Check(const std::vector<Refusal>& cases) {
    for (const Refusal& c : cases) {
      const absl::Status status = c.call();
      EXPECT_EQ(status.code(), c.code) << c.name << ": " << status;
      const ErrorDetails details = Details(status);
      EXPECT_EQ(details.domain, kErrorDomain) << c.name;
      EXPECT_EQ(details.reason, c.reason) << c.name << ": " << status.message();
      if (*c.field == '\0') continue;
      ASSERT_FALSE(details.fields.empty()) << c.name << ": " << status.message();
      EXPECT_EQ(details.fields[0].field, c.field) << c.name << ": " << status.message();
      EXPECT_FALSE(details.fields[0].description.empty()) << c.name;
      EXPECT_THAT(std::string(status.message()), HasSubstr(c.field)) << c.name;
    }
  }
};

TEST_F(RefusalsTest, BadSpecs) {
  constexpr char kField[] = "INVALID_FIELD";
  Check({
      {"no model", Code::kInvalidArgument, kField, "training_job.spec.model",
       WithSpec([](Spec& s) { s.clear_model(); })},
      {"unknown preset", Code::kInvalidArgument, kField, "training_job.spec.model.preset",
       WithSpec([](Spec& s) { s.mutable_model()->set_preset("tinny"); })},
      {"negative layers", Code::kInvalidArgument, kField, "training_job.spec.model.layers",
       WithSpec([](Spec& s) { s.mutable_model()->set_layers(-1); })},
      {"no data", Code::kInvalidArgument, kField, "training_job.spec.data.paths",
       WithSpec([](Spec& s) { s.mutable_data()->clear_paths(); })},
      {"no sequence length", Code::kInvalidArgument, kField,
       "training_job.spec.data.sequence_length",
       WithSpec([](Spec& s) { s.mutable_data()->set_sequence_length(0); })},
      {"all is validation", Code::kInvalidArgument, kField,
       "training_job.spec.data.validation_fraction",
       WithSpec([](Spec& s) { s.mutable_data()->set_validation_fraction(0.75); })},
      {"no steps", Code::kInvalidArgument, kField, "training_job.spec.steps",
       WithSpec([](Spec& s) { s.set_steps(0); })},
      {"too many steps", Code::kInvalidArgument, kField, "training_job.spec.steps",
       WithSpec([](Spec& s) { s.set_steps(2'000'000'000); })},
      {"negative ring", Code::kInvalidArgument, kField, "training_job.spec.parallel.ring_size",
       WithSpec([](Spec& s) { s.mutable_parallel()->set_ring_size(-2); })},
      {"learning rate 0", Code::kInvalidArgument, kField, "training_job.spec.optimizer.lr",
       WithSpec([](Spec& s) { s.mutable_optimizer()->set_lr(0); })},
      {"beta 1", Code::kInvalidArgument, kField, "training_job.spec.optimizer.beta2",
       WithSpec([](Spec& s) { s.mutable_optimizer()->set_beta2(1); })},
      {"relative directory", Code::kInvalidArgument, kField, "training_job.spec.directory",
       WithSpec([](Spec& s) { s.set_directory("jobs/bible"); })},
      {"missing checkpoint", Code::kInvalidArgument, kField, "training_job.spec.init_from",
       WithSpec([](Spec& s) { s.set_init_from("/nowhere"); })},
      {"relative checkpoint", Code::kInvalidArgument, kField, "training_job.spec.resume_from",
       WithSpec([](Spec& s) { s.set_resume_from("here"); })},
      {"no time to run", Code::kInvalidArgument, kField, "training_job.spec.max_runtime",
       WithSpec([](Spec& s) { s.mutable_max_runtime(); })},
      {"less than no time", Code::kInvalidArgument, kField, "training_job.spec.max_runtime",
       WithSpec([](Spec& s) { s.mutable_max_runtime()->set_seconds(-1); })},
      {"unknown enum value", Code::kInvalidArgument, kField, "training_job.spec.precision",
       WithSpec([](Spec& s) { s.set_precision(static_cast<v1::Precision>(77)); })},
  });
}

TEST_F(RefusalsTest, BadShapesNameTheNearestValidValues) {
  const absl::Status status = WithSpec([](Spec& s) { s.mutable_model()->set_heads(7); })();
  EXPECT_EQ(status.code(), Code::kInvalidArgument) << status;
  const ErrorDetails details = Details(status);
  EXPECT_EQ(details.reason, "INVALID_SHAPE");
  ASSERT_FALSE(details.shapes.empty());
  EXPECT_FALSE(details.shapes[0].nearest_valid().empty());
  EXPECT_FALSE(details.shapes[0].rule().empty());
  Check({
      {"rate over segment", Code::kInvalidArgument, "INVALID_SHAPE",
       "training_job.spec.attention.dilation_rates[0]", WithSpec([](Spec& s) {
         s.mutable_attention()->add_segment_lengths(4);
         s.mutable_attention()->add_dilation_rates(8);
       })},
      {"batch does not divide", Code::kInvalidArgument, "INVALID_SHAPE",
       "training_job.spec.batch.global_sequences", WithSpec([](Spec& s) {
         s.mutable_parallel()->set_replicas(2);
         s.mutable_batch()->set_global_sequences(3);
       })},
  });
}

TEST_F(RefusalsTest, BadRequests) {
  ASSERT_TRUE(Create(CreateRequest("taken")).ok());
  ASSERT_TRUE(Create(CreateRequest("taken-too")).ok());
  ASSERT_TRUE(Create(CreateRequest("ended")).ok());
  ASSERT_TRUE(Cancel("ended").ok());
  const std::string token = PageTokenOfAnotherRequest();
  constexpr char kField[] = "INVALID_FIELD";
  using Create = v1::CreateTrainingJobRequest;
  using ListJobs = v1::ListTrainingJobsRequest;
  Check({
      {"no job", Code::kInvalidArgument, kField, "training_job.spec",
       WithRequest([](Create& r) { r.clear_training_job(); })},
      {"bad id", Code::kInvalidArgument, kField, "training_job_id",
       WithRequest([](Create& r) { r.set_training_job_id("Bible"); })},
      {"short id", Code::kInvalidArgument, kField, "training_job_id",
       WithRequest([](Create& r) { r.set_training_job_id("abc"); })},
      {"bad parent", Code::kInvalidArgument, kField, "parent",
       WithRequest([](Create& r) { r.set_parent("default"); })},
      {"all projects", Code::kInvalidArgument, kField, "parent",
       WithRequest([](Create& r) { r.set_parent("projects/-"); })},
      {"bad request id", Code::kInvalidArgument, kField, "request_id",
       WithRequest([](Create& r) { r.set_request_id("1"); })},
      {"bad label", Code::kInvalidArgument, kField, "training_job.labels",
       WithRequest([](Create& r) { (*r.mutable_training_job()->mutable_labels())["A B"] = ""; })},
      {"bad priority", Code::kInvalidArgument, kField, "training_job.spec.priority",
       WithRequest(
           [](Create& r) { r.mutable_training_job()->mutable_spec()->set_priority(1001); })},
      {"id taken", Code::kAlreadyExists, "TRAINING_JOB_EXISTS", "",
       WithRequest([](Create& r) { r.set_training_job_id("taken"); })},
      {"page size", Code::kInvalidArgument, kField, "page_size",
       List([](ListJobs& r) { r.set_page_size(-1); })},
      {"page token", Code::kInvalidArgument, kField, "page_token",
       List([](ListJobs& r) { r.set_page_token("x"); })},
      {"foreign page token", Code::kInvalidArgument, kField, "page_token",
       List([&](ListJobs& r) { r.set_page_token(token); })},
      {"unknown state", Code::kInvalidArgument, kField, "states",
       List([](ListJobs& r) { r.add_states(static_cast<v1::TrainingJobStatus::State>(99)); })},
      {"list of a bad parent", Code::kInvalidArgument, kField, "parent",
       List([](ListJobs& r) { r.set_parent("x/y"); })},
      {"get nothing", Code::kNotFound, "RESOURCE_NOT_FOUND", "",
       [this] { return Get("none").status(); }},
      {"get a bad name", Code::kInvalidArgument, kField, "name",
       [this] { return Get("a/b").status(); }},
      {"cancel nothing", Code::kNotFound, "RESOURCE_NOT_FOUND", "",
       [this] { return Cancel("none").status(); }},
      {"cancel with an old etag", Code::kAborted, "ETAG_MISMATCH", "",
       [this] { return Cancel("taken", "\"0\"").status(); }},
      {"update nothing", Code::kNotFound, "RESOURCE_NOT_FOUND", "", Update("none", "labels")},
      {"update a bad name", Code::kInvalidArgument, kField, "training_job.name",
       Update("a/b", "labels")},
      {"update a spec", Code::kInvalidArgument, kField, "update_mask",
       Update("taken", "spec.steps")},
      {"pause nothing", Code::kNotFound, "RESOURCE_NOT_FOUND", "",
       [this] { return Change(&v1::JobService::Stub::PauseTrainingJob, "none").status(); }},
      {"resume nothing", Code::kNotFound, "RESOURCE_NOT_FOUND", "",
       [this] { return Change(&v1::JobService::Stub::ResumeTrainingJob, "none").status(); }},
      {"pause what has ended", Code::kFailedPrecondition, "JOB_ENDED", "",
       [this] { return Change(&v1::JobService::Stub::PauseTrainingJob, "ended").status(); }},
      {"delete what goes on", Code::kFailedPrecondition, "JOB_NOT_ENDED", "",
       [this] { return Delete("taken"); }},
      {"delete nothing", Code::kNotFound, "RESOURCE_NOT_FOUND", "",
       [this] { return Delete("none"); }},
  });
}

TEST_F(RefusalsTest, OtherServices) {
  constexpr char kField[] = "INVALID_FIELD";
  const auto import = [this](const std::string& directory) {
    return [this, directory] {
      v1::ImportCheckpointRequest request;
      request.set_directory(directory);
      v1::Checkpoint reply;
      return Call(&v1::CheckpointService::Stub::ImportCheckpoint, checkpoints_, request, &reply);
    };
  };
  const auto logs = [this](const std::string& name, int tail, int rank = 0) {
    return [this, name, tail, rank] {
      grpc::ClientContext context;
      v1::StreamTrainingJobLogsRequest request;
      request.set_name(name);
      request.set_tail_lines(tail);
      request.add_ranks(rank);
      v1::StreamTrainingJobLogsResponse reply;
      auto reader = jobs_->StreamTrainingJobLogs(&context, request);
      EXPECT_FALSE(reader->Read(&reply));
      return FromGrpc(reader->Finish());
    };
  };
  const auto operate = [this](auto method, const auto& request) {
    return [this, method, request] {
      v1::Worker reply;
      return Call(method, cluster_, request, &reply);
    };
  };
  using Cluster = v1::ClusterService::Stub;
  v1::CordonWorkerRequest cordon;
  cordon.set_name("workers/none");
  v1::DrainWorkerRequest drain;
  drain.set_name("workers/none");
  v1::UncordonWorkerRequest uncordon;
  uncordon.set_name("workers/none");
  Check({
      {"cordon nobody", Code::kNotFound, "RESOURCE_NOT_FOUND", "",
       operate(&Cluster::CordonWorker, cordon)},
      {"drain nobody", Code::kNotFound, "RESOURCE_NOT_FOUND", "",
       operate(&Cluster::DrainWorker, drain)},
      {"uncordon nobody", Code::kNotFound, "RESOURCE_NOT_FOUND", "",
       operate(&Cluster::UncordonWorker, uncordon)},
      {"cordon a nameless worker", Code::kInvalidArgument, kField, "name",
       operate(&Cluster::CordonWorker, v1::CordonWorkerRequest())},
      {"drain a nameless worker", Code::kInvalidArgument, kField, "name",
       operate(&Cluster::DrainWorker, v1::DrainWorkerRequest())},
      {"uncordon a nameless worker", Code::kInvalidArgument, kField, "name",
       operate(&Cluster::UncordonWorker, v1::UncordonWorkerRequest())},
      {"no queue", Code::kNotFound, "RESOURCE_NOT_FOUND", "",
       [this] {
         v1::GetQueueRequest request;
         request.set_name("queues/none");
         v1::Queue reply;
         return Call(&v1::QueueService::Stub::GetQueue, queues_, request, &reply);
       }},
      {"a queue's priority", Code::kInvalidArgument, kField, "queue.max_priority",
       [this] {
         v1::CreateQueueRequest request;
         request.set_queue_id("a");
         request.mutable_queue()->set_max_priority(1001);
         v1::Queue reply;
         return Call(&v1::QueueService::Stub::CreateQueue, queues_, request, &reply);
       }},
      {"a queue's update", Code::kNotFound, "RESOURCE_NOT_FOUND", "",
       [this] {
         v1::UpdateQueueRequest request;
         request.mutable_queue()->set_name("queues/none");
         v1::Queue reply;
         return Call(&v1::QueueService::Stub::UpdateQueue, queues_, request, &reply);
       }},
      {"the default queue", Code::kFailedPrecondition, "DEFAULT_QUEUE", "",
       [this] {
         v1::DeleteQueueRequest request;
         request.set_name("queues/default");
         google::protobuf::Empty reply;
         return Call(&v1::QueueService::Stub::DeleteQueue, queues_, request, &reply);
       }},
      {"queues of no project", Code::kInvalidArgument, kField, "parent",
       [this] {
         v1::ListQueuesRequest request;
         request.set_parent("default");
         v1::ListQueuesResponse reply;
         return Call(&v1::QueueService::Stub::ListQueues, queues_, request, &reply);
       }},
      {"a job of no queue", Code::kPermissionDenied, "QUEUE_NOT_OPEN", "",
       WithSpec([](Spec& s) { s.set_queue("none"); })},
      {"no worker", Code::kNotFound, "RESOURCE_NOT_FOUND", "",
       [this] {
         v1::GetWorkerRequest request;
         request.set_name("workers/none");
         v1::Worker reply;
         return Call(&v1::ClusterService::Stub::GetWorker, cluster_, request, &reply);
       }},
      {"checkpoints of nothing", Code::kNotFound, "RESOURCE_NOT_FOUND", "",
       [this] {
         v1::ListCheckpointsRequest request;
         request.set_parent(Name("none"));
         v1::ListCheckpointsResponse reply;
         return Call(&v1::CheckpointService::Stub::ListCheckpoints, checkpoints_, request, &reply);
       }},
      {"import nothing", Code::kInvalidArgument, kField, "directory", import("")},
      {"import from nowhere", Code::kInvalidArgument, kField, "directory", import("/nowhere")},
      {"import a relative path", Code::kInvalidArgument, kField, "directory", import("here")},
      {"logs of nothing", Code::kNotFound, "RESOURCE_NOT_FOUND", "", logs(Name("none"), 0)},
      {"negative tail", Code::kInvalidArgument, kField, "tail_lines", logs(Name("none"), -1)},
      {"negative rank", Code::kInvalidArgument, kField, "ranks", logs(Name("none"), 0, -1)},
      {"estimate without a spec", Code::kInvalidArgument, kField, "spec",
       [this] {
         v1::EstimateTrainingJobResponse reply;
         return Call(&v1::JobService::Stub::EstimateTrainingJob, jobs_,
                     v1::EstimateTrainingJobRequest(), &reply);
       }},
      {"exit of a nameless worker", Code::kInvalidArgument, kField, "worker",
       [this] {
         v1::ReportFaultResponse reply;
         return Call(&v1::WorkerService::Stub::ReportFault, workers_, v1::ReportFaultRequest(),
                     &reply);
       }},
  });
}

}  // namespace
}  // namespace ringmaster::coordinator
