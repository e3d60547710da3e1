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
#include "tests/attention/kernels/elements.h"
#include "tests/attention/kernels/hopper.h"

namespace ringmaster::attention::kernels {
namespace {

// A tensor [batch, tokens, heads, dim] on both sides, with room around each token's heads.
struct Tensor {
  Tensor(ElementType type, int64_t batch, int64_t tokens, int64_t heads, int64_t dim,
         std::mt19937_64* random)
      : type(type),
        token_stride((heads + 1) * dim),
        host(RandomElements(type, batch * tokens * token_stride, random)),
        device(host),
        operand{device.data(), batch, tokens, heads, tokens * token_stride, token_stride, dim} {}

  float At(int64_t batch, int64_t token, int64_t head, int64_t i) const {
    return FromElement(
        type,
        host[batch * operand.batch_stride + token * token_stride + head * operand.head_stride + i]);
  }

  ElementType type;
  int64_t token_stride;
  std::vector<uint16_t> host;
  DeviceArray<uint16_t> device;
  Operand operand;
};

int64_t Draw(std::mt19937_64* random, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(*random);
}

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

int64_t TokenOf(const View& view, const TileRows& rows, int64_t i) {
  return rows.residue + (rows.first + i) * view.step;
}

class TileAttentionTest : public testing::TestWithParam<ElementCase> {
 protected:
  void SetUp() override {
    const std::string why = WhyNoHopper();
    if (!why.empty()) GTEST_SKIP() << why;
  }
};

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

// The errors of design: difference over the value plus the size of the whole; `model` is a dense
// sum that rounds what the kernels round and nothing else.
class Errors {
 public:
  void Add(double got, double model, double want) {
    got_.push_back(got - want);
    model_.push_back(model - want);
    want_.push_back(want);
  }
  void ExpectWithinTwiceTheModel(const char* what) const {
    double squares = 0, got = 0, model = 0;
    for (const double value : want_) squares += value * value;
    const double size = std::sqrt(squares / static_cast<double>(want_.size()));
    for (size_t i = 0; i < want_.size(); ++i) {
      const double of = std::abs(want_[i]) + size + 1e-30;
      got = std::isnan(got_[i]) ? got_[i] : std::max(got, std::abs(got_[i]) / of);
      model = std::max(model, std::abs(model_[i]) / of);
    }
    EXPECT_LE(got, 2 * model + 1e-5) << what;
  }

 private:
  std::vector<double> got_, model_, want_;
};

double Rounded(ElementType type, double value) {
  return FromElement(type, ToElement(type, static_cast<float>(value)));
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

// A launch that merges gives what the same tiles give as one part more.
TEST_P(TileAttentionTest, MergesThePartsThatAreThere) {
  const ElementType type = GetParam().type;
  const int dim = GetParam().head_dim;
  std::mt19937_64 random(11);
  const int64_t batch = 2, tokens = 500, heads = 2, places = tokens * heads;
  const Tensor q(type, batch, tokens, heads, dim, &random),
      k(type, batch, tokens, heads, dim, &random);
  const Tensor v(type, batch, tokens, heads, dim, &random);
  const BranchLists lists = ListsOf({tokens, 300, 1, heads, heads, true}, TileRowsOf(dim));
  // Up to five parts a place, of which some saw no key.
  std::vector<uint32_t> begin = {0};
  for (int64_t place = 0; place < places; ++place) {
    begin.push_back(begin.back() +
                    static_cast<uint32_t>(Draw(&random, -2, 5) < 0 ? 0 : Draw(&random, 0, 5)));
  }
  const int64_t parts = begin.back();
  std::normal_distribution<float> normal;
  std::vector<float> part_outs(batch * parts * dim), part_lses(batch * parts);
  for (float& value : part_outs) value = normal(random);
  for (float& value : part_lses) value = Draw(&random, 0, 5) == 0 ? -INFINITY : 4 + normal(random);
  const DeviceArray<Tile> tiles(lists.tiles);
  const DeviceArray<TileKeys> keys(lists.keys);
  const DeviceArray<unsigned> taken(size_t{1});
  const DeviceArray<uint32_t> merge_begin(begin);
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
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t place = 0; place < places; ++place) {
      const int64_t at = b * places + place;
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

struct Sums {
  std::vector<double> dq, dk, dv;
};

// Over all pairs of a query and a key that the tiles of queries name; rounding P and dS, or not.
Sums ReferenceGradients(const BranchLists& lists, int64_t rate, double scale, const Tensor& q,
                        const Tensor& k, const Tensor& v, const Tensor& dout,
                        const std::vector<float>& lse, const std::vector<float>& delta,
                        bool rounding) {
  const int64_t dim = q.operand.head_stride, heads = q.operand.heads, tokens = q.operand.tokens;
  const int64_t kv_heads = k.operand.heads;
  Sums sums{std::vector<double>(q.operand.batch * tokens * heads * dim),
            std::vector<double>(q.operand.batch * tokens * kv_heads * dim),
            std::vector<double>(q.operand.batch * tokens * kv_heads * dim)};
  for (int64_t b = 0; b < q.operand.batch; ++b) {
    for (const Tile& tile : lists.tiles) {
      const TileKeys& span = lists.keys[tile.keys_begin];
      for (int64_t j = 0; j < tile.count; ++j) {
        const int64_t query = tile.rows.residue + (tile.rows.first + j) * rate;
        const int64_t row = (b * tokens + query) * heads + tile.rows.head;
        for (int64_t i = 0; i < span.count && i <= span.step * j + span.diagonal; ++i) {
          const int64_t key = span.rows.residue + (span.rows.first + i) * rate;
          const int64_t key_row = (b * tokens + key) * kv_heads + span.rows.head;
          double score = 0, dp = 0;
          for (int64_t d = 0; d < dim; ++d) {
            score += double{q.At(b, query, tile.rows.head, d)} * k.At(b, key, span.rows.head, d);
            dp += double{dout.At(b, query, tile.rows.head, d)} * v.At(b, key, span.rows.head, d);
          }
          const double exact = std::isinf(lse[row]) ? 0 : std::exp(score * scale - lse[row]);
          const double slope = exact * (dp - delta[row]);
          const double p = rounding ? Rounded(q.type, exact) : exact;
          const double ds = (rounding ? Rounded(q.type, slope) : slope) * scale;
          for (int64_t d = 0; d < dim; ++d) {
            sums.dq[row * dim + d] += ds * k.At(b, key, span.rows.head, d);
            sums.dk[key_row * dim + d] += ds * q.At(b, query, tile.rows.head, d);
            sums.dv[key_row * dim + d] += p * dout.At(b, query, tile.rows.head, d);
          }
        }
      }
    }
  }
  return sums;
}

void ExpectClose(const std::vector<float>& got, float before, const std::vector<double>& model,
                 const std::vector<double>& want, const char* what) {
  Errors errors;
  for (size_t i = 0; i < want.size(); ++i) {
    errors.Add(got[i] - before, model[i], want[i]);
  }
  errors.ExpectWithinTwiceTheModel(what);
}

// BackwardProblem::starts. Those of no head are NaN.
std::vector<float> StartsOf(const std::vector<float>& lse, const std::vector<float>& delta,
                            int heads, double scale) {
  std::vector<float> starts(lse.size() / heads * PairsOfHeads(heads) * 4, NAN);
  for (size_t i = 0; i < lse.size(); ++i) {
    float* start = &starts[4 * (i / heads * PairsOfHeads(heads)) + 2 * (i % heads)];
    start[0] = std::isinf(lse[i]) ? -INFINITY : static_cast<float>(-lse[i] / scale);
    start[1] = -delta[i];
  }
  return starts;
}

// Rows of no tile stay NaN, and their sums are zero.
std::vector<float> Written(std::vector<float> values) {
  for (float& value : values) value = std::isnan(value) ? 0 : value;
  return values;
}

TEST_P(TileAttentionTest, GradientsEqualSumsOnTheHost) {
  const ElementType type = GetParam().type;
  const int dim = GetParam().head_dim;
  for (uint64_t seed = 1; seed <= 16; ++seed) {
    std::mt19937_64 random(seed);
    const int64_t batch = Draw(&random, 1, 2), tokens = Draw(&random, 1, 700);
    const int kv_heads = static_cast<int>(Draw(&random, 1, 2));
    const int heads = kv_heads * static_cast<int>(Draw(&random, 1, 3));
    const int64_t length = Draw(&random, 1, 2 * tokens), rate = Draw(&random, 1, 4);
    const bool causal = Draw(&random, 0, 1) == 1;
    SCOPED_TRACE(testing::Message() << "seed " << seed << ": " << batch << " x " << tokens << " x "
                                    << heads << "/" << kv_heads << ", segments " << length
                                    << ", rate " << rate << ", causal " << causal);
    const Tensor q(type, batch, tokens, heads, dim, &random),
        dout(type, batch, tokens, heads, dim, &random);
    const Tensor k(type, batch, tokens, kv_heads, dim, &random),
        v(type, batch, tokens, kv_heads, dim, &random);
    const double scale = 0.3 / std::sqrt(double(dim));
    std::vector<float> lse(batch * tokens * heads), delta(lse.size());
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < lse.size(); ++i) {
      lse[i] = i % 17 == 3 ? INFINITY : i % 19 == 5 ? -INFINITY : 4 + normal(random);
      delta[i] = normal(random);
    }
    BranchLists lists = ListsOf({tokens, length, rate, heads, kv_heads, causal}, kBackwardTileRows);
    const auto reference = [&](bool rounding) {
      return ReferenceGradients(lists, rate, scale, q, k, v, dout, lse, delta, rounding);
    };
    const Sums want = reference(false), model = reference(true);
    // Tiles that meet nothing add nothing.
    lists.tiles.push_back({.count = 1});
    lists.key_tiles.push_back({.count = 1});
    const DeviceArray<float> starts(StartsOf(lse, delta, heads, scale));
    const DeviceArray<Tile> tiles(lists.tiles);
    const DeviceArray<TileKeys> keys(lists.keys), queries(lists.queries);
    const DeviceArray<KeyTile> key_tiles(lists.key_tiles);
    const DeviceArray<unsigned> taken(size_t{1});
    // What was there before stays.
    constexpr float kBefore = 2;
    const DeviceArray<float> dq(std::vector<float>(batch * tokens * heads * dim, kBefore));
    const DeviceArray<float> dk(std::vector<float>(batch * tokens * kv_heads * dim, kBefore));
    const DeviceArray<float> dv(std::vector<float>(batch * tokens * kv_heads * dim, kBefore));
    BackwardProblem problem;
    problem.type = type;
    problem.head_dim = dim;
    problem.scale = static_cast<float>(scale);
    problem.query_views = {{q.operand, rate}};
    problem.dout_views = {{dout.operand, rate}};
    problem.key_views = {{k.operand, rate}};
    problem.value_views = {{v.operand, rate}};
    problem.starts = starts.data();
    problem.tiles = tiles.data();
    problem.tile_count = static_cast<int>(lists.tiles.size());
    problem.keys = keys.data();
    problem.key_tiles = key_tiles.data();
    problem.key_tile_count = static_cast<int>(lists.key_tiles.size());
    problem.queries = queries.data();
    problem.taken = taken.data();
    problem.dq = {{dq.data(), 0, tokens, tokens * heads * dim, heads * dim, dim}};
    problem.dk = {{dk.data(), 0, tokens, tokens * kv_heads * dim, kv_heads * dim, dim}};
    problem.dv = {{dv.data(), 0, tokens, tokens * kv_heads * dim, kv_heads * dim, dim}};
    ASSERT_EQ(WhyNot(problem), "");
    ASSERT_EQ(TileBackward(problem, nullptr), "");
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    ExpectClose(dv.Host(), kBefore, model.dv, want.dv, "dv");
    ExpectClose(dk.Host(), kBefore, model.dk, want.dk, "dk");
    const std::vector<float> before = dq.Host();
    ExpectClose(before, kBefore, model.dq, want.dq, "dq");
    // The same bits again: no sum depends on who comes first.
    const DeviceArray<float> again(std::vector<float>(batch * tokens * heads * dim, kBefore));
    problem.dq[0].data = again.data();
    ASSERT_EQ(TileBackward(problem, nullptr), "");
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_EQ(again.Host(), before);
    const DeviceArray<float> fast(std::vector<float>(batch * tokens * heads * dim, kBefore));
    problem.dq[0].data = fast.data();
    problem.deterministic = false;
    ASSERT_EQ(TileBackward(problem, nullptr), "");
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    ExpectClose(fast.Host(), kBefore, model.dq, want.dq, "dq by five products");
    // Stored rather than added, by both; not that tile which shares its row with another.
    --problem.key_tile_count;
    problem.key_gradients = KeyGradients::kStore;
    for (const bool deterministic : {true, false}) {
      problem.deterministic = deterministic;
      const DeviceArray<float> stored_dk(std::vector<float>(want.dk.size(), NAN));
      const DeviceArray<float> stored_dv(std::vector<float>(want.dv.size(), NAN));
      problem.dk[0].data = stored_dk.data();
      problem.dv[0].data = stored_dv.data();
      ASSERT_EQ(TileBackward(problem, nullptr), "");
      ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
      ExpectClose(Written(stored_dk.Host()), 0, model.dk, want.dk, "stored dk");
      ExpectClose(Written(stored_dv.Host()), 0, model.dv, want.dv, "stored dv");
    }
    // Finished: with the sums of some rows, rounded; the others' are not read.
    problem.key_gradients = KeyGradients::kFinish;
    std::vector<uint8_t> summed(tokens * kv_heads);
    for (size_t i = 0; i < summed.size(); ++i) summed[i] = i % 3 == 0 ? 1 : 0;
    // Keys of no tile are finished by nobody.
    std::vector<uint8_t> in_tiles(tokens * kv_heads);
    for (int i = 0; i < problem.key_tile_count; ++i) {
      const KeyTile& tile = lists.key_tiles[i];
      for (int64_t row = 0; row < tile.count; ++row) {
        in_tiles[TokenOf(problem.key_views[0], tile.rows, row) * kv_heads + tile.rows.head] = 1;
      }
    }
    for (size_t i = 0; i < summed.size(); ++i) summed[i] &= in_tiles[i];
    std::vector<float> before_keys(want.dk.size(), NAN);
    Sums finished_want = want, finished_model = model;
    for (size_t i = 0; i < before_keys.size(); ++i) {
      const size_t place = i / dim % summed.size();
      if (summed[place] != 0) before_keys[i] = kBefore;
      for (const auto of : {&Sums::dk, &Sums::dv}) {
        (finished_want.*of)[i] += summed[place] != 0 ? kBefore : 0;
        (finished_model.*of)[i] =
            Rounded(type, (finished_model.*of)[i] + (summed[place] != 0 ? kBefore : 0));
      }
    }
    const DeviceArray<uint8_t> device_summed(summed);
    const DeviceArray<float> sums(before_keys);
    problem.dk[0].data = problem.dv[0].data = sums.data();
    problem.summed = device_summed.data();
    for (const bool deterministic : {true, false}) {
      problem.deterministic = deterministic;
      const DeviceArray<uint16_t> finished_dk(want.dk.size()), finished_dv(want.dk.size());
      problem.finished_dk = finished_dk.data();
      problem.finished_dv = finished_dv.data();
      ASSERT_EQ(TileBackward(problem, nullptr), "");
      ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
      const auto floats = [type](const DeviceArray<uint16_t>& array) {
        std::vector<float> values;
        for (const uint16_t value : array.Host()) values.push_back(FromElement(type, value));
        return values;
      };
      ExpectClose(floats(finished_dk), 0, finished_model.dk, finished_want.dk, "finished dk");
      ExpectClose(floats(finished_dv), 0, finished_model.dv, finished_want.dv, "finished dv");
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

INSTANTIATE_TEST_SUITE_P(Elements, TileAttentionTest,
                         testing::Values(ElementCase{ElementType::kBf16, 64},
                                         ElementCase{ElementType::kBf16, 128},
                                         ElementCase{ElementType::kFp16, 64},
                                         ElementCase{ElementType::kFp16, 128}));

}  // namespace
}  // namespace ringmaster::attention::kernels
