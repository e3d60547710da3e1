// Times dilated attention on the CPU, forward and backward, and prints one JSON line a length:
//   attention_benchmark [--threads=T] [--repeats=R] TOKENS...
// benchmarks/attention/compare runs it beside the PyTorch restatement.
#include <ATen/Parallel.h>
#include <ATen/ops/randn.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "attention/dilated_attention.h"
#include "benchmarks/attention/arguments.h"

namespace ringmaster::attention {
namespace {

constexpr int64_t kHeads = 8, kHeadDim = 64;

// The paper's language model; longnet_sdpa.py has the same list.
const DilatedAttentionOptions kOptions = {
    .branches = {{2048, 1}, {4096, 2}, {8192, 4}, {16384, 6}, {32768, 12}}, .causal = true};

double Seconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

struct Times {
  double forward, backward;
};

Times RunOnce(const std::vector<at::Tensor>& inputs, const at::Tensor& dout) {
  const auto start = std::chrono::steady_clock::now();
  const AttentionOutput output = DilatedAttention(inputs[0], inputs[1], inputs[2], kOptions);
  const auto middle = std::chrono::steady_clock::now();
  torch::autograd::grad({output.out}, inputs, {dout});
  return {Seconds(middle - start), Seconds(std::chrono::steady_clock::now() - middle)};
}

void Measure(int64_t tokens, int repeats) {
  std::vector<at::Tensor> inputs;
  for (int i = 0; i < 3; ++i) {
    inputs.push_back(at::randn({1, tokens, kHeads, kHeadDim}).set_requires_grad(true));
  }
  const at::Tensor dout = at::randn({1, tokens, kHeads, kHeadDim});
  RunOnce(inputs, dout);
  std::vector<double> forward, both;
  for (int i = 0; i < repeats; ++i) {
    const Times times = RunOnce(inputs, dout);
    forward.push_back(times.forward);
    both.push_back(times.forward + times.backward);
  }
  std::sort(forward.begin(), forward.end());
  std::sort(both.begin(), both.end());
  std::printf(
      "{\"benchmark\": \"attention\", \"who\": \"ringmaster\", \"tokens\": %lld, \"heads\": %lld, "
      "\"head_dim\": %lld, \"dtype\": \"fp32\", \"threads\": %d, \"repeats\": %d, \"forward_s\": "
      "%.6f, "
      "\"forward_backward_s\": %.6f, \"best_forward_backward_s\": %.6f}\n",
      static_cast<long long>(tokens), static_cast<long long>(kHeads),
      static_cast<long long>(kHeadDim), at::get_num_threads(), repeats, forward[repeats / 2],
      both[repeats / 2], both[0]);
  std::fflush(stdout);
}

int Main(int argc, char** argv) {
  int threads = at::get_num_threads(), repeats = 5;
  std::vector<int64_t> lengths;
  const auto read = [&](absl::string_view argument) {
    if (absl::ConsumePrefix(&argument, "--threads=")) {
      return absl::SimpleAtoi(argument, &threads) && threads >= 1;
    }
    return absl::ConsumePrefix(&argument, "--repeats=") && absl::SimpleAtoi(argument, &repeats) &&
           repeats >= 1;
  };
  if (!ReadArguments(argc, argv, "attention_benchmark [--threads=T] [--repeats=R] TOKENS...", read,
                     &lengths)) {
    return 2;
  }
  at::set_num_threads(threads);
  for (const int64_t tokens : lengths) Measure(tokens, repeats);
  return 0;
}

}  // namespace
}  // namespace ringmaster::attention

int main(int argc, char** argv) {
  return ringmaster::attention::RunMain(argc, argv, &ringmaster::attention::Main);
}
