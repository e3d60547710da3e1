// Times dilated attention on the CPU, forward and backward, and prints one JSON line a length:
//   attention_benchmark [--threads=T] [--repeats=R] N...
// benchmarks/attention/compare runs it beside the PyTorch restatement.
#include <ATen/Parallel.h>
#include <ATen/ops/randn.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "attention/dilated_attention.h"

namespace {

using ringmaster::attention::AttentionOutput;
using ringmaster::attention::DilatedAttention;
using ringmaster::attention::DilatedAttentionOptions;

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

}  // namespace

int main(int argc, char** argv) {
  int repeats = 5;
  std::vector<int64_t> lengths;
  for (int i = 1; i < argc; ++i) {
    if (std::strncmp(argv[i], "--threads=", 10) == 0) {
      at::set_num_threads(std::atoi(argv[i] + 10));
    } else if (std::strncmp(argv[i], "--repeats=", 10) == 0) {
      repeats = std::max(1, std::atoi(argv[i] + 10));
    } else if (std::atoll(argv[i]) > 0) {
      lengths.push_back(std::atoll(argv[i]));
    } else {
      std::fprintf(stderr, "usage: attention_benchmark [--threads=T] [--repeats=R] N...\n");
      return 2;
    }
  }
  for (const int64_t tokens : lengths) {
    Measure(tokens, repeats);
  }
  return lengths.empty() ? 2 : 0;
}
