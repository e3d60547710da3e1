#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "ringmaster/v1/worker_service.grpc.pb.h"

namespace ringmaster::worker {

// A real gRPC server on a loopback port of the kernel's choice that does nothing by itself: the
// test takes what workers send and says what is answered.
class FakeCoordinator final : public v1::WorkerService::Service {
 public:
  struct Heard {
    // Number of the stream, from 1 in the order of their arrival; 0 for ReportFault.
    int stream = 0;
    v1::WorkerReport report;
    v1::ReportFaultRequest fault;
  };

  FakeCoordinator() { Start(0); }
  ~FakeCoordinator() override { Stop(); }

  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }

  // As a crash does: every stream breaks, nobody answers any more.
  void Stop() {
    if (server_ == nullptr) {
      return;
    }
    BreakStreams();
    server_->Shutdown(absl::ToChronoTime(absl::Now()));
    server_->Wait();
    server_.reset();
  }
  // On the same port.
  void Restart() { Start(port_); }

  void BreakStreams() {
    absl::MutexLock lock(&mutex_);
    for (auto& [number, stream] : streams_) {
      stream.context->TryCancel();
    }
  }

  // From now on every stream ends with `status` at once.
  void Refuse(const grpc::Status& status) {
    absl::MutexLock lock(&mutex_);
    refusal_ = status;
  }

  // The next report, in order of arrival; nothing after 10 s.
  std::optional<Heard> Next() {
    absl::MutexLock lock(&mutex_);
    const auto any = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !heard_.empty(); };
    if (!mutex_.AwaitWithTimeout(absl::Condition(&any), absl::Seconds(10))) {
      return std::nullopt;
    }
    Heard heard = std::move(heard_.front());
    heard_.pop_front();
    return heard;
  }
  bool NothingHeard() {
    absl::MutexLock lock(&mutex_);
    return heard_.empty();
  }

  void Send(int stream, const v1::Directive& directive) {
    absl::MutexLock lock(&mutex_);
    const auto found = streams_.find(stream);
    if (found != streams_.end()) {
      found->second.stream->Write(directive);
    }
  }

 private:
  using Stream = grpc::ServerReaderWriter<v1::Directive, v1::WorkerReport>;
  struct OpenStream {
    grpc::ServerContext* context = nullptr;
    Stream* stream = nullptr;
  };

  void Start(int port) {
    grpc::ServerBuilder builder;
    // A second server on the port must fail, not share it.
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.AddListeningPort(absl::StrCat("127.0.0.1:", port), grpc::InsecureServerCredentials(),
                             &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }

  grpc::Status Session(grpc::ServerContext* context, Stream* stream) override {
    int number = 0;
    {
      absl::MutexLock lock(&mutex_);
      if (!refusal_.ok()) {
        return refusal_;
      }
      number = ++last_stream_;
      streams_[number] = {context, stream};
    }
    v1::WorkerReport report;
    while (stream->Read(&report)) {
      absl::MutexLock lock(&mutex_);
      heard_.push_back({.stream = number, .report = report});
    }
    absl::MutexLock lock(&mutex_);
    streams_.erase(number);
    return grpc::Status::OK;
  }

  grpc::Status ReportFault(grpc::ServerContext*, const v1::ReportFaultRequest* request,
                           v1::ReportFaultResponse*) override {
    absl::MutexLock lock(&mutex_);
    heard_.push_back({.fault = *request});
    return grpc::Status::OK;
  }

  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
  absl::Mutex mutex_;
  grpc::Status refusal_ ABSL_GUARDED_BY(mutex_);
  int last_stream_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<int, OpenStream> streams_ ABSL_GUARDED_BY(mutex_);
  std::deque<Heard> heard_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ringmaster::worker
