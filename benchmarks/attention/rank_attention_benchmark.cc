// One rank's passes by the kernels alone, forward and backward, without zeroing the fp32 gradients
// and rounding them in the end: paper-like branches (2048 tokens at rate 1 to 32768 at rate 16),
// causal, bf16 random numbers. rank_attention_benchmark TOKENS... Prints one JSON object a case:
// milliseconds (median of ten after three) and effective TFLOP/s, the sparse products of all
// branches, 2 forward and 5 backward, over the time of all kernels.
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <list>
#include <random>
#include <string>
#include <vector>

#include "attention/kernels/mix.h"
#include "attention/kernels/tile_attention.h"
#include "attention/plan.h"
#include "attention/tile_lists.h"
#include "benchmarks/attention/gpu_timer.h"
#include "tests/attention/kernels/device_array.h"

namespace ringmaster::attention::kernels {
namespace {

struct Shape {
  int64_t tokens;
  int heads;
  int dim;

  int64_t size() const { return tokens * heads * dim; }
};

// The problem and all memory that it takes.
class Rank {
 public:
  Rank(const Shape& shape, const AttentionPlan& plan)
      : shape_(shape),
        lists_(MakeTileLists(MakeRankParts(plan, 0), shape.tokens, shape.heads, shape.dim)),
        random_(7),
        q_(RandomBf16(shape.size(), &random_)),
        k_(RandomBf16(shape.size(), &random_)),
        v_(RandomBf16(shape.size(), &random_)),
        dout_(RandomBf16(shape.size(), &random_)),
        out_(static_cast<size_t>(shape.size())),
        row_outs_(static_cast<size_t>(lists_.out_rows * shape.dim)),
        row_lses_(static_cast<size_t>(lists_.out_rows)),
        lse_(static_cast<size_t>(shape.tokens * shape.heads)),
        delta_(static_cast<size_t>(shape.tokens * shape.heads)),
        dq_(static_cast<size_t>(shape.size())),
        dk_(static_cast<size_t>(shape.size())),
        dv_(static_cast<size_t>(shape.size())),
        tiles_(lists_.local.tiles),
        keys_(lists_.local.keys),
        merge_begin_(lists_.merge_begin),
        merge_rows_(lists_.merge_rows) {
    forward_ = {.head_dim = shape.dim,
                .scale = 0.08f,
                .query_views = Views(q_),
                .key_views = Views(k_),
                .value_views = Views(v_),
                .tiles = tiles_.data(),
                .tile_count = static_cast<int>(lists_.local.tiles.size()),
                .keys = keys_.data(),
                .results = {row_outs_.data(), 0, shape.dim, 0, row_lses_.data(), 0, 1, 0}};
    Check(WhyNot(forward_));
    for (const TileLists::Backward& pass : lists_.backward_local) AddBackward(pass);
  }

  std::string Tiles() const { return TileForward(forward_, nullptr); }
  std::string Mixing() const {
    return Mix({.head_dim = shape_.dim,
                .row_outs = row_outs_.data(),
                .row_lses = row_lses_.data(),
                .rows = lists_.out_rows,
                .places = shape_.tokens * shape_.heads,
                .merge_begin = merge_begin_.data(),
                .merge_rows = merge_rows_.data(),
                .out = out_.data(),
                .lse = lse_.data()},
               nullptr);
  }
  std::string Dots() const {
    return RowDots(shape_.dim, shape_.tokens * shape_.heads, dout_.data(), out_.data(),
                   delta_.data(), nullptr);
  }
  std::string Backward() const {
    std::string error;
    for (const Pass& pass : passes_) {
      if (error.empty()) error = TileBackward(pass.problem, nullptr);
    }
    return error;
  }

 private:
  struct Pass {
    explicit Pass(const TileLists::Backward& lists)
        : tiles(lists.queries.tiles),
          keys(lists.queries.keys),
          key_tiles(lists.keys.tiles),
          queries(lists.keys.queries) {}
    const DeviceArray<Tile> tiles;
    const DeviceArray<TileKeys> keys;
    const DeviceArray<KeyTile> key_tiles;
    const DeviceArray<TileKeys> queries;
    BackwardProblem problem;
  };

  int64_t token_stride() const { return int64_t{shape_.heads} * shape_.dim; }
  std::vector<View> Views(const DeviceArray<uint16_t>& x) const {
    std::vector<View> views;
    for (const int64_t step : lists_.steps) {
      views.push_back(
          {{x.data(), 1, shape_.tokens, shape_.heads, shape_.size(), token_stride(), shape_.dim},
           step});
    }
    return views;
  }
  std::vector<Gradient> Sums(const DeviceArray<float>& x) const {
    return std::vector<Gradient>(lists_.steps.size(),
                                 {x.data(), shape_.size(), token_stride(), shape_.dim});
  }
  void AddBackward(const TileLists::Backward& lists) {
    Pass& pass = passes_.emplace_back(lists);
    pass.problem = {.head_dim = shape_.dim,
                    .scale = 0.08f,
                    .query_views = Views(q_),
                    .dout_views = Views(dout_),
                    .key_views = Views(k_),
                    .value_views = Views(v_),
                    .lse = {lse_.data(), 0, shape_.heads, 1},
                    .delta = {delta_.data(), 0, shape_.heads, 1},
                    .tiles = pass.tiles.data(),
                    .tile_count = static_cast<int>(lists.queries.tiles.size()),
                    .keys = pass.keys.data(),
                    .key_tiles = pass.key_tiles.data(),
                    .key_tile_count = static_cast<int>(lists.keys.tiles.size()),
                    .queries = pass.queries.data(),
                    .dq = Sums(dq_),
                    .dk = Sums(dk_),
                    .dv = Sums(dv_)};
    Check(WhyNot(pass.problem));
  }

  const Shape shape_;
  const TileLists lists_;
  std::mt19937_64 random_;
  const DeviceArray<uint16_t> q_, k_, v_, dout_, out_, row_outs_;
  const DeviceArray<float> row_lses_, lse_, delta_, dq_, dk_, dv_;
  const DeviceArray<Tile> tiles_;
  const DeviceArray<TileKeys> keys_;
  const DeviceArray<uint32_t> merge_begin_, merge_rows_;
  ForwardProblem forward_;
  std::list<Pass> passes_;
};

void Run(const Shape& shape) {
  DilatedAttentionOptions options;
  for (const int64_t rate : {1, 2, 4, 8, 16}) options.branches.push_back({2048 * rate, rate});
  const auto plan = AttentionPlan::Create(options, ShardMap::Contiguous(shape.tokens, 1, 1),
                                          shape.heads, shape.heads);
  const double flops = plan->ForwardFlops(0, {.batch = 1, .head_dim = shape.dim});
  const Rank rank(shape, *plan);
  const double tiles = Milliseconds([&] { return rank.Tiles(); });
  const double mix = Milliseconds([&] { return rank.Mixing(); });
  const double dots = Milliseconds([&] { return rank.Dots(); });
  const double backward = Milliseconds([&] { return rank.Backward(); });
  const double forward = tiles + mix, all = forward + dots + backward;
  std::printf(
      "{\"benchmark\": \"rank_attention\", \"tokens\": %ld, \"heads\": %d, \"head_dim\": %d, "
      "\"tiles_ms\": %.3f, \"mix_ms\": %.3f, \"dots_ms\": %.3f, \"backward_ms\": %.3f, "
      "\"forward_tflops\": %.0f, \"forward_backward_tflops\": %.0f}\n",
      static_cast<long>(shape.tokens), shape.heads, shape.dim, tiles, mix, dots, backward,
      flops / forward / 1e9, 3.5 * flops / all / 1e9);
  std::fflush(stdout);
}

}  // namespace
}  // namespace ringmaster::attention::kernels

int main(int argc, char** argv) try {
  for (int i = 1; i < argc; ++i) {
    const int64_t tokens = std::atoll(argv[i]);
    ringmaster::attention::kernels::Run({tokens, 16, 128});
    ringmaster::attention::kernels::Run({tokens, 12, 64});
  }
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
