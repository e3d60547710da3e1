// One rank's passes of the operator on a GPU, as autograd calls them: paper-like branches (2048
// tokens at rate 1 to 32768 at rate 16), causal, bf16 random numbers. rank_attention_benchmark
// TOKENS... Prints one JSON object a case: milliseconds (median of ten after three) and effective
// TFLOP/s, the sparse products of all branches, 2 forward and 5 backward, over the whole time; and
// the most device memory a token, beside q, k, v and dout and
// beside the lists of tiles, which stay for all calls of one shape.
#include <ATen/ops/empty.h>
#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>

#include "attention/passes.h"
#include "attention/plan.h"
#include "benchmarks/attention/gpu_timer.h"
#include "worker/comm/cuda_plugin.h"

namespace ringmaster::attention {
namespace {

struct Shape {
  int64_t tokens;
  int heads;
  int dim;
};

uint64_t PeakBytes(const worker::CudaPlugin& plugin) {
  return plugin.Memory(0).value().peak_allocated_bytes;
}

void Run(const Shape& shape, const worker::CudaPlugin& plugin) {
  DilatedAttentionOptions options;
  for (const int64_t rate : {1, 2, 4, 8, 16}) options.branches.push_back({2048 * rate, rate});
  const ShardMap map = ShardMap::Contiguous(shape.tokens, 1, 1);
  const auto plan = AttentionPlan::Create(options, map, shape.heads, shape.heads);
  const double flops = plan->ForwardFlops(0, {.batch = 1, .head_dim = shape.dim});
  const auto random = [&] {
    return at::empty({1, shape.tokens, shape.heads, shape.dim},
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
      "\"head_dim\": %d, \"forward_ms\": %.3f, \"forward_backward_ms\": %.3f, "
      "\"forward_tflops\": %.0f, \"forward_backward_tflops\": %.0f, \"bytes_per_token\": %.0f, "
      "\"lists_bytes\": %zu}\n",
      DescribeExecutor(q, options, shape.tokens).c_str(), static_cast<long>(shape.tokens),
      shape.heads, shape.dim, forward, forward_backward, flops / forward / 1e9,
      3.5 * flops / forward_backward / 1e9,
      static_cast<double>(peak - inputs) / static_cast<double>(shape.tokens), call.parts->bytes());
  std::fflush(stdout);
}

int Main(int argc, char** argv) {
  const auto plugin = worker::CudaPlugin::Open();
  if (!plugin.ok()) {
    std::fprintf(stderr, "%s\n", plugin.status().ToString().c_str());
    return 1;
  }
  for (int i = 1; i < argc; ++i) {
    const int64_t tokens = std::atoll(argv[i]);
    Run({tokens, 16, 128}, **plugin);
    static_cast<void>((*plugin)->EmptyCache());
    Run({tokens, 12, 64}, **plugin);
    static_cast<void>((*plugin)->EmptyCache());
  }
  return 0;
}

}  // namespace
}  // namespace ringmaster::attention

int main(int argc, char** argv) try {
  return ringmaster::attention::Main(argc, argv);
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
