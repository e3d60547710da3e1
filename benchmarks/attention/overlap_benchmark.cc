// Does a rank compute while rows travel? One rank of a ring passes forward and backward over its
// share of a sequence, causal, bf16, against an exchange that takes as long as it is told to:
//   overlap_benchmark [--shape=16x128] [--branches=W:R,...] [--ranks=4] [--rank=2] TOKENS...
// TOKENS of the whole sequence. The copy engine brings what arrives from the host, all zeros, and
// then more bytes until the exchange has taken its share of the pass's own time: none, half, all,
// or twice; no multiprocessor has a part in it. Prints one JSON object a case and share:
// milliseconds of forward and of forward and backward (median of ten after a second), and what each
// took for the longer of computation and exchange, which is 1 where they overlap fully.
// Computation alone is timed before and after the others, and the smaller counts.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "attention/plan/plan.h"
#include "benchmarks/attention/arguments.h"
#include "benchmarks/attention/rank_passes.h"

namespace ringmaster::attention {
namespace {

using kernels::Check;

struct Arguments {
  HeadShape shape;
  std::vector<Branch> branches = {{2048, 1},    {8192, 4},     {32768, 16},
                                  {131072, 64}, {524288, 256}, {2097152, 1024}};
  int ranks = 4;
  int rank = 2;
  std::vector<int64_t> lengths;
};

// Brings rows from nobody, in a given time, on a stream of its own.
class PacedExchange : public GroupedExchange {
 public:
  PacedExchange(int rank, int ranks) : rank_(rank), ranks_(ranks) {
    constexpr size_t kBytes = size_t{1} << 28;
    int least = 0, greatest = 0;
    Check(cudaDeviceGetStreamPriorityRange(&least, &greatest));
    Check(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, greatest));
    Check(cudaEventCreateWithFlags(&ready_, cudaEventDisableTiming));
    Check(cudaEventCreateWithFlags(&done_, cudaEventDisableTiming));
    Check(cudaMallocHost(&host_, kBytes));
    std::memset(host_, 0, kBytes);
    Check(cudaMalloc(&device_, kBytes));
    bytes_ = kBytes;
    // A few copies, so that clocks and pages are as they will be.
    double milliseconds = 0;
    for (int i = 0; i < 3; ++i) milliseconds = Time([&] { Copy(kBytes); });
    bytes_per_millisecond_ = static_cast<double>(kBytes) / milliseconds;
  }
  ~PacedExchange() override {
    cudaFree(device_);
    cudaFreeHost(host_);
    cudaEventDestroy(ready_);
    cudaEventDestroy(done_);
    cudaStreamDestroy(stream_);
  }
  PacedExchange(const PacedExchange&) = delete;
  PacedExchange& operator=(const PacedExchange&) = delete;

  // How long each of the following groups takes, forward's and backward's in turn.
  void Pace(double forward, double backward) { pace_[0] = forward, pace_[1] = backward; }
  void BeginForward() { next_ = 0; }

  int rank() const override { return rank_; }
  int size() const override { return ranks_; }
  absl::StatusOr<Ticket> Start(absl::Span<const SendBuffer> /*sends*/,
                               absl::Span<const ReceiveBuffer> receives,
                               StreamHandle producer) override {
    Check(cudaEventRecord(ready_, static_cast<cudaStream_t>(producer)));
    Check(cudaStreamWaitEvent(stream_, ready_, 0));
    auto left = static_cast<size_t>(pace_[next_++ % 2] * bytes_per_millisecond_);
    for (const ReceiveBuffer& receive : receives) {
      if (receive.bytes > bytes_)
        return absl::ResourceExhaustedError("a longer message than memory");
      Check(cudaMemcpyAsync(receive.data, host_, receive.bytes, cudaMemcpyHostToDevice, stream_));
      left -= std::min(left, receive.bytes);
    }
    Copy(left);
    Check(cudaEventRecord(done_, stream_));
    return Ticket{};
  }
  absl::Status Wait(Ticket /*ticket*/, StreamHandle consumer) override {
    Check(cudaStreamWaitEvent(static_cast<cudaStream_t>(consumer), done_, 0));
    return absl::OkStatus();
  }
  void Abort(const std::string& /*reason*/) override {}
  uint64_t sent_bytes() const override { return 0; }

 private:
  void Copy(size_t bytes) {
    for (; bytes > 0; bytes -= std::min(bytes, bytes_)) {
      Check(cudaMemcpyAsync(device_, host_, std::min(bytes, bytes_), cudaMemcpyHostToDevice,
                            stream_));
    }
  }
  template <typename F>
  double Time(const F& f) {
    cudaEvent_t begin, end;
    Check(cudaEventCreate(&begin));
    Check(cudaEventCreate(&end));
    Check(cudaEventRecord(begin, stream_));
    f();
    Check(cudaEventRecord(end, stream_));
    Check(cudaEventSynchronize(end));
    float milliseconds = 0;
    Check(cudaEventElapsedTime(&milliseconds, begin, end));
    Check(cudaEventDestroy(begin));
    Check(cudaEventDestroy(end));
    return milliseconds;
  }

  const int rank_, ranks_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t ready_ = nullptr, done_ = nullptr;
  void *host_ = nullptr, *device_ = nullptr;
  size_t bytes_ = 0;
  double bytes_per_millisecond_ = 0;
  double pace_[2] = {0, 0};
  int next_ = 0;
};

struct Times {
  double forward = 0, both = 0;  // milliseconds
};

void Run(const Arguments& arguments, int64_t tokens) {
  const DilatedAttentionOptions options{.branches = arguments.branches};
  // So that a rank in the middle receives rows in forward and gradients in backward.
  const ShardMap map = ShardMap::Contiguous(tokens, arguments.ranks, 1);
  const HeadShape& shape = arguments.shape;
  const auto plan = AttentionPlan::Create(options, map, shape.heads, shape.heads).value();
  const auto random = [&] {
    return at::empty({1, map.LocalTokens(arguments.rank), shape.heads, shape.dim},
                     at::TensorOptions(at::Device(at::kCUDA, 0)).dtype(at::kBFloat16))
        .normal_();
  };
  const at::Tensor q = random(), k = random(), v = random(), dout = random();
  PacedExchange exchange(arguments.rank, arguments.ranks);
  const Call call = MakeCall(q, k, v, options, map, &exchange);
  if (!call.by_tiles()) throw std::runtime_error(call.why_not_tiles);
  const MessageShape message{.head_dim = shape.dim, .element_bytes = 2};
  uint64_t bytes = 0;  // to receive forward
  for (int peer = 0; peer < arguments.ranks; ++peer) {
    if (peer == arguments.rank) continue;
    bytes += plan.ForwardBytes(peer, arguments.rank, message);
  }
  // What the passes take beside an exchange of these times.
  const auto time = [&](double forward_pace, double backward_pace) {
    exchange.Pace(forward_pace, backward_pace);
    Times times;
    times.forward = kernels::Milliseconds([&] {
      exchange.BeginForward();
      Forward(call, q, k, v, nullptr);
      return "";
    });
    times.both = kernels::Milliseconds([&] {
      Saved saved;
      exchange.BeginForward();
      Forward(call, q, k, v, &saved);
      Backward(call, saved, dout);
      return "";
    });
    return times;
  };
  const std::vector<double> shares = {0.5, 1, 2};
  const Times before = time(0, 0);
  std::vector<Times> beside;
  for (const double share : shares) {
    beside.push_back(time(share * before.forward, share * (before.both - before.forward)));
  }
  const Times after = time(0, 0);
  const Times alone = {std::min(before.forward, after.forward), std::min(before.both, after.both)};
  const auto print = [&](double share, const Times& times) {
    std::printf(
        "{\"benchmark\": \"overlap\", \"tokens\": %ld, \"rank\": %d, \"ranks\": %d, \"heads\": %d, "
        "\"head_dim\": %d, \"bytes\": %llu, \"exchange_share\": %.1f, \"forward_ms\": %.3f, "
        "\"forward_backward_ms\": %.3f, \"forward_of_longer\": %.3f, "
        "\"forward_backward_of_longer\": %.3f}\n",
        static_cast<long>(tokens), arguments.rank, arguments.ranks, shape.heads, shape.dim,
        static_cast<unsigned long long>(bytes), share, times.forward, times.both,
        times.forward / std::max(alone.forward, share * before.forward),
        times.both / std::max(alone.both, share * before.both));
  };
  print(0, alone);
  for (size_t i = 0; i < shares.size(); ++i) print(shares[i], beside[i]);
  std::fflush(stdout);
}

// False for what is not understood.
bool Read(absl::string_view argument, Arguments* arguments) {
  if (absl::ConsumePrefix(&argument, "--ranks=")) {
    return absl::SimpleAtoi(argument, &arguments->ranks) && arguments->ranks >= 1;
  }
  if (absl::ConsumePrefix(&argument, "--rank=")) {
    return absl::SimpleAtoi(argument, &arguments->rank) && arguments->rank >= 0;
  }
  if (absl::ConsumePrefix(&argument, "--shape=")) {
    return ParseHeadShape(argument, &arguments->shape);
  }
  if (absl::ConsumePrefix(&argument, "--branches=")) {
    return ParseBranches(argument, &arguments->branches);
  }
  return false;
}

int Main(int argc, char** argv) {
  Arguments arguments;
  const auto read = [&](absl::string_view argument) { return Read(argument, &arguments); };
  if (!ReadArguments(argc, argv,
                     "overlap_benchmark [--shape=HxD] [--branches=W:R,...] [--ranks=P] [--rank=R] "
                     "TOKENS...",
                     read, &arguments.lengths)) {
    return 2;
  }
  if (arguments.rank >= arguments.ranks) {
    std::fprintf(stderr, "--rank is %d; it must be below --ranks, which is %d\n", arguments.rank,
                 arguments.ranks);
    return 2;
  }
  return RunLengths(arguments.lengths, [&](int64_t tokens) { Run(arguments, tokens); });
}

}  // namespace
}  // namespace ringmaster::attention

int main(int argc, char** argv) {
  return ringmaster::attention::RunMain(argc, argv, &ringmaster::attention::Main);
}
