// Whole problems of several ranks by the kernels alone, from lists of tiles to gradients, one rank
// after the other on one GPU, against the dense oracle.
#include <ATen/Functions.h>
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "attention/kernels/mix.h"
#include "attention/kernels/tile_attention.h"
#include "attention/plan.h"
#include "attention/reference_attention.h"
#include "attention/tile_lists.h"
#include "tests/attention/attention_case.h"
#include "tests/attention/kernels/device_array.h"
#include "tests/attention/kernels/hopper.h"
#include "tests/attention/pool_rows.h"

namespace ringmaster::attention::kernels {
namespace {

// A tensor [batch, tokens, heads, dim] on the device: bf16, or fp32 zeros for its gradient.
struct Placed {
  explicit Placed(const at::Tensor& x)
      : bits(std::vector<uint16_t>(static_cast<const uint16_t*>(x.const_data_ptr()),
                                   static_cast<const uint16_t*>(x.const_data_ptr()) + x.numel())),
        gradient(static_cast<size_t>(x.numel())),
        sizes(x.sizes().vec()) {}

  Operand operand() const {
    const int64_t token = sizes[2] * sizes[3];
    return {bits.data(), sizes[0], sizes[1], sizes[2], sizes[1] * token, token, sizes[3]};
  }
  Gradient sums() const {
    const int64_t token = sizes[2] * sizes[3];
    return {gradient.data(), sizes[1] * token, token, sizes[3]};
  }
  at::Tensor HostGradient() const { return at::tensor(gradient.Host()).view(sizes); }

  const DeviceArray<uint16_t> bits;
  const DeviceArray<float> gradient;
  const std::vector<int64_t> sizes;
};

at::Tensor HostBf16(const DeviceArray<uint16_t>& bits, at::IntArrayRef sizes) {
  const std::vector<uint16_t> host = bits.Host();
  const at::Tensor x = at::empty(sizes, at::kBFloat16);
  std::copy(host.begin(), host.end(), static_cast<uint16_t*>(x.mutable_data_ptr()));
  return x;
}

// Lists on the device.
struct PlacedQueries {
  explicit PlacedQueries(const TileLists::QueryTiles& lists)
      : count(static_cast<int>(lists.tiles.size())), tiles(lists.tiles), keys(lists.keys) {}
  const int count;
  const DeviceArray<Tile> tiles;
  const DeviceArray<TileKeys> keys;
};

// One rank: its rows and, for what is not its own, its pool.
struct Rank {
  Rank(const TileLists& tile_lists, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
       const at::Tensor& dout, const at::Tensor& pool_k, const at::Tensor& pool_v)
      : lists(tile_lists), q(q), k(k), v(v), dout(dout), pool_k(pool_k), pool_v(pool_v) {}

  std::vector<View> Views(const Placed& own) const {
    std::vector<View> views;
    for (const int64_t step : lists.steps) views.push_back({own.operand(), step});
    return views;
  }
  std::vector<View> Views(const Placed& own, const Placed& pool) const {
    std::vector<View> views = Views(own);
    if (pool.sizes[1] > 0) views.push_back({pool.operand(), 1});
    return views;
  }
  std::vector<Gradient> Sums(const Placed& own, const Placed& pool) const {
    std::vector<Gradient> sums(lists.steps.size(), own.sums());
    sums.push_back(pool.sums());
    return sums;
  }

  const TileLists lists;
  const Placed q, k, v, dout, pool_k, pool_v;
};

struct Output {
  at::Tensor out;          // bf16 [batch, tokens, heads, dim]
  std::vector<float> lse;  // [batch, tokens, heads]
};

Output RunForward(const Rank& rank, float scale) {
  const int64_t batch = rank.q.sizes[0], places = rank.q.sizes[1] * rank.q.sizes[2];
  const int dim = static_cast<int>(rank.q.sizes[3]);
  const int64_t rows = rank.lists.out_rows;
  const DeviceArray<uint16_t> row_outs(std::vector<uint16_t>(batch * rows * dim, 0x7FC0));
  const DeviceArray<float> row_lses(std::vector<float>(batch * rows, NAN));
  for (const TileLists::QueryTiles* lists : {&rank.lists.local, &rank.lists.far}) {
    if (lists->tiles.empty()) continue;
    const PlacedQueries placed(*lists);
    const ForwardProblem problem = {
        .head_dim = dim,
        .scale = scale,
        .query_views = rank.Views(rank.q),
        .key_views = rank.Views(rank.k, rank.pool_k),
        .value_views = rank.Views(rank.v, rank.pool_v),
        .tiles = placed.tiles.data(),
        .tile_count = placed.count,
        .keys = placed.keys.data(),
        .results = {row_outs.data(), rows * dim, dim, 0, row_lses.data(), rows, 1, 0}};
    Check(WhyNot(problem));
    Check(TileForward(problem, nullptr));
    Check(cudaDeviceSynchronize());
  }
  const DeviceArray<uint32_t> merge_begin(rank.lists.merge_begin),
      merge_rows(rank.lists.merge_rows);
  const DeviceArray<uint16_t> out(static_cast<size_t>(batch * places * dim));
  const DeviceArray<float> lse(static_cast<size_t>(batch * places));
  Check(Mix({.head_dim = dim,
             .batch = batch,
             .row_outs = row_outs.data(),
             .row_lses = row_lses.data(),
             .rows = rows,
             .places = places,
             .merge_begin = merge_begin.data(),
             .merge_rows = merge_rows.data(),
             .out = out.data(),
             .lse = lse.data()},
            nullptr));
  Check(cudaDeviceSynchronize());
  return {HostBf16(out, rank.q.sizes), lse.Host()};
}

// Adds to the gradients of q, k, v and the pool.
void RunBackward(const Rank& rank, float scale, const Output& output) {
  const int64_t tokens = rank.q.sizes[1], heads = rank.q.sizes[2];
  const int dim = static_cast<int>(rank.q.sizes[3]);
  const Placed out(output.out);
  const DeviceArray<float> lse(output.lse), delta(output.lse.size());
  Check(RowDots(dim, static_cast<int64_t>(output.lse.size()), rank.dout.bits.data(),
                out.bits.data(), delta.data(), nullptr));
  for (const auto* passes : {&rank.lists.backward_far, &rank.lists.backward_local}) {
    for (const TileLists::Backward& pass : *passes) {
      const PlacedQueries queries(pass.queries);
      const DeviceArray<KeyTile> key_tiles(pass.keys.tiles);
      const DeviceArray<TileKeys> key_queries(pass.keys.queries);
      const BackwardProblem problem = {
          .head_dim = dim,
          .scale = scale,
          .query_views = rank.Views(rank.q),
          .dout_views = rank.Views(rank.dout),
          .key_views = rank.Views(rank.k, rank.pool_k),
          .value_views = rank.Views(rank.v, rank.pool_v),
          .lse = {lse.data(), tokens * heads, heads, 1},
          .delta = {delta.data(), tokens * heads, heads, 1},
          .tiles = queries.tiles.data(),
          .tile_count = queries.count,
          .keys = queries.keys.data(),
          .key_tiles = key_tiles.data(),
          .key_tile_count = static_cast<int>(pass.keys.tiles.size()),
          .queries = key_queries.data(),
          .dq = std::vector<Gradient>(rank.lists.steps.size(), rank.q.sums()),
          .dk = rank.Sums(rank.k, rank.pool_k),
          .dv = rank.Sums(rank.v, rank.pool_v)};
      Check(WhyNot(problem));
      Check(TileBackward(problem, nullptr));
      Check(cudaDeviceSynchronize());
    }
  }
}

// All ranks, with what travels between them carried by hand.
class Ring {
 public:
  explicit Ring(const AttentionCase& problem)
      : problem_(problem),
        parts_(PartsOf(problem)),
        scale_(1 / std::sqrt(static_cast<float>(problem.q.size(3)))) {
    const int64_t dim = problem.q.size(3), batch = problem.q.size(0);
    std::vector<at::Tensor> pool_k, pool_v;
    for (size_t i = 0; i < parts_.size(); ++i) {
      positions_.push_back(at::tensor(problem.map.Positions(static_cast<int>(i)), at::kLong));
      for (auto* pools : {&pool_k, &pool_v}) {
        pools->push_back(at::zeros({batch, parts_[i].pool_rows, 1, dim}, at::kBFloat16));
      }
    }
    ForEachPoolRow(parts_, [&](size_t owner, int64_t token, int64_t head, size_t to, int64_t row) {
      const int64_t position = positions_[owner][token].item<int64_t>();
      pool_k[to].select(1, row).select(1, 0).copy_(problem.k.select(1, position).select(1, head));
      pool_v[to].select(1, row).select(1, 0).copy_(problem.v.select(1, position).select(1, head));
    });
    for (size_t i = 0; i < parts_.size(); ++i) {
      const auto local = [&](const at::Tensor& x) {
        return x.index_select(1, positions_[i]).contiguous();
      };
      ranks_.push_back(std::make_unique<Rank>(
          MakeTileLists(parts_[i], positions_[i].size(0), static_cast<int>(problem.q.size(2)),
                        static_cast<int>(dim)),
          local(problem.q), local(problem.k), local(problem.v),
          // Tiles of keys multiply rows that no branch covers by zero: they must be finite.
          local(problem.dout.nan_to_num(100)), pool_k[i], pool_v[i]));
    }
  }

  ReferenceResult Run() {
    const at::Tensor& q = problem_.q;
    const at::Tensor& k = problem_.k;
    ReferenceResult result{at::zeros(q.sizes(), at::kFloat),
                           at::zeros(q.sizes().slice(0, 3), at::kFloat),
                           at::zeros(q.sizes(), at::kFloat), at::zeros(k.sizes(), at::kFloat),
                           at::zeros(k.sizes(), at::kFloat)};
    std::vector<at::Tensor> dk, dv, pool_dk, pool_dv;
    for (size_t i = 0; i < ranks_.size(); ++i) {
      const Rank& rank = *ranks_[i];
      if (rank.q.sizes[1] == 0) {
        for (auto* empty : {&dk, &dv, &pool_dk, &pool_dv}) empty->push_back(at::empty({0}));
        continue;
      }
      Output output = RunForward(rank, scale_);
      const at::Tensor lse = at::tensor(output.lse).view({q.size(0), rank.q.sizes[1], q.size(2)});
      result.out.index_copy_(1, positions_[i], output.out.to(at::kFloat));
      result.lse.index_copy_(1, positions_[i], lse);
      dv.push_back(TakeAloneOut(i, &output));
      RunBackward(rank, scale_, output);
      dk.push_back(rank.k.HostGradient());
      dv.back().add_(rank.v.HostGradient());
      pool_dk.push_back(rank.pool_k.HostGradient());
      pool_dv.push_back(rank.pool_v.HostGradient());
      result.dq.index_copy_(1, positions_[i], rank.q.HostGradient());
    }
    ForEachPoolRow(parts_, [&](size_t owner, int64_t token, int64_t head, size_t to, int64_t row) {
      dk[owner].select(1, token).select(1, head).add_(pool_dk[to].select(1, row).select(1, 0));
      dv[owner].select(1, token).select(1, head).add_(pool_dv[to].select(1, row).select(1, 0));
    });
    for (size_t i = 0; i < ranks_.size(); ++i) {
      if (ranks_[i]->q.sizes[1] == 0) continue;
      result.dk.index_copy_(1, positions_[i], dk[i]);
      result.dv.index_copy_(1, positions_[i], dv[i]);
    }
    for (at::Tensor* x : {&result.dq, &result.dk, &result.dv}) *x = x->to(at::kBFloat16);
    return result;
  }

 private:
  // The queries that see their own key alone: their dout is that key's, and an infinite lse takes
  // them out of the tiles. Returns dv so far.
  at::Tensor TakeAloneOut(size_t rank, Output* output) const {
    const int64_t batch = problem_.q.size(0), heads = problem_.q.size(2);
    const int64_t tokens = positions_[rank].size(0);
    at::Tensor dv = at::zeros(ranks_[rank]->v.sizes, at::kFloat);
    for (size_t i = 0; i < parts_[rank].alone.runs.size(); ++i) {
      const attention::Run& query = parts_[rank].alone.runs[i];
      const attention::Run& key = parts_[rank].alone_keys.runs[i];
      const int64_t position = positions_[rank][query.first].item<int64_t>();
      dv.select(1, key.first)
          .select(1, key.head)
          .add_(problem_.dout.select(1, position).select(1, query.head).to(at::kFloat));
      for (int64_t b = 0; b < batch; ++b) {
        output->lse[(b * tokens + query.first) * heads + query.head] =
            std::numeric_limits<float>::infinity();
      }
    }
    return dv;
  }

  const AttentionCase& problem_;
  const std::vector<RankParts> parts_;
  const float scale_;
  std::vector<at::Tensor> positions_;
  std::vector<std::unique_ptr<Rank>> ranks_;
};

class RankOnGpuTest : public testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    const std::string why = WhyNoHopper();
    if (!why.empty()) GTEST_SKIP() << why;
  }
};

TEST_P(RankOnGpuTest, EqualsTheDenseOracle) {
  CaseErrors worst = {};
  for (uint64_t seed = 1; seed <= 40 && !HasFailure(); ++seed) {
    AttentionCase problem =
        RandomCase(seed, {.max_tokens = 700, .dtypes = {at::kBFloat16}, .ranks = {1, 2, 3, 4}});
    at::manual_seed(seed);
    for (at::Tensor* x : {&problem.q, &problem.k, &problem.v, &problem.dout}) {
      *x = at::randn({x->size(0), x->size(1), x->size(2), GetParam()}).to(at::kBFloat16);
    }
    problem.options.mix_gradient = MixGradient::kExact;
    problem.options.scale.reset();
    SCOPED_TRACE(testing::Message() << "seed " << seed << ": " << problem.Describe());
    const at::Tensor lse =
        ReferenceAttention(problem.q, problem.k, problem.v, {}, problem.options).lse;
    problem.dout.masked_fill_(lse.isneginf().unsqueeze(-1), std::nan(""));
    const auto reference =
        ReferenceAttention(problem.q, problem.k, problem.v, problem.dout, problem.options);
    const CaseErrors same =
        ErrorsOf(SamePrecisionReference(problem.q, problem.k, problem.v, problem.dout,
                                        problem.options, /*fused_backward=*/true),
                 reference);
    const CaseErrors errors = ErrorsOf(Ring(problem).Run(), reference);
    for (size_t i = 0; i < errors.size(); ++i) {
      // lse is fp32. Where one key has almost all of a query's weight, one rounding decides the
      // largest error of its gradients, and a delta that differs in the last place turns it over.
      const double limit = i == kLse ? 2e-5 : (i > kLse ? 2.5 : 2) * same[i];
      EXPECT_LE(errors[i], limit) << kTensors[i];
      worst[i] = std::max(worst[i], same[i] > 0 ? errors[i] / same[i] : 0);
    }
  }
  std::printf("times the dense model's error at most:");
  for (size_t i = 0; i < worst.size(); ++i) std::printf("  %s %.2f", kTensors[i], worst[i]);
  std::printf("\n");
}

INSTANTIATE_TEST_SUITE_P(HeadDims, RankOnGpuTest, testing::Values(64, 128));

// One row passes as it is, rows without keys do not count whatever they hold, NaN goes on; more
// rows than are asked for ahead.
TEST_P(RankOnGpuTest, MixesRows) {
  const int dim = GetParam();
  std::mt19937_64 random(5);
  std::vector<uint16_t> outs = RandomBf16(int64_t{8} * dim, &random);
  std::fill_n(outs.begin() + 2 * dim, dim, 0x7FC0);
  const float none = -std::numeric_limits<float>::infinity();
  const std::vector<float> lses = {1, 80, none, 2, NAN, 3, 0.5, 2.5};
  const std::vector<std::vector<uint32_t>> places = {
      {1}, {0, 2, 3}, {}, {2}, {4}, {0, 4}, {0, 2, 3, 5, 6, 7}, {2, 2, 2, 2, 1}};
  std::vector<uint32_t> begins = {0}, rows;
  for (const std::vector<uint32_t>& place : places) {
    rows.insert(rows.end(), place.begin(), place.end());
    begins.push_back(static_cast<uint32_t>(rows.size()));
  }
  const DeviceArray<uint16_t> row_outs(outs),
      out(std::vector<uint16_t>(places.size() * dim, 0x7FC0));
  const DeviceArray<float> row_lses(lses), lse(places.size());
  const DeviceArray<uint32_t> merge_begin(begins), merge_rows(rows);
  ASSERT_EQ(Mix({dim, 1, row_outs.data(), row_lses.data(), 8, static_cast<int64_t>(places.size()),
                 merge_begin.data(), merge_rows.data(), out.data(), lse.data()},
                nullptr),
            "");
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  const std::vector<uint16_t> mixed = out.Host();
  const std::vector<float> sums = lse.Host();
  for (size_t place = 0; place < places.size(); ++place) {
    SCOPED_TRACE(place);
    double sum = 0;
    for (const uint32_t row : places[place]) sum += std::exp(double{lses[row]});
    if (std::isnan(sum)) {
      EXPECT_TRUE(std::isnan(sums[place]));
    } else if (sum == 0) {
      EXPECT_EQ(sums[place], none);
    } else if (places[place].size() == 1) {
      EXPECT_EQ(sums[place], lses[places[place][0]]);
    } else {
      EXPECT_NEAR(sums[place], std::log(sum), 1e-6 * std::abs(std::log(sum)) + 1e-6);
    }
    for (int d = 0; d < dim; ++d) {
      double expected = 0;
      for (const uint32_t row : places[place]) {
        if (lses[row] != none) {
          expected += std::exp(lses[row] - std::log(sum)) * FromBf16(outs[row * dim + d]);
        }
      }
      const double got = FromBf16(mixed[place * dim + d]);
      if (std::isnan(sum)) {
        EXPECT_TRUE(std::isnan(got));
      } else if (places[place].size() == 1) {
        EXPECT_EQ(got, sum == 0 ? 0 : FromBf16(outs[places[place][0] * dim + d]));
      } else {
        EXPECT_NEAR(got, expected, 0.005 * (1 + std::abs(expected)));
      }
    }
  }
}

// Of several blocks, the last of them not full.
TEST_P(RankOnGpuTest, RowDots) {
  const int dim = GetParam();
  constexpr int kRows = 1000;
  std::mt19937_64 random(6);
  const std::vector<uint16_t> a = RandomBf16(int64_t{kRows} * dim, &random);
  const std::vector<uint16_t> b = RandomBf16(int64_t{kRows} * dim, &random);
  const DeviceArray<uint16_t> on_device_a(a), on_device_b(b);
  const DeviceArray<float> dots(size_t{kRows});
  ASSERT_EQ(
      kernels::RowDots(dim, kRows, on_device_a.data(), on_device_b.data(), dots.data(), nullptr),
      "");
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  const std::vector<float> host = dots.Host();
  for (int row = 0; row < kRows; ++row) {
    double expected = 0;
    for (int d = row * dim; d < (row + 1) * dim; ++d) {
      expected += double{FromBf16(a[d])} * FromBf16(b[d]);
    }
    ASSERT_NEAR(host[row], expected, 1e-4) << row;
  }
}

}  // namespace
}  // namespace ringmaster::attention::kernels
