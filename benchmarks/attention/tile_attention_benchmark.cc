// The kernels over tiles on a Hopper GPU, forward and backward: dense and dilated segments of 64K
// random bf16 tokens, 2048 wide. Prints one JSON object a case: milliseconds (median of ten after
// a second), TFLOP/s of the products that attention itself needs, 2 forward and 5 backward.
#include <cstdio>
#include <exception>
#include <random>
#include <string>
#include <vector>

#include "attention/kernels/tile_attention.h"
#include "attention/plan/plan.h"
#include "benchmarks/attention/gpu_timer.h"
#include "tests/attention/kernels/branch_lists.h"
#include "tests/attention/kernels/device_array.h"
#include "tests/attention/kernels/elements.h"

namespace ringmaster::attention::kernels {
namespace {

constexpr int64_t kTokens = 65536;
constexpr int kWidth = 2048;

struct Case {
  int dim;
  bool causal;
  int64_t segment;
  int64_t rate;

  int heads() const { return kWidth / dim; }
  int64_t rows() const { return segment / rate; }
  Branch branch() const { return {kTokens, segment, rate, heads(), heads(), causal}; }
  double Flops() const {
    return 4.0 * dim * heads() * (kTokens / segment) * rows() * rows() / (causal ? 2 : 1);
  }
};

struct Tensors {
  Tensors(const Case& c, std::mt19937_64* random)
      : count(kTokens * kWidth),
        q(RandomElements(ElementType::kBf16, count, random)),
        k(RandomElements(ElementType::kBf16, count, random)),
        v(RandomElements(ElementType::kBf16, count, random)),
        view{{nullptr, 1, kTokens, c.heads(), count, kWidth, c.dim}, c.rate} {}
  View Of(const DeviceArray<uint16_t>& tensor) const {
    View result = view;
    result.operand.data = tensor.data();
    return result;
  }

  int64_t count;
  DeviceArray<uint16_t> q, k, v;
  View view;
};

double Forward(const Case& c, const Tensors& tensors) {
  const BranchLists lists = ListsOf(c.branch(), TileRowsOf(c.dim));
  const DeviceArray<Tile> tiles(lists.tiles);
  const DeviceArray<TileKeys> keys(lists.keys);
  const DeviceArray<uint16_t> out(kTokens * kWidth);
  const DeviceArray<float> lse(kTokens * c.heads());
  ForwardProblem problem;
  problem.head_dim = c.dim;
  problem.scale = 0.08f;
  problem.query_views = {tensors.Of(tensors.q)};
  problem.key_views = {tensors.Of(tensors.k)};
  problem.value_views = {tensors.Of(tensors.v)};
  problem.tiles = tiles.data();
  problem.tile_count = static_cast<int>(lists.tiles.size());
  problem.keys = keys.data();
  const DeviceArray<unsigned> taken(size_t{1});
  problem.taken = taken.data();
  problem.results = {.out = out.data(), .lse = lse.data()};
  Check(WhyNot(problem));
  return Milliseconds([&] { return TileForward(problem, nullptr); });
}

double Backward(const Case& c, const Tensors& tensors, bool deterministic) {
  const BranchLists lists = ListsOf(c.branch(), kBackwardTileRows);
  const DeviceArray<Tile> tiles(lists.tiles);
  const DeviceArray<TileKeys> keys(lists.keys), queries(lists.queries);
  const DeviceArray<KeyTile> key_tiles(lists.key_tiles);
  const DeviceArray<float> starts(kTokens * PairsOfHeads(c.heads()) * 4);
  const DeviceArray<float> dq(tensors.count), dk(tensors.count), dv(tensors.count);
  BackwardProblem problem;
  problem.head_dim = c.dim;
  problem.scale = 0.08f;
  problem.query_views = {tensors.Of(tensors.q)};
  problem.dout_views = {tensors.Of(tensors.v)};
  problem.key_views = {tensors.Of(tensors.k)};
  problem.value_views = {tensors.Of(tensors.v)};
  problem.starts = starts.data();
  problem.tiles = tiles.data();
  problem.tile_count = static_cast<int>(lists.tiles.size());
  problem.keys = keys.data();
  problem.key_tiles = key_tiles.data();
  problem.key_tile_count = static_cast<int>(lists.key_tiles.size());
  problem.queries = queries.data();
  const DeviceArray<unsigned> taken(size_t{1});
  problem.taken = taken.data();
  problem.deterministic = deterministic;
  problem.dq = {{dq.data(), 0, kTokens, 0, kWidth, c.dim}};
  problem.dk = {{dk.data(), 0, kTokens, 0, kWidth, c.dim}};
  problem.dv = {{dv.data(), 0, kTokens, 0, kWidth, c.dim}};
  Check(WhyNot(problem));
  return Milliseconds([&] { return TileBackward(problem, nullptr); });
}

void Run(const Case& c) {
  std::mt19937_64 random(7);
  const Tensors tensors(c, &random);
  const double forward = Forward(c, tensors), backward = Backward(c, tensors, false);
  const double deterministic = Backward(c, tensors, true);
  std::printf(
      "{\"benchmark\": \"tile_attention\", \"head_dim\": %d, \"causal\": %s, \"segment\": %ld, "
      "\"rate\": %ld, "
      "\"forward_ms\": %.3f, \"forward_tflops\": %.0f, \"backward_ms\": %.3f, \"backward_tflops\": "
      "%.0f, \"deterministic_backward_tflops\": %.0f}\n",
      c.dim, c.causal ? "true" : "false", static_cast<long>(c.segment), static_cast<long>(c.rate),
      forward, c.Flops() / forward / 1e9, backward,
      kBackwardOverForward * c.Flops() / backward / 1e9,
      kBackwardOverForward * c.Flops() / deterministic / 1e9);
}

}  // namespace
}  // namespace ringmaster::attention::kernels

int main() try {
  for (const int dim : {128, 64}) {
    for (const bool causal : {false, true}) {
      for (const auto& [segment, rate] : std::vector<std::pair<int64_t, int64_t>>{
               {2048, 1}, {4096, 1}, {8192, 1}, {16384, 1}, {4096, 2}, {8192, 4}, {32768, 16}}) {
        ringmaster::attention::kernels::Run({dim, causal, segment, rate});
      }
    }
  }
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
