#pragma once

#include <ATen/ops/empty.h>

#include <cstdint>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "attention/passes.h"
#include "benchmarks/attention/arguments.h"
#include "benchmarks/attention/gpu_timer.h"
#include "worker/comm/cuda_plugin.h"

namespace ringmaster::attention {

// The plugin, or why there is none as an exception.
inline const worker::CudaPlugin& OpenPlugin() {
  const auto plugin = worker::CudaPlugin::Open();
  if (!plugin.ok()) throw std::runtime_error(plugin.status().ToString());
  return **plugin;
}

// Runs one case. False, with a line on stderr, if it ends badly: too little memory is no end of the
// other cases.
template <typename F>
bool RunCase(const std::string& name, const worker::CudaPlugin& plugin, const F& run) {
  bool ran = true;
  try {
    run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", name.c_str(), error.what());
    ran = false;
  }
  static_cast<void>(plugin.EmptyCache());
  return ran;
}

// RunCase of each length. What a program exits with.
template <typename F>
int RunLengths(const std::vector<int64_t>& lengths, const F& run) {
  const worker::CudaPlugin& plugin = OpenPlugin();
  bool ran = true;
  for (const int64_t tokens : lengths) {
    ran &= RunCase(absl::StrCat(tokens, " tokens"), plugin, [&] { run(tokens); });
  }
  return ran ? 0 : 1;
}

// How the most memory of `step` changes while it is run `steps` times more, as members of a JSON
// object: bytes of tensors, and bytes that the allocator took from the device, which is asked for
// nothing where these stay.
template <typename F>
std::string MemoryOfSteps(int steps, const worker::CudaPlugin& plugin, const F& step) {
  static_cast<void>(plugin.ResetPeakMemory(0));
  step();
  const auto before = plugin.Memory(0).value();
  for (int i = 0; i < steps; ++i) step();
  const auto after = plugin.Memory(0).value();
  const auto grown = [](uint64_t from, uint64_t to) { return static_cast<int64_t>(to - from); };
  return absl::StrFormat(", \"steps\": %d, \"grown_bytes\": %d, \"grown_device_bytes\": %d", steps,
                         grown(before.peak_allocated_bytes, after.peak_allocated_bytes),
                         grown(before.reserved_bytes, after.peak_reserved_bytes));
}

// Times the operator's passes over a whole sequence on one GPU, on random numbers of `dtype`:
// forward as without gradients, then both as autograd calls them. The figures as members of a JSON
// object: the executor, milliseconds (median of ten after a second), TFLOP/s of `forward_flops` and
// of both passes, the most device memory a token, beside q, k, v and dout and beside the lists of
// tiles, which stay for all calls of one shape; and MemoryOfSteps, if there are any. Throws where
// there is too little memory.
inline std::string TimePasses(const HeadShape& shape, int64_t tokens,
                              const AttentionPattern& pattern, double forward_flops,
                              const worker::CudaPlugin& plugin,
                              at::ScalarType dtype = at::kBFloat16, int steps = 0,
                              bool stock = false) {
  const auto random = [&] {
    return at::empty({1, tokens, shape.heads, shape.dim},
                     at::TensorOptions(at::Device(at::kCUDA, 0)).dtype(dtype))
        .normal_();
  };
  const at::Tensor q = random(), k = random(), v = random(), dout = random();
  Call call = MakeCall(q, k, v, pattern);
  if (stock) {
    call.why_not_tiles = "as asked for";
    call.parts = FindParts(pattern, ShardMap::Contiguous(tokens, 1, 1), 0, shape.heads, shape.heads,
                           q.device(), /*tiles=*/{});
  }
  const auto both = [&] {
    Saved saved;
    Forward(call, q, k, v, &saved);
    Backward(call, saved, dout);
    return "";
  };
  const uint64_t inputs = plugin.Memory(0).value().allocated_bytes;
  static_cast<void>(plugin.ResetPeakMemory(0));
  both();
  const uint64_t peak = plugin.Memory(0).value().peak_allocated_bytes;
  const double forward = kernels::Milliseconds([&] {
    Forward(call, q, k, v, nullptr);
    return "";
  });
  const double forward_backward = kernels::Milliseconds(both);
  const std::string memory = steps > 0 ? MemoryOfSteps(steps, plugin, both) : "";
  return absl::StrFormat(
      "\"by\": \"%s\", \"forward_ms\": %.3f, \"forward_backward_ms\": %.3f, "
      "\"forward_tflops\": %.1f, \"forward_backward_tflops\": %.1f, \"bytes_per_token\": %.0f, "
      "\"lists_bytes\": %d%s",
      stock ? "stock operations" : DescribeExecutor(q, pattern, tokens), forward, forward_backward,
      forward_flops / forward / 1e9,
      (1 + kBackwardOverForward) * forward_flops / forward_backward / 1e9,
      static_cast<double>(peak - inputs) / static_cast<double>(tokens), call.parts->bytes(),
      memory);
}

}  // namespace ringmaster::attention
