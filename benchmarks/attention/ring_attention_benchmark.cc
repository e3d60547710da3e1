// The operator's passes on a ring of GPUs, a thread a rank, over NCCL, on random bf16 numbers,
// causal:
//   ring_attention_benchmark [--ranks=2] [--shape=16x128] [--branches=W:R,...] TOKENS...
// TOKENS of the whole sequence. Prints one JSON object a case and number of ranks, 1 (of the same
// sequence, where it fits, on each GPU at once: they differ, and draw on one supply) and --ranks:
// milliseconds of the slowest GPU (median of ten after a second), effective TFLOP/s of all ranks
// together, and the bytes that all ranks send.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"
#include "attention/plan/layout.h"
#include "attention/plan/plan.h"
#include "benchmarks/attention/arguments.h"
#include "benchmarks/attention/rank_passes.h"
#include "worker/comm/cuda_plugin.h"
#include "worker/comm/nccl_communicator.h"

namespace ringmaster::attention {
namespace {

struct Arguments {
  int ranks = 2;
  HeadShape shape;
  std::vector<Branch> branches = {{2048, 1},    {8192, 4},     {32768, 16},
                                  {131072, 64}, {524288, 256}, {2097152, 1024}};
  std::vector<int64_t> lengths;
};

void Check(const absl::Status& status) {
  if (!status.ok()) throw std::runtime_error(status.ToString());
}

std::vector<std::unique_ptr<worker::Communicator>> OpenAll(int ranks,
                                                           std::vector<std::string>* addresses) {
  std::vector<std::unique_ptr<worker::Communicator>> all;
  for (int rank = 0; rank < ranks; ++rank) {
    auto opened =
        worker::OpenNcclCommunicator({.rank = rank, .world_size = ranks, .device_index = rank});
    Check(opened.status());
    addresses->push_back((*opened)->address());
    all.push_back(*std::move(opened));
  }
  return all;
}

struct Times {
  double forward = 0;
  double forward_backward = 0;
};

// Passes of so many FLOPs that settle a GPU: all ranks make as many.
int WarmUps(double flops) {
  constexpr double kFlopsPerMillisecond = 5e11;
  return 1 + static_cast<int>(kernels::kSettleMilliseconds * kFlopsPerMillisecond / flops);
}

// What one rank's thread does. All ranks make the same calls.
Times TimeRank(const Arguments& arguments, const DilatedAttentionOptions& options,
               const Layouts& layouts, int rank, int gpu, double forward_flops,
               worker::Communicator* communicator, const std::vector<std::string>& addresses,
               const worker::CudaPlugin& plugin) {
  Check(plugin.SetDevice(gpu));
  if (communicator != nullptr) Check(communicator->Connect(addresses, absl::Seconds(60)));
  GroupedExchange* exchange = communicator == nullptr ? nullptr : &communicator->world();
  const ShardMap& map = layouts.map();
  const auto random = [&] {
    return at::empty({1, map.LocalTokens(rank), arguments.shape.heads, arguments.shape.dim},
                     at::TensorOptions(at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(gpu)))
                         .dtype(at::kBFloat16))
        .normal_();
  };
  const at::Tensor q = random(), k = random(), v = random(), dout = random();
  const Call call = MakeCall(q, k, v, options, map, exchange, {}, layouts.strategy());
  Times times;
  times.forward = kernels::Milliseconds(
      [&] {
        Forward(call, q, k, v, nullptr);
        return "";
      },
      WarmUps(forward_flops));
  times.forward_backward = kernels::Milliseconds(
      [&] {
        Saved saved;
        Forward(call, q, k, v, &saved);
        Backward(call, saved, dout);
        return "";
      },
      WarmUps((1 + kBackwardOverForward) * forward_flops));
  if (communicator != nullptr) {
    Check(communicator->Settle());
    Check(communicator->Close());
  }
  return times;
}

void Run(const Arguments& arguments, int64_t tokens, int ranks, const worker::CudaPlugin& plugin) {
  const DilatedAttentionOptions options{.branches = arguments.branches};
  const HeadShape& shape = arguments.shape;
  const MessageShape message{.head_dim = shape.dim, .element_bytes = 2};
  const RingCall call{options, tokens, ranks, shape.heads, shape.heads, message};
  const auto layouts = ChooseLayout(call);
  Check(layouts.status());
  const auto plan = PlanOf(call, layouts->chosen());
  Check(plan.status());
  double flops = 0;
  for (int rank = 0; rank < ranks; ++rank) flops += plan->ForwardFlops(rank, message);
  std::vector<std::string> addresses;
  const int gpus = arguments.ranks;
  auto communicators = ranks == 1 ? std::vector<std::unique_ptr<worker::Communicator>>(gpus)
                                  : OpenAll(ranks, &addresses);
  std::vector<Times> times(gpus);
  std::vector<std::string> errors(gpus);
  std::vector<std::thread> threads;
  for (int gpu = 0; gpu < gpus; ++gpu) {
    threads.emplace_back([&, gpu] {
      try {
        times[gpu] = TimeRank(arguments, options, *layouts, ranks == 1 ? 0 : gpu, gpu,
                              flops / ranks, communicators[gpu].get(), addresses, plugin);
      } catch (const std::exception& error) {
        errors[gpu] = error.what();
        if (communicators[gpu] != nullptr) communicators[gpu]->Abort(errors[gpu]);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  Times slowest;
  for (int gpu = 0; gpu < gpus; ++gpu) {
    if (!errors[gpu].empty())
      throw std::runtime_error(absl::StrCat("GPU ", gpu, ": ", errors[gpu]));
    slowest.forward = std::max(slowest.forward, times[gpu].forward);
    slowest.forward_backward = std::max(slowest.forward_backward, times[gpu].forward_backward);
  }
  uint64_t forward_bytes = 0, backward_bytes = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    forward_bytes += plan->SentBytesForward(rank, message);
    backward_bytes += plan->SentBytesBackward(rank, message);
  }
  std::printf(
      "{\"benchmark\": \"ring_attention\", \"tokens\": %ld, \"ranks\": %d, \"heads\": %d, "
      "\"head_dim\": %d, \"layout\": \"%s\", \"forward_ms\": %.3f, \"forward_backward_ms\": %.3f, "
      "\"forward_tflops\": %.1f, \"forward_backward_tflops\": %.1f, \"forward_bytes\": %llu, "
      "\"backward_bytes\": %llu}\n",
      static_cast<long>(tokens), ranks, shape.heads, shape.dim, layouts->all[0].name.c_str(),
      slowest.forward, slowest.forward_backward, flops / slowest.forward / 1e9,
      (1 + kBackwardOverForward) * flops / slowest.forward_backward / 1e9,
      static_cast<unsigned long long>(forward_bytes),
      static_cast<unsigned long long>(backward_bytes));
  std::fflush(stdout);
}

// False for what is not understood.
bool Read(absl::string_view argument, Arguments* arguments) {
  if (absl::ConsumePrefix(&argument, "--ranks=")) {
    return absl::SimpleAtoi(argument, &arguments->ranks) && arguments->ranks >= 1;
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
                     "ring_attention_benchmark [--ranks=N] [--shape=HxD] [--branches=W:R,...] "
                     "TOKENS...",
                     read, &arguments.lengths)) {
    return 2;
  }
  const worker::CudaPlugin& plugin = OpenPlugin();
  bool ran = true;
  for (const int64_t tokens : arguments.lengths) {
    for (const int ranks : {1, arguments.ranks}) {
      ran &= RunCase(absl::StrCat(tokens, " tokens on ", ranks), plugin,
                     [&] { Run(arguments, tokens, ranks, plugin); });
    }
  }
  return ran ? 0 : 1;
}

}  // namespace
}  // namespace ringmaster::attention

int main(int argc, char** argv) {
  return ringmaster::attention::RunMain(argc, argv, &ringmaster::attention::Main);
}
