#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "coordinator/services/call.h"
#include "proto/stream_header.h"
#include "ringmaster/v1/job_service.pb.h"

namespace ringmaster::coordinator {

// What is streamed out of a job's directory. Used by one thread at a time, which may block on the
// disk.
template <typename Response>
class RecordSource {
 public:
  virtual ~RecordSource() = default;
  // Fills in the next message; false when there is nothing more for now.
  virtual bool Next(Response* response) = 0;
};

// How often a followed job is looked at again.
inline constexpr absl::Duration kFollowInterval = absl::Milliseconds(250);

// One call that streams records of a job: reads on a disk thread, writes, and with `follow` looks
// again until the job has ended and everything is read. Owned by whoever works for it: gRPC, a disk
// thread or the loop.
template <typename Response>
class RecordStream : public grpc::ServerWriteReactor<Response>,
                     public std::enable_shared_from_this<RecordStream<Response>> {
 public:
  using Open = std::function<std::unique_ptr<RecordSource<Response>>(const v1::TrainingJob&)>;

  // `caller`: as Access::Admit() names it; the stream ends with its token.
  RecordStream(const ServiceContext& services, grpc::CallbackServerContext* context, Method method,
               std::string caller, std::string job, bool follow, Open open)
      : services_(services),
        context_(context),
        method_(method),
        caller_(std::move(caller)),
        job_(std::move(job)),
        follow_(follow),
        open_(std::move(open)) {}

  void Begin() {
    self_ = this->shared_from_this();
    AskForJob();
  }

  void OnWriteDone(bool ok) override {
    if (ok) {
      PumpOnDisk();
    } else {
      End(absl::CancelledError("the client is gone"));
    }
  }

  // Whoever works for the call sees it and ends the call.
  void OnCancel() override { cancelled_ = true; }

  void OnDone() override {
    CountCall(*services_.metrics, method_, end_);
    self_.reset();
  }

 private:
  void AskForJob() {
    v1::GetTrainingJobRequest request;
    request.set_name(job_);
    services_.loop->Call(std::move(request), std::nullopt, absl::InfiniteFuture(),
                         [self = this->shared_from_this()](absl::StatusOr<ApiResponse> reply) {
                           self->OnJob(std::move(reply));
                         });
  }

  void OnJob(absl::StatusOr<ApiResponse> reply) {
    if (reply.ok()) {
      const auto& job = std::get<v1::TrainingJob>(*reply);
      const auto state = job.status().state();
      ended_ = state == v1::TrainingJobStatus::SUCCEEDED ||
               state == v1::TrainingJobStatus::FAILED || state == v1::TrainingJobStatus::CANCELLED;
      if (source_ == nullptr) {
        source_ = open_(job);
        // Without it, a client could not tell a quiet job from a coordinator that is gone.
        context_->AddInitialMetadata(kStreamHeader, "open");
        this->StartSendInitialMetadata();
      }
    } else if (source_ != nullptr && absl::IsNotFound(reply.status())) {
      ended_ = true;  // Deleted meanwhile; its files are there still.
    } else {
      End(reply.status());
      return;
    }
    PumpOnDisk();
  }

  void PumpOnDisk() {
    services_.disk->Post([self = this->shared_from_this()] { self->Pump(); });
  }

  void Pump() {
    if (cancelled_) {
      End(absl::CancelledError("the client is gone"));
      return;
    }
    if (const absl::Status status = services_.access->CheckInForce(caller_); !status.ok()) {
      End(status);
      return;
    }
    response_.Clear();
    if (source_->Next(&response_)) {
      this->StartWrite(&response_);
    } else if (follow_ && !ended_) {
      services_.disk->PostAfter(kFollowInterval,
                                [self = this->shared_from_this()] { self->AskForJob(); });
    } else {
      End(absl::OkStatus());
    }
  }

  void End(const absl::Status& status) {
    end_ = status;
    this->Finish(ToGrpc(status));
  }

  const ServiceContext services_;
  grpc::CallbackServerContext* const context_;
  const Method method_;
  const std::string caller_;
  const std::string job_;
  const bool follow_;
  const Open open_;
  // While gRPC may call.
  std::shared_ptr<RecordStream> self_;

  // Handed from one step to the next: only one is under way at a time.
  std::unique_ptr<RecordSource<Response>> source_;
  bool ended_ = false;
  Response response_;
  absl::Status end_;

  std::atomic<bool> cancelled_ = false;
};

}  // namespace ringmaster::coordinator
