// One rank's passes of the operator on a GPU, as autograd calls them, on random bf16 numbers,
// causal:
//   rank_attention_benchmark [--shapes=16x128,12x64] [--rates=1,2,4,8,16] TOKENS...
// heads x head size each, and the rates of branches of 2048 tokens, twice as many, and so on.
// Prints one JSON object a case: milliseconds (median of ten after three) and effective TFLOP/s,
// the sparse products of all branches, 2 forward and 5 backward, over the whole time; and the most
// device memory a token, beside q, k, v and dout and beside the lists of tiles, which stay for all
// calls of one shape.
#include <ATen/ops/empty.h>
#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "attention/passes.h"
#include "attention/plan.h"
#include "benchmarks/attention/gpu_timer.h"
#include "worker/comm/cuda_plugin.h"

namespace ringmaster::attention {
namespace {

struct Shape {
  int heads;
  int dim;
};

struct Arguments {
  std::vector<Shape> shapes = {{16, 128}, {12, 64}};
  std::vector<int64_t> rates = {1, 2, 4, 8, 16};
  std::vector<int64_t> lengths;
};

constexpr int64_t kFirstSegment = 2048;

uint64_t PeakBytes(const worker::CudaPlugin& plugin) {
  return plugin.Memory(0).value().peak_allocated_bytes;
}

void Run(int64_t tokens, const Shape& shape, const std::vector<int64_t>& rates,
         const worker::CudaPlugin& plugin) {
  DilatedAttentionOptions options;
  for (const int64_t rate : rates) {
    options.branches.push_back({kFirstSegment << options.branches.size(), rate});
  }
  const ShardMap map = ShardMap::Contiguous(tokens, 1, 1);
  const auto plan = AttentionPlan::Create(options, map, shape.heads, shape.heads);
  if (!plan.ok()) throw std::invalid_argument(plan.status().ToString());
  const double flops = plan->ForwardFlops(0, {.batch = 1, .head_dim = shape.dim});
  const auto random = [&] {
    return at::empty({1, tokens, shape.heads, shape.dim},
                     at::TensorOptions(at::Device(at::kCUDA, 0)).dtype(at::kBFloat16))
        .normal_();
  };
  const at::Tensor q = random(), k = random(), v = random(), dout = random();
  const Call call = MakeCall(q, k, v, options, map, nullptr);
  const uint64_t inputs = plugin.Memory(0).value().allocated_bytes;
  static_cast<void>(plugin.ResetPeakMemory(0));
  const auto both = [&] {
    Saved saved;
    Forward(call, q, k, v, &saved);
    Backward(call, saved, dout);
    return "";
  };
  both();
  const uint64_t peak = PeakBytes(plugin);
  const double forward = kernels::Milliseconds([&] {
    Forward(call, q, k, v, nullptr);
    return "";
  });
  const double forward_backward = kernels::Milliseconds(both);
  std::printf(
      "{\"benchmark\": \"rank_attention\", \"by\": \"%s\", \"tokens\": %ld, \"heads\": %d, "
      "\"head_dim\": %d, \"rates\": [%s], \"forward_ms\": %.3f, \"forward_backward_ms\": %.3f, "
      "\"forward_tflops\": %.0f, \"forward_backward_tflops\": %.0f, \"bytes_per_token\": %.0f, "
      "\"lists_bytes\": %zu}\n",
      DescribeExecutor(q, options, tokens).c_str(), static_cast<long>(tokens), shape.heads,
      shape.dim, absl::StrJoin(rates, ", ").c_str(), forward, forward_backward,
      flops / forward / 1e9, 3.5 * flops / forward_backward / 1e9,
      static_cast<double>(peak - inputs) / static_cast<double>(tokens), call.parts->bytes());
  std::fflush(stdout);
}

// False for what is not understood.
bool Read(absl::string_view argument, Arguments* arguments) {
  int64_t number = 0;
  if (absl::ConsumePrefix(&argument, "--shapes=")) {
    arguments->shapes.clear();
    for (const absl::string_view text : absl::StrSplit(argument, ',')) {
      const std::vector<absl::string_view> sizes = absl::StrSplit(text, 'x');
      Shape shape;
      if (sizes.size() != 2 || !absl::SimpleAtoi(sizes[0], &shape.heads) ||
          !absl::SimpleAtoi(sizes[1], &shape.dim)) {
        return false;
      }
      arguments->shapes.push_back(shape);
    }
    return true;
  }
  if (absl::ConsumePrefix(&argument, "--rates=")) {
    arguments->rates.clear();
    for (const absl::string_view text : absl::StrSplit(argument, ',')) {
      if (!absl::SimpleAtoi(text, &number)) return false;
      arguments->rates.push_back(number);
    }
    return true;
  }
  if (!absl::SimpleAtoi(argument, &number) || number <= 0) return false;
  arguments->lengths.push_back(number);
  return true;
}

int Main(int argc, char** argv) {
  Arguments arguments;
  for (int i = 1; i < argc; ++i) {
    if (!Read(argv[i], &arguments)) {
      std::fprintf(
          stderr, "usage: rank_attention_benchmark [--shapes=HxD,...] [--rates=R,...] TOKENS...\n");
      return 2;
    }
  }
  const auto plugin = worker::CudaPlugin::Open();
  if (!plugin.ok()) {
    std::fprintf(stderr, "%s\n", plugin.status().ToString().c_str());
    return 1;
  }
  bool failed = false;
  for (const Shape& shape : arguments.shapes) {
    for (const int64_t tokens : arguments.lengths) {
      try {
        Run(tokens, shape, arguments.rates, **plugin);
      } catch (const std::exception& error) {  // too little memory is no end of the other cases
        std::fprintf(stderr, "%d heads of %d, %ld tokens: %s\n", shape.heads, shape.dim,
                     static_cast<long>(tokens), error.what());
        failed = true;
      }
      static_cast<void>((*plugin)->EmptyCache());
    }
  }
  return failed ? 1 : 0;
}

}  // namespace
}  // namespace ringmaster::attention

int main(int argc, char** argv) try {
  return ringmaster::attention::Main(argc, argv);
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
