#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/security/credentials.h"
#include "ringmaster/v1/worker_service.grpc.pb.h"

namespace ringmaster::worker {

// How to reach the coordinator.
struct CoordinatorAddress {
  // "host:port" or "unix:PATH".
  std::string target;
  // PEM files. All empty: plaintext. `tls_ca` set: TLS, trusting this authority; certificate and
  // key are optional.
  std::string tls_ca;
  std::string tls_cert;
  std::string tls_key;
  // Holds the worker's token; empty: none. Read again for each stream.
  std::string token_file;
};

// Makes channels to one coordinator. A fresh channel for every attempt keeps gRPC's own reconnect
// back-off (at least 100 ms, doubling) out of the way, and takes up TLS files that were replaced.
// Immutable, thread-safe.
class ChannelFactory {
 public:
  // InvalidArgument when the address is empty, or a file is missing or cannot be read.
  static absl::StatusOr<ChannelFactory> Create(const CoordinatorAddress& address);
  std::shared_ptr<grpc::Channel> NewChannel() const;
  const std::string& target() const { return address_.target; }

 private:
  ChannelFactory(CoordinatorAddress address, std::shared_ptr<grpc::ChannelCredentials> credentials)
      : address_(std::move(address)), credentials_(std::move(credentials)) {}
  CoordinatorAddress address_;
  // For when the files cannot be read, as while they are being replaced.
  std::shared_ptr<grpc::ChannelCredentials> credentials_;
};

// The worker's one stream to the coordinator, opened again whenever it breaks: at once the first
// time, then after 20 ms, doubling to 1 s, with jitter, until a stream lived for a second: one that
// is refused right away is no better than none. Two threads: one connects and reads, one writes.
//
// Streams are numbered from 1. Events come from the reading thread, in order: up(n),
// directive(n)..., down(n), up(n + 1)... A report belongs to a stream; one for a stream that is
// gone is dropped, so that nothing precedes the Hello of the next one.
class CoordinatorClient {
 public:
  // Called on the reading thread; they must not block for long, nor call into the client except
  // Send.
  struct Events {
    std::function<void(int64_t stream)> up;
    std::function<void(v1::Directive directive)> directive;
    // `reason` is for the log.
    std::function<void(const absl::Status& reason)> down;
  };

  CoordinatorClient(ChannelFactory channels, Events events);
  // Breaks the stream and joins the threads, within about 200 ms.
  ~CoordinatorClient();
  CoordinatorClient(const CoordinatorClient&) = delete;
  CoordinatorClient& operator=(const CoordinatorClient&) = delete;

  // Queues a report; never blocks. Any thread.
  void Send(int64_t stream, v1::WorkerReport report);

  // Waits until everything queued has been handed to the transport and half-closes the stream, so
  // that the coordinator has read all of it when it ends the call; gives up after `patience`. For a
  // Goodbye.
  void Finish(absl::Duration patience);

 private:
  using Stream = grpc::ClientReaderWriter<v1::WorkerReport, v1::Directive>;

  void ReadLoop();
  void WriteLoop();
  // One stream from connecting to its end. *up becomes how long it was open; unchanged if it never
  // was.
  absl::Status RunStream(absl::Duration* up);
  absl::Status Connect(grpc::Channel& channel);
  // False when the stream broke. `last`: half-close it afterwards.
  static bool WriteBatch(Stream& stream, const std::deque<v1::WorkerReport>& batch, bool last);
  void Pause(absl::Duration duration);

  const ChannelFactory channels_;
  const Events events_;

  std::mutex mutex_;
  // Of anything that the mutex guards.
  std::condition_variable changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool finishing_ ABSL_GUARDED_BY(mutex_) = false;
  int64_t stream_number_ ABSL_GUARDED_BY(mutex_) = 0;
  // Null between two streams. The reader destroys it only while `writing_` is false.
  Stream* stream_ ABSL_GUARDED_BY(mutex_) = nullptr;
  grpc::ClientContext* context_ ABSL_GUARDED_BY(mutex_) = nullptr;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<v1::WorkerReport> queue_ ABSL_GUARDED_BY(mutex_);

  std::thread reader_;
  std::thread writer_;
};

}  // namespace ringmaster::worker
