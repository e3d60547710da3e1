// The operator by lists of tiles against the dense oracle: packing, exchange, merge, gradients.
// With kernels that run on the host (tile_ops_on_host.cc), or, with --device=cuda, with those of
// the GPU.
#include "attention/tiles/tile_passes.h"

#include <ATen/Context.h>
#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>

#include "attention/plan/block_patterns.h"
#include "tests/attention/attention_case.h"
#include "tests/attention/flags.h"

namespace ringmaster::attention {
namespace {

CaseFlags g_flags = {.cases = 24};

// A case that tiles take.
AttentionCase TileCase(uint64_t seed) {
  AttentionCase problem = RandomCase(seed, {.min_tokens = kMaxShortTokens + 1,
                                            .max_tokens = 300,
                                            .dtypes = {at::kBFloat16, at::kHalf},
                                            .ranks = {1, 2, 3, 4},
                                            .head_dims = {64, 128, 1, 7, 40, 65, 96, 127}});
  problem.options.mix_gradient = MixGradient::kExact;
  if (problem.options.scale.value_or(1) <= 0) problem.options.scale = 0.2;
  if (seed % 4 < 2) {
    const bool first = seed % 2 == 0;
    problem.options.branches.insert(
        first ? problem.options.branches.begin() : problem.options.branches.end(),
        {problem.options.branches[0].segment_length, 1});
    // Every row is covered now.
    problem.dout = problem.dout.nan_to_num(0.5);
  }
  return problem;
}

// Masks, of which some show keys to nobody.
AttentionCase BlockTileCase(uint64_t seed) {
  AttentionCase problem = RandomBlockCase(seed, {.min_tokens = kMaxShortTokens + 1,
                                                 .max_tokens = 420,
                                                 .dtypes = {at::kBFloat16, at::kHalf},
                                                 .ranks = {1, 2, 3, 4},
                                                 .head_dims = {64, 128, 1, 7, 40, 65, 96, 127}});
  BlockSparseAttentionOptions& blocks = *problem.blocks;
  if (blocks.scale.value_or(1) <= 0) blocks.scale = 0.2;
  if (seed % 2 == 0) return problem;
  // No query is left without a key, of its own document.
  const BlockMask given = blocks.mask;
  blocks.mask = *BlockMask::Create(given.shape(), [&](int64_t head, int64_t query, BlockRow& row) {
    bool any = false;
    if (!blocks.documents.empty()) row.Show(query);
    ForEachBlock(given.Row(head, query), given.shape().blocks(), [&](int64_t key) {
      row.Show(key);
      any |= !blocks.causal || key <= query;
    });
    if (!any) row.Show(query / 2);
  });
  problem.dout = problem.dout.nan_to_num(0.5);
  return problem;
}

// Joins what can be joined.
void JoinAll(const AttentionCase& problem, int rank, Call* call) {
  const auto heads = static_cast<int>(problem.q.size(2)),
             kv_heads = static_cast<int>(problem.k.size(2));
  const at::Tensor q = problem.q.narrow(1, 0, problem.map.LocalTokens(rank));
  TileShape shape = TileShapeOf(q.to(g_flags.device), problem.k);
  shape.joined = 15;
  call->parts =
      FindParts(problem.pattern(), problem.map, rank, heads, kv_heads, g_flags.device, shape);
}

// Memory that nobody has written is NaN when algorithms are deterministic.
void UseDeterministicAlgorithms(bool deterministic) {
  at::globalContext().setDeterministicAlgorithms(deterministic, /*warn_only=*/true);
}

// NaN wherever a query sees no key, as in dout, and where nobody sees a key.
AttentionCase Poisoned(AttentionCase problem, const ReferenceResult& reference) {
  const at::Tensor blind = reference.lse.isneginf().unsqueeze(-1);
  const at::Tensor unseen = reference.dv.eq(0).all(-1, /*keepdim=*/true);
  problem.q = problem.q.masked_fill(blind, std::nan(""));
  problem.k = problem.k.masked_fill(unseen, std::nan(""));
  problem.v = problem.v.masked_fill(unseen, std::nan(""));
  return problem;
}

void CheckCases(AttentionCase (*make)(uint64_t seed)) {
  CaseErrors worst = {};
  for (int i = 0; i < g_flags.cases && !testing::Test::HasFailure(); ++i) {
    const uint64_t seed = g_flags.seed + i;
    UseDeterministicAlgorithms(g_flags.device.is_cpu() || i % 2 == 1);
    AttentionCase problem = make(seed);
    if (seed % 4 == 0 && problem.map.ranks() > 1) problem.strategy = Strategy::kHeads;
    SCOPED_TRACE(testing::Message() << "seed " << seed << ": " << problem.Describe());
    ASSERT_EQ(
        DescribeExecutor(problem.q.to(g_flags.device), problem.pattern(), problem.map.tokens()),
        "kernels over tiles");
    const ReferenceResult reference =
        ReferenceAttention(problem.q, problem.k, problem.v, problem.dout, problem.pattern());
    const CaseErrors same = SamePrecisionErrors(problem, reference, /*fused=*/true);
    const AttentionResult result =
        i % 3 == 0 || problem.strategy == Strategy::kHeads
            ? RunRanks(Poisoned(problem, reference), Path::kAsCalled, g_flags.device)
            : RunRanks(Poisoned(problem, reference), Path::kLongSequence, g_flags.device,
                       [&](int rank, Call* call) { JoinAll(problem, rank, call); });
    EXPECT_TRUE(result.lse.isneginf().equal(reference.lse.isneginf()));
    const AttentionResult planned = PlannedTraffic(problem);
    EXPECT_EQ(result.sent_bytes, planned.sent_bytes);
    EXPECT_EQ(result.sent_messages, planned.sent_messages);
    const CaseErrors errors = ErrorsOf(result, reference);
    for (size_t i = 0; i < errors.size(); ++i) {
      EXPECT_LE(errors[i], ErrorLimit(problem.q.scalar_type(), i, same[i])) << kTensors[i];
      worst[i] = std::max(worst[i], same[i] > 0 ? errors[i] / same[i] : 0);
    }
  }
  std::printf("seeds %llu..%llu, times the models' error at most:",
              static_cast<unsigned long long>(g_flags.seed),
              static_cast<unsigned long long>(g_flags.seed + g_flags.cases - 1));
  for (size_t i = 0; i < worst.size(); ++i) std::printf("  %s %.2f", kTensors[i], worst[i]);
  std::printf("\n");
}

TEST(TilePassesTest, EqualTheDenseOracle) { CheckCases(&TileCase); }

TEST(TilePassesTest, BlocksEqualTheDenseOracle) { CheckCases(&BlockTileCase); }

struct Results {
  AttentionOutput output;
  DenseGradients gradients;
};

Results RunPasses(const Call& call, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                  const at::Tensor& dout) {
  Saved saved;
  const AttentionOutput output = Forward(call, q, k, v, &saved);
  return {output, Backward(call, saved, dout)};
}

at::Tensor Random(at::IntArrayRef sizes) {
  return at::randn(sizes).to(at::kBFloat16).to(g_flags.device);
}

// Every query sees keys, not every key is seen.
TEST(TilePassesTest, KeysThatNobodySeesMayBeAnything) {
  const int64_t tokens = 320, block = 64;
  const BlockSparseAttentionOptions options = {
      .mask = *BlockMask::Create({.heads = 1, .tokens = tokens, .block_size = block},
                                 [](int64_t, int64_t, BlockRow& row) { row.Show(0); })};
  at::manual_seed(4);
  UseDeterministicAlgorithms(true);
  const at::Tensor q = Random({1, tokens, 2, 64}), dout = Random({1, tokens, 2, 64});
  const at::Tensor k = Random({1, tokens, 1, 64}), v = Random({1, tokens, 1, 64});
  const Call call = MakeCall(q, k, v, options, ShardMap::Contiguous(tokens, 1, 1), nullptr);
  ASSERT_EQ(call.why_not_tiles, "");
  const Results want = RunPasses(call, q, k, v, dout);
  for (const at::Tensor& x : {k, v}) x.narrow(1, block, tokens - block).fill_(std::nan(""));
  const Results got = RunPasses(call, q, k, v, dout);
  EXPECT_TRUE(got.output.out.equal(want.output.out));
  EXPECT_TRUE(got.gradients.dq.equal(want.gradients.dq));
  EXPECT_TRUE(got.gradients.dk.equal(want.gradients.dk));
  EXPECT_TRUE(got.gradients.dv.equal(want.gradients.dv));
}

// So many that each block of a GPU gets several, two sequences of them.
TEST(TilePassesTest, ManyTilesEqualStockOperations) {
  at::manual_seed(1);
  const int64_t tokens = g_flags.device.is_cuda() ? 20011 : 611;
  const ShardMap map = ShardMap::Contiguous(tokens, 1, 1);
  for (const int64_t dim : {64, 128}) {
    for (const bool causal : {true, false}) {
      UseDeterministicAlgorithms(g_flags.device.is_cpu() || causal);
      const DilatedAttentionOptions options = {
          .branches = {{300, 1}, {1000, 2}, {3000, 5}, {tokens, 16}}, .causal = causal};
      const at::Tensor q = Random({2, tokens, 4, dim}), dout = Random({2, tokens, 4, dim});
      const at::Tensor k = Random({2, tokens, 2, dim}), v = Random({2, tokens, 2, dim});
      const Call tiles = MakeCall(q, k, v, options, map, nullptr);
      ASSERT_EQ(tiles.why_not_tiles, "");
      Call stock = tiles;
      stock.why_not_tiles = "a test";
      stock.parts = FindParts(options, map, 0, 4, 2, q.device(), {});
      const Results got = RunPasses(tiles, q, k, v, dout);
      const Results want = RunPasses(stock, q, k, v, dout);
      const auto check = [](const at::Tensor& x, const at::Tensor& y, double limit) {
        EXPECT_LE(RelativeError(x.cpu(), y.cpu()), limit);
      };
      // Both round; rows that were confused would miss by about one.
      check(got.output.out, want.output.out, 0.1);
      check(got.output.lse, want.output.lse, 1e-4);
      check(got.gradients.dq, want.gradients.dq, 0.2);
      check(got.gradients.dk, want.gradients.dk, 0.2);
      check(got.gradients.dv, want.gradients.dv, 0.1);
    }
  }
}

// 2.5e9 elements a tensor. Segments meet no others, so that the first and the last tokens have what
// they would have alone.
TEST(TilePassesTest, ElementsMayBeMoreThanFitInto31Bits) {
  if (g_flags.device.is_cpu()) GTEST_SKIP() << "wants 55 GB of a GPU: run it with --device=cuda";
  UseDeterministicAlgorithms(false);
  const int64_t longest = int64_t{1} << 15, tokens = 37 * longest, some = 2 * longest;
  const DilatedAttentionOptions options = {
      .branches = {{longest / 16, 1}, {longest / 4, 4}, {longest, 16}}};
  const auto random = [&] {
    return at::empty({1, tokens, 16, 128}, at::TensorOptions(g_flags.device).dtype(at::kBFloat16))
        .normal_();
  };
  const at::Tensor q = random(), k = random(), v = random(), dout = random();
  ASSERT_GT(q.numel(), int64_t{1} << 31);
  const auto run = [&](int64_t begin, int64_t count) {
    const auto part = [&](const at::Tensor& x) { return x.narrow(1, begin, count); };
    const Call call =
        MakeCall(part(q), part(k), part(v), options, ShardMap::Contiguous(count, 1, 1), nullptr);
    EXPECT_EQ(call.why_not_tiles, "");
    return RunPasses(call, part(q), part(k), part(v), part(dout));
  };
  const Results all = run(0, tokens);
  for (const int64_t begin : {int64_t{0}, tokens - some}) {
    const Results want = run(begin, some);
    const auto check = [&](const at::Tensor& x, const at::Tensor& y) {
      EXPECT_LE(RelativeError(x.narrow(1, begin, some).cpu(), y.cpu()), 0.02);
    };
    check(all.output.out, want.output.out);
    check(all.output.lse, want.output.lse);
    check(all.gradients.dq, want.gradients.dq);
    check(all.gradients.dk, want.gradients.dk);
    check(all.gradients.dv, want.gradients.dv);
  }
}

// Sums of one window after the other are the sums of all, bit for bit.
TEST(TilePassesTest, WindowsChangeNothing) {
  at::manual_seed(3);
  UseDeterministicAlgorithms(true);
  const int64_t tokens = g_flags.device.is_cuda() ? 20011 : 611;
  const ShardMap map = ShardMap::Contiguous(tokens, 1, 1);
  const at::Tensor q = Random({2, tokens, 4, 64}), dout = Random({2, tokens, 4, 64});
  const at::Tensor k = Random({2, tokens, 2, 64}), v = Random({2, tokens, 2, 64});
  // Of the first rates a place of keys is stored before it is added to, of the others it is not.
  for (const int64_t rate : {4, 3}) {
    const DilatedAttentionOptions options = {.branches = {{100, 1}, {200, 2}, {200, rate}}};
    const Call whole = MakeCall(q, k, v, options, map, nullptr);
    ASSERT_EQ(whole.why_not_tiles, "");
    TileShape shape = TileShapeOf(q, k);
    shape.window_tokens = 300;
    Call windows = whole;
    windows.parts = FindParts(options, map, 0, 4, 2, q.device(), shape);
    ASSERT_EQ(whole.parts->tiles()->windows.size(), 1u);
    ASSERT_EQ(windows.parts->tiles()->windows.size(), tokens / 400 + 1);
    const Results want = RunPasses(whole, q, k, v, dout);
    const Results got = RunPasses(windows, q, k, v, dout);
    EXPECT_TRUE(got.gradients.dq.equal(want.gradients.dq));
    EXPECT_TRUE(got.gradients.dk.equal(want.gradients.dk));
    EXPECT_TRUE(got.gradients.dv.equal(want.gradients.dv));
    if (g_flags.device.is_cpu()) continue;
    // The kernel that sums dq as it comes finds its place in a window by itself, and branches that
    // add to dk and dv do it in any order.
    shape.deterministic = false;
    windows.parts = FindParts(options, map, 0, 4, 2, q.device(), shape);
    const Results fast = RunPasses(windows, q, k, v, dout);
    EXPECT_LE(RelativeError(fast.gradients.dq.cpu(), want.gradients.dq.cpu()), 0.02);
    EXPECT_LE(RelativeError(fast.gradients.dk.cpu(), want.gradients.dk.cpu()), 0.01);
    EXPECT_LE(RelativeError(fast.gradients.dv.cpu(), want.gradients.dv.cpu()), 0.01);
  }
}

// Beside an odd number, with heads before tokens, all rows the same one.
TEST(TilePassesTest, OperandsMayLieAnyhow) {
  at::manual_seed(2);
  const ShardMap map = ShardMap::Contiguous(300, 1, 1);
  for (const int64_t dim : {64, 40}) {
    const at::Tensor q = Random({1, 300, 2, dim}), k = Random({1, 300, 2, dim});
    const at::Tensor v = Random({1, 300, 2, dim}), dout = Random({1, 1, 1, dim});
    const Call call =
        MakeCall(q, k, v, DilatedAttentionOptions{.branches = {{128, 1}, {300, 3}}}, map, nullptr);
    ASSERT_EQ(call.why_not_tiles, "");
    UseDeterministicAlgorithms(true);
    const at::Tensor room = Random({q.numel() + 1});
    const at::Tensor beside = room.slice(0, 1).view(q.sizes()).copy_(q);
    const at::Tensor turned = k.transpose(1, 2).contiguous().transpose(1, 2);
    const Results want = RunPasses(call, q, k, v, dout.expand(q.sizes()).contiguous());
    const Results got = RunPasses(call, beside, turned, v, dout.expand(q.sizes()));
    EXPECT_TRUE(got.output.out.equal(want.output.out));
    EXPECT_TRUE(got.gradients.dq.equal(want.gradients.dq));
    EXPECT_TRUE(got.gradients.dk.equal(want.gradients.dk));
    EXPECT_TRUE(got.gradients.dv.equal(want.gradients.dv));
    EXPECT_TRUE(got.output.out.is_contiguous());
  }
}

TEST(TilePassesTest, SaysWhyNot) {
  const at::Tensor q = at::zeros({1, 300, 2, 64}, at::kBFloat16);
  const DilatedAttentionOptions options = {.branches = {{64, 1}, {128, 2}}};
  EXPECT_EQ(WhyNotTiles(q, options, 0.1, at::kFloat), "");
  EXPECT_EQ(WhyNotTiles(q.to(at::kHalf), options, 0.1, at::kFloat), "");
  EXPECT_EQ(WhyNotTiles(q.to(at::kFloat), options, 0.1, at::kFloat),
            "the dtype is Float, not BFloat16 or Half");
  EXPECT_EQ(WhyNotTiles(q, options, 0.1, at::kDouble), "short sequences are summed in fp64");
  for (const int64_t dim : {1, 33, 65, 128}) {
    EXPECT_EQ(WhyNotTiles(q.new_zeros({1, 300, 2, dim}), options, 0.1, at::kFloat), "");
  }
  EXPECT_EQ(WhyNotTiles(q.new_zeros({1, 300, 2, 129}), options, 0.1, at::kFloat),
            "the head dimension is 129, above 128");
  for (const double scale : {0.0, -1.0, 1e-60, std::nan("")}) {
    EXPECT_NE(WhyNotTiles(q, options, scale, at::kFloat), "");
  }
  DilatedAttentionOptions other = options;
  other.mix_gradient = MixGradient::kDetached;
  EXPECT_EQ(WhyNotTiles(q, other, 0.1, at::kFloat),
            "detached mixing weights need the output of each branch");
  other.branches.resize(1);
  EXPECT_EQ(WhyNotTiles(q, other, 0.1, at::kFloat), "");
  other.branches[0].dilation_rate = 2;
  EXPECT_EQ(WhyNotTiles(q, other, 0.1, at::kFloat), "");
  other.branches.resize(15, {64, 1});
  other.mix_gradient = MixGradient::kExact;
  EXPECT_EQ(WhyNotTiles(q, other, 0.1, at::kFloat), "15 branches, more than 14");
  EXPECT_NE(WhyNotTiles(q.expand({65536, 300, 2, 64}), options, 0.1, at::kFloat), "");
  EXPECT_NE(WhyNotTiles(q[0][0][0].expand({1, int64_t{1} << 30, 1, 64}), options, 0.1, at::kFloat),
            "");
  EXPECT_NE(WhyNotTiles(q[0][0][0].expand({1, int64_t{1} << 29, 4, 64}), options, 0.1, at::kFloat),
            "");
}

// The order of tiles is no matter of results.
TEST(TilePassesTest, AHilbertCurveChangesNoBit) {
  at::manual_seed(4);
  UseDeterministicAlgorithms(true);
  const ShardMap map = ShardMap::Contiguous(1200, 1, 1);
  BlockSparseAttentionOptions options = {
      .mask = *MakeBlockMask({.kind = BlockPattern::Kind::kRandom, .density = 0.4, .heads = 2}, map,
                             1)};
  const at::Tensor q = Random({1, 1200, 2, 64}), dout = Random({1, 1200, 2, 64});
  const at::Tensor k = Random({1, 1200, 1, 64}), v = Random({1, 1200, 1, 64});
  const Call heavy_first = MakeCall(q, k, v, options, map, nullptr);
  options.tile_order = TileOrder::kHilbert;
  const Call curve = MakeCall(q, k, v, options, map, nullptr);
  ASSERT_TRUE(heavy_first.by_tiles() && curve.by_tiles());
  EXPECT_FALSE(heavy_first.parts->tiles()->last.tiles.equal(curve.parts->tiles()->last.tiles));
  const Results a = RunPasses(heavy_first, q, k, v, dout), b = RunPasses(curve, q, k, v, dout);
  EXPECT_TRUE(a.output.out.equal(b.output.out));
  EXPECT_TRUE(a.output.lse.equal(b.output.lse));
  EXPECT_TRUE(a.gradients.dq.equal(b.gradients.dq));
  EXPECT_TRUE(a.gradients.dk.equal(b.gradients.dk));
  EXPECT_TRUE(a.gradients.dv.equal(b.gradients.dv));
}

TEST(TilePassesTest, SaysWhyNotAMask) {
  const at::Tensor q = at::zeros({1, 300, 2, 64}, at::kBFloat16);
  BlockSparseAttentionOptions options = {
      .mask = *BlockMask::Create({.tokens = 300}, [](int64_t, int64_t, BlockRow&) {})};
  EXPECT_EQ(WhyNotTiles(q, options, 0.1, at::kFloat), "");
  options.gated = true;
  EXPECT_EQ(WhyNotTiles(q, options, 0.1, at::kFloat), "the kernels know no gates");
}

}  // namespace
}  // namespace ringmaster::attention

int main(int argc, char** argv) {
  return ringmaster::attention::RunTestsOfCases(argc, argv, &ringmaster::attention::g_flags);
}
