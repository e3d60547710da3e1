// Lists of tiles, drawn at random, on the GPU against fp64 sums on the host.
#include "attention/kernels/tile_attention.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "attention/kernels/rest.h"
#include "tests/attention/kernels/branch_lists.h"
#include "tests/attention/kernels/device_array.h"
#include "tests/attention/kernels/tile_tensors.h"

namespace ringmaster::attention::kernels {
namespace {

// Rows that exist: of a random view, head and residue, at most `most` of them.
std::pair<TileRows, int32_t> DrawRows(const std::vector<View>& views, int64_t most,
                                      std::mt19937_64* random) {
  const auto view = static_cast<int32_t>(Draw(random, 0, static_cast<int64_t>(views.size()) - 1));
  const Operand& operand = views[view].operand;
  const int64_t step = views[view].step;
  const int64_t residue = Draw(random, 0, std::min(step, operand.tokens) - 1);
  const int64_t rows = (operand.tokens - residue - 1) / step + 1;
  const int64_t first = Draw(random, 0, rows - 1);
  return {{view, static_cast<int32_t>(Draw(random, 0, operand.heads - 1)),
           static_cast<int32_t>(residue), static_cast<int32_t>(first)},
          static_cast<int32_t>(Draw(random, 1, std::min(most, rows - first)))};
}

using TileAttentionTest = HopperTest;

struct Lists {
  std::vector<Tile> tiles;
  std::vector<TileKeys> keys;
};

Lists DrawLists(const ForwardProblem& problem, int tiles, std::mt19937_64* random) {
  Lists lists;
  int64_t first_row = 0;
  for (int i = 0; i < tiles; ++i) {
    const auto [rows, count] = DrawRows(problem.query_views, TileRowsOf(problem.head_dim), random);
    Tile tile = {rows, count, static_cast<int32_t>(lists.keys.size()), 0, first_row};
    for (int64_t spans = Draw(random, 0, 4); spans > 0; --spans) {
      const auto [keys, key_count] = DrawRows(problem.key_views, 600, random);
      const auto step = static_cast<int32_t>(Draw(random, 0, 1) == 0 ? 1 : Draw(random, 1, 9));
      lists.keys.push_back({keys, key_count,
                            Draw(random, 0, 1) == 0
                                ? kAllVisible
                                : static_cast<int32_t>(Draw(random, -140 * step, key_count)),
                            step});
    }
    tile.keys_end = static_cast<int32_t>(lists.keys.size());
    lists.tiles.push_back(tile);
    first_row += count;
  }
  return lists;
}

struct Expected {
  std::vector<double> out;
  std::vector<double> model;
  double lse = -std::numeric_limits<double>::infinity();
};

Expected Reference(const Tile& tile, int64_t row, int64_t batch, const ForwardProblem& problem,
                   const Lists& lists, const Tensor& q, const std::vector<const Tensor*>& keys,
                   const std::vector<const Tensor*>& values) {
  const int dim = problem.head_dim;
  const int64_t token = TokenOf(problem.query_views[tile.rows.view], tile.rows, row);
  struct Pair {
    double score;
    const Tensor* value;
    int64_t key;
    int32_t head;
  };
  std::vector<Pair> pairs;
  double most = -std::numeric_limits<double>::infinity();
  for (int32_t at = tile.keys_begin; at < tile.keys_end; ++at) {
    const TileKeys& span = lists.keys[at];
    for (int64_t i = 0; i < span.count && i <= span.step * row + span.diagonal; ++i) {
      const int64_t key = TokenOf(problem.key_views[span.rows.view], span.rows, i);
      double score = 0;
      for (int d = 0; d < dim; ++d) {
        score += double{q.At(batch, token, tile.rows.head, d)} *
                 keys[span.rows.view]->At(batch, key, span.rows.head, d);
      }
      pairs.push_back({score * problem.scale, values[span.rows.view], key, span.rows.head});
      most = std::max(most, pairs.back().score);
    }
  }
  Expected expected{std::vector<double>(dim), std::vector<double>(dim)};
  double sum = 0;
  for (const Pair& pair : pairs) {
    const double p = std::exp(pair.score - most);
    sum += p;
    for (int d = 0; d < dim; ++d) {
      const double value = pair.value->At(batch, pair.key, pair.head, d);
      expected.out[d] += p * value;
      expected.model[d] += Rounded(problem.type, p) * value;
    }
  }
  for (int d = 0; d < dim && sum > 0; ++d) {
    expected.out[d] /= sum;
    expected.model[d] /= sum;
  }
  if (sum > 0) expected.lse = most + std::log(sum);
  return expected;
}

TEST_P(TileAttentionTest, EqualsSumsOnTheHost) {
  const ElementType type = GetParam().type;
  const int dim = GetParam().head_dim;
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    const int64_t batch = Draw(&random, 1, 2), tokens = Draw(&random, 1, 900);
    const int64_t heads = Draw(&random, 1, 3), kv_heads = Draw(&random, 1, 2);
    const Tensor q(type, batch, tokens, heads, dim, &random);
    const Tensor k(type, batch, tokens, kv_heads, dim, &random);
    const Tensor v(type, batch, tokens, kv_heads, dim, &random);
    const Tensor pool_k(type, batch, 300, 1, dim, &random),
        pool_v(type, batch, 300, 1, dim, &random);
    ForwardProblem problem = {.type = type, .head_dim = dim, .scale = 0.3f / std::sqrt(float(dim))};
    for (const int64_t step : {int64_t{1}, Draw(&random, 2, 5), Draw(&random, 6, 1200)}) {
      problem.query_views.push_back({q.operand, step});
      problem.key_views.push_back({k.operand, step});
      problem.value_views.push_back({v.operand, step});
    }
    problem.key_views.push_back({pool_k.operand, 1});
    problem.value_views.push_back({pool_v.operand, 1});
    const Lists lists = DrawLists(problem, 20, &random);
    const int64_t rows = lists.tiles.back().first_row + lists.tiles.back().count;
    const DeviceArray<Tile> tiles(lists.tiles);
    const DeviceArray<TileKeys> keys(lists.keys);
    // Tiles of random rows meet in places: all are parts.
    std::vector<uint32_t> all(rows);
    std::iota(all.begin(), all.end(), 0);
    const DeviceArray<uint32_t> slots(all);
    const DeviceArray<unsigned> taken(size_t{1});
    const DeviceArray<float> out(std::vector<float>(batch * rows * dim, NAN));
    const DeviceArray<float> lse(std::vector<float>(batch * rows, NAN));
    problem.tiles = tiles.data();
    problem.tile_count = static_cast<int>(lists.tiles.size());
    problem.keys = keys.data();
    problem.taken = taken.data();
    problem.results = {
        .slots = slots.data(), .part_outs = out.data(), .part_lses = lse.data(), .parts = rows};
    ASSERT_EQ(WhyNot(problem), "");
    ASSERT_EQ(TileForward(problem, nullptr), "");
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    const std::vector<float> outs = out.Host(), sums = lse.Host();
    const std::vector<const Tensor*> all_k = {&k, &k, &k, &pool_k}, all_v = {&v, &v, &v, &pool_v};
    Errors errors;
    for (const Tile& tile : lists.tiles) {
      for (int64_t b = 0; b < batch; ++b) {
        for (int64_t row = 0; row < tile.count; ++row) {
          const Expected want = Reference(tile, row, b, problem, lists, q, all_k, all_v);
          const int64_t at = b * rows + tile.first_row + row;
          if (std::isinf(want.lse)) {
            ASSERT_EQ(sums[at], want.lse);
          } else {
            ASSERT_NEAR(sums[at], want.lse, 2e-5 * (1 + std::abs(want.lse)));
          }
          for (int d = 0; d < dim; ++d) {
            errors.Add(outs[at * dim + d], want.model[d], want.out[d]);
          }
        }
      }
    }
    errors.ExpectWithinTwiceTheModel("out");
  }
}

// A launch that merges gives what the same tiles give as one part more; where it is to be merged
// later, that part.
TEST_P(TileAttentionTest, MergesThePartsThatAreThere) {
  const ElementType type = GetParam().type;
  const int dim = GetParam().head_dim;
  std::mt19937_64 random(11);
  const int64_t batch = 2, tokens = 500, heads = 2, places = tokens * heads;
  const Tensor q(type, batch, tokens, heads, dim, &random),
      k(type, batch, tokens, heads, dim, &random);
  const Tensor v(type, batch, tokens, heads, dim, &random);
  const BranchLists lists = ListsOf({tokens, 300, 1, heads, heads, true}, TileRowsOf(dim));
  // Up to five parts a place, of which some saw no key; some places are merged later.
  const auto later = [](int64_t place) { return place % 7 == 3; };
  std::vector<uint32_t> begin = {0};
  for (int64_t place = 0; place < places; ++place) {
    const bool none = later(place) || Draw(&random, -2, 5) < 0;
    begin.push_back(begin.back() + static_cast<uint32_t>(none ? 0 : Draw(&random, 0, 5)));
  }
  std::vector<Tile> numbered = lists.tiles;
  std::vector<uint32_t> slots, part_of(places, kWhole);
  uint32_t parts = begin.back();
  for (Tile& tile : numbered) {
    tile.first_row = static_cast<int64_t>(slots.size());
    for (int row = 0; row < tile.count; ++row) {
      const int64_t place = (tile.rows.first + row) * heads + tile.rows.head;
      if (later(place)) part_of[place] = parts++;
      slots.push_back(part_of[place]);
    }
  }
  std::normal_distribution<float> normal;
  std::vector<float> part_outs(batch * parts * dim), part_lses(batch * parts);
  for (float& value : part_outs) value = normal(random);
  for (float& value : part_lses) value = Draw(&random, 0, 5) == 0 ? -INFINITY : 4 + normal(random);
  const DeviceArray<Tile> tiles(numbered);
  const DeviceArray<TileKeys> keys(lists.keys);
  const DeviceArray<unsigned> taken(size_t{1});
  const DeviceArray<uint32_t> merge_begin(begin), device_slots(slots);
  const DeviceArray<float> outs(part_outs), lses(part_lses);
  const auto run = [&](bool merge, std::vector<float>* lse) {
    const DeviceArray<uint16_t> out(batch * places * dim);
    const DeviceArray<int8_t> rest(batch * places * dim);
    const DeviceArray<float> sums(std::vector<float>(batch * places, NAN));
    ForwardProblem problem = {.type = type, .head_dim = dim, .scale = 0.1f};
    problem.query_views = {{q.operand, 1}};
    problem.key_views = {{k.operand, 1}};
    problem.value_views = {{v.operand, 1}};
    problem.tiles = tiles.data();
    problem.tile_count = static_cast<int>(lists.tiles.size());
    problem.keys = keys.data();
    problem.taken = taken.data();
    problem.results = {.out = out.data(),
                       .lse = sums.data(),
                       .rest = rest.data(),
                       .slots = merge ? device_slots.data() : nullptr,
                       .part_outs = outs.data(),
                       .part_lses = lses.data(),
                       .parts = parts,
                       .merge_begin = merge ? merge_begin.data() : nullptr};
    EXPECT_EQ(TileForward(problem, nullptr), "");
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    *lse = sums.Host();
    const std::vector<uint16_t> rounded = out.Host();
    const std::vector<int8_t> rests = rest.Host();
    std::vector<float> whole(rounded.size());
    for (size_t i = 0; i < whole.size(); ++i) {
      whole[i] = WithElement(
          type, [&](auto element) { return WithRest<decltype(element)>(rounded[i], rests[i]); });
      EXPECT_EQ(ToElement(type, whole[i]), rounded[i]);
    }
    return whole;
  };
  std::vector<float> own_lse, lse;
  const std::vector<float> own = run(false, &own_lse), out = run(true, &lse);
  const std::vector<float> outs_then = outs.Host(), lses_then = lses.Host();
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t place = 0; place < places; ++place) {
      const int64_t at = b * places + place;
      if (later(place)) {
        ASSERT_TRUE(std::isnan(lse[at])) << place;
        const int64_t part = b * parts + part_of[place];
        ASSERT_EQ(lses_then[part], own_lse[at]);
        for (int d = 0; d < dim; ++d) {
          const float want = own[at * dim + d];
          ASSERT_NEAR(outs_then[part * dim + d], want, 1e-4 * (1 + std::abs(want))) << place;
        }
        continue;
      }
      double sum = std::exp(double{own_lse[at]});
      for (uint32_t i = begin[place]; i < begin[place + 1]; ++i) {
        sum += std::exp(double{part_lses[b * parts + i]});
      }
      ASSERT_NEAR(lse[at], std::log(sum), 1e-5);
      for (int d = 0; d < dim; ++d) {
        double want = std::exp(own_lse[at] - std::log(sum)) * own[at * dim + d];
        for (uint32_t i = begin[place]; i < begin[place + 1]; ++i) {
          const int64_t part = b * parts + i;
          want += std::exp(part_lses[part] - std::log(sum)) * part_outs[part * dim + d];
        }
        ASSERT_NEAR(out[at * dim + d], want, 1e-4 * (1 + std::abs(want))) << place;
      }
    }
  }
}

// A diverged run must not look finite: NaN of a query is its result, and nobody else's.
TEST_P(TileAttentionTest, NanGoesOn) {
  const ElementType type = GetParam().type;
  const int dim = GetParam().head_dim;
  constexpr int kRows = 70, kNanRow = 37;
  std::mt19937_64 random(7);
  Tensor q(type, 1, kRows, 1, dim, &random);
  const Tensor k(type, 1, 200, 1, dim, &random), v(type, 1, 200, 1, dim, &random);
  q.host[kNanRow * q.token_stride] = ToElement(type, NAN);
  const DeviceArray<uint16_t> spoilt(q.host);
  q.operand.data = spoilt.data();
  const DeviceArray<Tile> tiles(std::vector<Tile>{{.count = kRows, .keys_end = 1}});
  const DeviceArray<TileKeys> keys(std::vector<TileKeys>{{.count = 200, .diagonal = kAllVisible}});
  const DeviceArray<uint16_t> out(size_t{kRows} * dim);
  const DeviceArray<float> lse(size_t{kRows});
  const DeviceArray<unsigned> taken(size_t{1});
  ForwardProblem problem = {.type = type, .head_dim = dim, .scale = 0.1f};
  problem.query_views = {{q.operand, 1}};
  problem.key_views = {{k.operand, 1}};
  problem.value_views = {{v.operand, 1}};
  problem.tiles = tiles.data();
  problem.tile_count = 1;
  problem.keys = keys.data();
  problem.taken = taken.data();
  problem.results = {.out = out.data(), .lse = lse.data()};
  ASSERT_EQ(TileForward(problem, nullptr), "");
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  const std::vector<uint16_t> outs = out.Host();
  const std::vector<float> sums = lse.Host();
  for (int row = 0; row < kRows; ++row) {
    EXPECT_EQ(std::isnan(sums[row]), row == kNanRow) << row;
    for (int d = 0; d < dim; ++d) {
      EXPECT_EQ(std::isnan(FromElement(type, outs[row * dim + d])), row == kNanRow) << row;
    }
  }
}

// Needs no device: what is refused before it is asked for.
TEST(WhyNotTest, NamesWhatDoesNotFit) {
  ForwardProblem problem;
  problem.head_dim = 96;
  EXPECT_EQ(WhyNot(problem), "a head dimension of 96, not 64 or 128");
  problem.head_dim = 64;
  problem.scale = 0;
  EXPECT_EQ(WhyNot(problem), "a scale of 0.000000, not 2^-100 or more");
  problem.scale = 0x1p-101f;
  EXPECT_EQ(WhyNot(problem), "a scale of 0.000000, not 2^-100 or more");
  problem.scale = 1;
  EXPECT_EQ(WhyNot(problem), "queries: 0 views, not 1 to 16");
  problem.query_views.push_back({{.data = reinterpret_cast<void*>(8)}, 1});
  EXPECT_EQ(WhyNot(problem), "queries: pointer and strides must be multiples of 16 bytes");
}

INSTANTIATE_TEST_SUITE_P(Elements, TileAttentionTest, AllElements());

}  // namespace
}  // namespace ringmaster::attention::kernels
