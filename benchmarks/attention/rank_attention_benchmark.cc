// One rank's passes of the operator on a GPU (TimePasses), causal:
//   rank_attention_benchmark [--dtype=bf16|fp16] [--shapes=16x128,12x64] [--rates=1,2,4,8,16]
//       [--steps=N] [--stock] TOKENS...
// heads x head size each, and the rates of branches of 2048 tokens, twice as many, and so on.
// Prints one JSON object a case: milliseconds (median of ten after a second) and effective TFLOP/s,
// the sparse products of all branches, 2 forward and 5 backward, over the whole time; and the most
// device memory a token, beside q, k, v and dout and beside the lists of tiles, which stay for all
// calls of one shape; with steps, what memory N more of them take (MemoryOfSteps). With --stock by
// LibTorch's operations.
#include <cstdint>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "attention/plan/plan.h"
#include "benchmarks/attention/arguments.h"
#include "benchmarks/attention/rank_passes.h"
#include "worker/comm/cuda_plugin.h"

namespace ringmaster::attention {
namespace {

struct Arguments {
  at::ScalarType dtype = at::kBFloat16;
  std::vector<HeadShape> shapes = {{16, 128}, {12, 64}};
  std::vector<int64_t> rates = {1, 2, 4, 8, 16};
  int steps = 0;
  bool stock = false;
  std::vector<int64_t> lengths;
};

constexpr int64_t kFirstSegment = 2048;

void Run(int64_t tokens, const HeadShape& shape, const Arguments& arguments,
         const worker::CudaPlugin& plugin) {
  DilatedAttentionOptions options;
  for (const int64_t rate : arguments.rates) {
    options.branches.push_back({kFirstSegment << options.branches.size(), rate});
  }
  const ShardMap map = ShardMap::Contiguous(tokens, 1, 1);
  const auto plan = AttentionPlan::Create(options, map, shape.heads, shape.heads);
  if (!plan.ok()) throw std::invalid_argument(plan.status().ToString());
  const double flops = plan->ForwardFlops(0, {.batch = 1, .head_dim = shape.dim});
  const std::string figures = TimePasses(shape, tokens, options, flops, plugin, arguments.dtype,
                                         arguments.steps, arguments.stock);
  std::printf(
      "{\"benchmark\": \"rank_attention\", \"dtype\": \"%s\", \"tokens\": %ld, "
      "\"heads\": %d, \"head_dim\": %d, \"rates\": [%s], %s}\n",
      arguments.dtype == at::kHalf ? "fp16" : "bf16", static_cast<long>(tokens), shape.heads,
      shape.dim, absl::StrJoin(arguments.rates, ", ").c_str(), figures.c_str());
  std::fflush(stdout);
}

// False for what is not understood.
bool Read(absl::string_view argument, Arguments* arguments) {
  if (absl::ConsumePrefix(&argument, "--dtype=")) {
    arguments->dtype = argument == "fp16" ? at::kHalf : at::kBFloat16;
    return argument == "fp16" || argument == "bf16";
  }
  if (absl::ConsumePrefix(&argument, "--shapes=")) {
    return ParseList(argument, &ParseHeadShape, &arguments->shapes);
  }
  if (absl::ConsumePrefix(&argument, "--rates=")) {
    return ParseList(argument, &absl::SimpleAtoi<int64_t>, &arguments->rates);
  }
  if (absl::ConsumePrefix(&argument, "--steps=")) {
    return absl::SimpleAtoi(argument, &arguments->steps) && arguments->steps > 0;
  }
  arguments->stock |= argument == "--stock";
  return argument == "--stock";
}

int Main(int argc, char** argv) {
  Arguments arguments;
  const auto read = [&](absl::string_view argument) { return Read(argument, &arguments); };
  if (!ReadArguments(argc, argv,
                     "rank_attention_benchmark [--dtype=bf16|fp16] [--shapes=HxD,...] "
                     "[--rates=R,...] [--steps=N] [--stock] TOKENS...",
                     read, &arguments.lengths)) {
    return 2;
  }
  const worker::CudaPlugin& plugin = OpenPlugin();
  bool ran = true;
  for (const HeadShape& shape : arguments.shapes) {
    for (const int64_t tokens : arguments.lengths) {
      ran &= RunCase(absl::StrCat(shape.heads, " heads of ", shape.dim, ", ", tokens, " tokens"),
                     plugin, [&] { Run(tokens, shape, arguments, plugin); });
    }
  }
  return ran ? 0 : 1;
}

}  // namespace
}  // namespace ringmaster::attention

int main(int argc, char** argv) {
  return ringmaster::attention::RunMain(argc, argv, &ringmaster::attention::Main);
}
