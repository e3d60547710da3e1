#include "worker/client/coordinator_client.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "base/steady_now.h"
#include "base/wait_for.h"
#include "grpcpp/create_channel.h"
#include "proto/client_credentials.h"
#include "proto/rpc_status.h"

namespace ringmaster::worker {
namespace {

constexpr absl::Duration kConnectPatience = absl::Seconds(5);
// How long the connecting thread may not notice that it is to stop.
constexpr absl::Duration kSlice = absl::Milliseconds(100);
constexpr absl::Duration kFirstPause = absl::Milliseconds(20);
// A stream that ended sooner was refused: it counts as an attempt that failed.
constexpr absl::Duration kLongestPause = absl::Seconds(1);

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> CredentialsFor(
    const CoordinatorAddress& address) {
  return ClientCredentials(
      address.target,
      {.ca = address.tls_ca, .certificate = address.tls_cert, .key = address.tls_key},
      {.file = address.token_file});
}

}  // namespace

absl::StatusOr<ChannelFactory> ChannelFactory::Create(const CoordinatorAddress& address) {
  if (address.target.empty()) {
    return absl::InvalidArgumentError("the coordinator's address is empty; give host:port");
  }
  ASSIGN_OR_RETURN(auto credentials, CredentialsFor(address));
  return ChannelFactory(address, std::move(credentials));
}

std::shared_ptr<grpc::Channel> ChannelFactory::NewChannel() const {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  // A coordinator whose host vanished answers nothing; heartbeats are data, so that pings are rare.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5'000);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  // A manifest names every shard of a world.
  arguments.SetMaxReceiveMessageSize(64 << 20);
  // A proxy of the environment would hand the token on in the clear.
  if (address_.tls_ca.empty()) arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return grpc::CreateCustomChannel(address_.target, CredentialsFor(address_).value_or(credentials_),
                                   arguments);
}

CoordinatorClient::CoordinatorClient(ChannelFactory channels, Events events)
    : channels_(std::move(channels)), events_(std::move(events)) {
  reader_ = std::thread([this] { ReadLoop(); });
  writer_ = std::thread([this] { WriteLoop(); });
}

CoordinatorClient::~CoordinatorClient() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
    if (context_ != nullptr) {
      context_->TryCancel();
    }
  }
  reader_.join();
  writer_.join();
}

void CoordinatorClient::Send(int64_t stream, v1::WorkerReport report) {
  const std::lock_guard lock(mutex_);
  if (stream == stream_number_ && stream_ != nullptr) {
    queue_.push_back(std::move(report));
    changed_.notify_all();
  }
}

void CoordinatorClient::Finish(absl::Duration patience) {
  std::unique_lock lock(mutex_);
  finishing_ = true;
  changed_.notify_all();
  WaitFor(changed_, lock, patience, [this] { return stream_ == nullptr; });
  stopping_ = true;
  changed_.notify_all();
}

void CoordinatorClient::Pause(absl::Duration duration) {
  std::unique_lock lock(mutex_);
  WaitFor(changed_, lock, duration, [this] { return stopping_; });
}

void CoordinatorClient::ReadLoop() {
  std::mt19937 random(std::random_device{}());
  std::uniform_real_distribution<double> jitter(0.75, 1.25);
  absl::Duration pause = absl::ZeroDuration();
  while (true) {
    absl::Duration up = absl::ZeroDuration();
    const absl::Status reason = RunStream(&up);
    if (up > absl::ZeroDuration()) {
      events_.down(reason);
    }
    if (up >= kLongestPause) {
      pause = absl::ZeroDuration();
    }
    {
      const std::lock_guard lock(mutex_);
      if (stopping_ || finishing_) {
        return;
      }
    }
    Pause(pause * jitter(random));
    pause = std::clamp(pause * 2, kFirstPause, kLongestPause);
  }
}

absl::Status CoordinatorClient::Connect(grpc::Channel& channel) {
  const absl::Time deadline = SteadyNow() + kConnectPatience;
  grpc_connectivity_state state = channel.GetState(/*try_to_connect=*/true);
  while (state != GRPC_CHANNEL_READY) {
    if (state == GRPC_CHANNEL_TRANSIENT_FAILURE || state == GRPC_CHANNEL_SHUTDOWN) {
      return absl::UnavailableError(absl::StrCat("no coordinator answers at ", channels_.target()));
    }
    channel.WaitForStateChange(state, absl::ToChronoTime(absl::Now() + kSlice));
    state = channel.GetState(true);
    const std::lock_guard lock(mutex_);
    if (stopping_ || SteadyNow() >= deadline) {
      return absl::DeadlineExceededError(absl::StrCat("connecting to ", channels_.target(),
                                                      " took longer than ",
                                                      absl::FormatDuration(kConnectPatience)));
    }
  }
  return absl::OkStatus();
}

absl::Status CoordinatorClient::RunStream(absl::Duration* up) {
  const std::shared_ptr<grpc::Channel> channel = channels_.NewChannel();
  RETURN_IF_ERROR(Connect(*channel));
  const auto stub = v1::WorkerService::NewStub(channel);
  grpc::ClientContext context;
  {
    const std::lock_guard lock(mutex_);
    if (stopping_) {
      return absl::CancelledError("stopping");
    }
    context_ = &context;
  }
  const std::unique_ptr<Stream> stream = stub->Session(&context);
  int64_t number = 0;
  {
    const std::lock_guard lock(mutex_);
    stream_ = stream.get();
    number = ++stream_number_;
    queue_.clear();
    changed_.notify_all();
  }
  const absl::Time start = SteadyNow();
  events_.up(number);
  v1::Directive directive;
  while (stream->Read(&directive)) {
    events_.directive(std::move(directive));
    directive.Clear();
  }
  // Before the call is cancelled, which would hide why the coordinator ended it.
  const absl::Status reason = FromGrpc(stream->Finish());
  {
    std::unique_lock lock(mutex_);
    // A write that the transport does not take must not outlive the stream.
    context.TryCancel();
    changed_.wait(lock, [this] { return !writing_; });
    stream_ = nullptr;
    context_ = nullptr;
    changed_.notify_all();
  }
  *up = SteadyNow() - start;
  return reason;
}

void CoordinatorClient::WriteLoop() {
  while (true) {
    Stream* stream = nullptr;
    int64_t number = 0;
    bool last = false;
    std::deque<v1::WorkerReport> batch;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] {
        return stopping_ || (stream_ != nullptr && (!queue_.empty() || finishing_));
      });
      if (stopping_) {
        return;
      }
      stream = stream_;
      number = stream_number_;
      last = finishing_;
      batch.swap(queue_);
      writing_ = true;
    }
    const bool written = WriteBatch(*stream, batch, last);
    std::unique_lock lock(mutex_);
    writing_ = false;
    changed_.notify_all();
    if (last) {
      return;
    }
    if (!written) {
      // The reader notices and ends the stream; nothing more goes out on it.
      changed_.wait(lock, [this, number] {
        return stopping_ || stream_ == nullptr || stream_number_ != number;
      });
    }
  }
}

bool CoordinatorClient::WriteBatch(Stream& stream, const std::deque<v1::WorkerReport>& batch,
                                   bool last) {
  for (const v1::WorkerReport& report : batch) {
    if (!stream.Write(report)) {
      return false;
    }
  }
  return !last || stream.WritesDone();
}

}  // namespace ringmaster::worker
