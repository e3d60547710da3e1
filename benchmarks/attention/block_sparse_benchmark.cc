// The block-sparse operator's passes on a GPU, on random bf16 numbers:
//   block_sparse_benchmark [--masks=DIR] [--shape=16x128] [--densities=1,0.5,0.25,0.1,0.05]
//                          [--window=1024] [--tile-order=heavy_first|hilbert] TOKENS...
// For each length blocks of 128 drawn at random for each head, the diagonal among them, causal and
// not; at the longest a causal window of whole blocks. Prints one JSON object a case: figures as of
// rank_attention_benchmark, TFLOP/s of the pairs that are seen, which `density` counts among all
// (causal: among those that are not later). Each mask goes to a file in DIR, for
// peers/block_sparse_gpu.py (peers/block_masks.py says what is in it).
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "attention/plan/block_mask.h"
#include "attention/plan/block_patterns.h"
#include "benchmarks/attention/arguments.h"
#include "benchmarks/attention/rank_passes.h"
#include "worker/comm/cuda_plugin.h"

namespace ringmaster::attention {
namespace {

struct Arguments {
  std::string masks;
  HeadShape shape;
  std::vector<double> densities = {1, 0.5, 0.25, 0.1, 0.05};
  int64_t window = 1024;
  TileOrder tile_order = TileOrder::kHeavyFirst;
  std::vector<int64_t> lengths;
};

struct Case {
  std::string name;
  bool causal;
  BlockMask mask;
};

BlockMask OrThrow(absl::StatusOr<BlockMask> mask) {
  if (!mask.ok()) throw std::invalid_argument(mask.status().ToString());
  return *std::move(mask);
}

Case RandomBlocks(int heads, int64_t tokens, double density, bool causal) {
  const BlockPattern pattern{
      .kind = BlockPattern::Kind::kRandom, .density = density, .causal = causal, .heads = heads};
  return {absl::StrCat("random-", density), causal,
          OrThrow(MakeBlockMask(pattern, ShardMap::Contiguous(tokens, 1, 1), 1))};
}

Case Window(int heads, int64_t tokens, int64_t window) {
  const BlockMaskShape shape{.heads = heads, .tokens = tokens};
  return {absl::StrCat("window-", window), true,
          OrThrow(BlockMask::Create(shape, [&](int64_t, int64_t query, BlockRow& row) {
            row.ShowRange(std::max<int64_t>(0, query - window / shape.block_size), query + 1);
          }))};
}

void Write(const std::string& path, const Case& c) {
  const BlockMaskShape& shape = c.mask.shape();
  std::ofstream file(path, std::ios::binary);
  file << absl::StrCat("{\"name\": \"", c.name, "\", \"heads\": ", shape.heads,
                       ", \"tokens\": ", shape.tokens, ", \"block_size\": ", shape.block_size,
                       ", \"causal\": ", c.causal ? "true" : "false", "}\n");
  for (int64_t head = 0; head < shape.heads; ++head) {
    for (int64_t query = 0; query < shape.blocks(); ++query) {
      const absl::Span<const uint64_t> row = c.mask.Row(head, query);
      file.write(reinterpret_cast<const char*>(row.data()),
                 static_cast<std::streamsize>(row.size() * sizeof(uint64_t)));
    }
  }
  file.close();
  if (!file) throw std::runtime_error(absl::StrCat(path, " cannot be written"));
}

void Run(const Case& c, const Arguments& arguments, const worker::CudaPlugin& plugin) {
  const HeadShape& shape = arguments.shape;
  const int64_t tokens = c.mask.shape().tokens;
  const double density = c.mask.Density(c.causal), n = static_cast<double>(tokens);
  const double pairs = shape.heads * density * (c.causal ? n * (n + 1) / 2 : n * n);
  const std::string figures = TimePasses(
      shape, tokens,
      BlockSparseAttentionOptions{
          .mask = c.mask, .causal = c.causal, .scale = {}, .tile_order = arguments.tile_order},
      4.0 * shape.dim * pairs, plugin);
  std::printf(
      "{\"benchmark\": \"block_sparse_attention\", \"mask\": \"%s\", \"tokens\": %ld, "
      "\"heads\": %d, \"head_dim\": %d, \"causal\": %s, \"density\": %.4f, "
      "\"tile_order\": \"%s\", %s}\n",
      c.name.c_str(), static_cast<long>(tokens), shape.heads, shape.dim,
      c.causal ? "true" : "false", density,
      arguments.tile_order == TileOrder::kHilbert ? "hilbert" : "heavy_first", figures.c_str());
  std::fflush(stdout);
}

std::vector<Case> Cases(const Arguments& arguments) {
  std::vector<Case> cases;
  for (const int64_t tokens : arguments.lengths) {
    for (const bool causal : {false, true}) {
      for (const double density : arguments.densities) {
        cases.push_back(RandomBlocks(arguments.shape.heads, tokens, density, causal));
      }
    }
  }
  const int64_t longest = *std::max_element(arguments.lengths.begin(), arguments.lengths.end());
  cases.push_back(Window(arguments.shape.heads, longest, arguments.window));
  return cases;
}

// False for what is not understood.
bool Read(absl::string_view argument, Arguments* arguments) {
  if (absl::ConsumePrefix(&argument, "--masks=")) {
    arguments->masks = std::string(argument);
    return !arguments->masks.empty();
  }
  if (absl::ConsumePrefix(&argument, "--shape=")) {
    return ParseHeadShape(argument, &arguments->shape);
  }
  if (absl::ConsumePrefix(&argument, "--window=")) {
    return absl::SimpleAtoi(argument, &arguments->window);
  }
  if (absl::ConsumePrefix(&argument, "--tile-order=")) {
    arguments->tile_order = argument == "hilbert" ? TileOrder::kHilbert : TileOrder::kHeavyFirst;
    return argument == "hilbert" || argument == "heavy_first";
  }
  if (absl::ConsumePrefix(&argument, "--densities=")) {
    return ParseList(argument, &absl::SimpleAtod, &arguments->densities);
  }
  return false;
}

int Main(int argc, char** argv) {
  Arguments arguments;
  const auto read = [&](absl::string_view argument) { return Read(argument, &arguments); };
  if (!ReadArguments(argc, argv,
                     "block_sparse_benchmark [--masks=DIR] [--shape=HxD] [--densities=X,...] "
                     "[--window=N] [--tile-order=heavy_first|hilbert] TOKENS...",
                     read, &arguments.lengths)) {
    return 2;
  }
  const std::vector<Case> cases = Cases(arguments);
  for (size_t i = 0; i < cases.size() && !arguments.masks.empty(); ++i) {
    Write(absl::StrFormat("%s/%03d-%s.mask", arguments.masks, i, cases[i].name), cases[i]);
  }
  const worker::CudaPlugin& plugin = OpenPlugin();
  bool ran = true;
  for (const Case& c : cases) {
    ran &= RunCase(absl::StrCat(c.name, ", ", c.mask.shape().tokens, " tokens"), plugin,
                   [&] { Run(c, arguments, plugin); });
  }
  return ran ? 0 : 1;
}

}  // namespace
}  // namespace ringmaster::attention

int main(int argc, char** argv) {
  return ringmaster::attention::RunMain(argc, argv, &ringmaster::attention::Main);
}
