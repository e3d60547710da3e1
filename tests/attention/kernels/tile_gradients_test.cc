// Gradients of lists of tiles, drawn at random, on the GPU against fp64 sums on the host.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "attention/kernels/tile_attention.h"
#include "tests/attention/kernels/branch_lists.h"
#include "tests/attention/kernels/tile_tensors.h"

namespace ringmaster::attention::kernels {
namespace {

using TileGradientsTest = HopperTest;

// What sums hold before a call.
constexpr float kBefore = 2;

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

// Finished: with the sums of some rows, rounded; the others' are not read. Some get all.
void ExpectFinished(BackwardProblem problem, const BranchLists& lists, const Sums& want,
                    const Sums& model) {
  const ElementType type = problem.type;
  const int dim = problem.head_dim;
  const Operand& k = problem.key_views[0].operand;
  std::vector<uint8_t> beside(k.tokens * k.heads);
  // Keys of no tile are finished by nobody.
  for (int i = 0; i < problem.key_tile_count; ++i) {
    const KeyTile& tile = lists.key_tiles[i];
    for (int64_t row = 0; row < tile.count; ++row) {
      const int64_t place =
          TokenOf(problem.key_views[0], tile.rows, row) * k.heads + tile.rows.head;
      beside[place] = (place % 3 == 0 ? kSumsBefore : 0) | (place % 5 < 2 ? kSumsAfter : 0);
    }
  }
  const auto has = [&](size_t i, uint8_t which) {
    return (beside[i / dim % beside.size()] & which) != 0;
  };
  std::vector<float> before(want.dk.size(), NAN);
  Sums all = want, kept_model = model, rounded_model = model;
  for (size_t i = 0; i < before.size(); ++i) {
    if (has(i, kSumsBefore)) before[i] = kBefore;
    for (const auto of : {&Sums::dk, &Sums::dv}) {
      (all.*of)[i] += has(i, kSumsBefore) ? kBefore : 0;
      (kept_model.*of)[i] += has(i, kSumsBefore) ? kBefore : 0;
      (rounded_model.*of)[i] = Rounded(type, (kept_model.*of)[i]);
    }
  }
  // What sums hold where they are to get all; the others stay as they are.
  const auto expect_kept = [&](const DeviceArray<float>& sums, auto of, const char* what) {
    std::vector<float> kept = sums.Host();
    for (size_t i = 0; i < kept.size(); ++i) {
      if (has(i, kSumsAfter)) continue;
      EXPECT_TRUE(kept[i] == before[i] || (std::isnan(kept[i]) && std::isnan(before[i]))) << i;
      kept[i] = static_cast<float>((all.*of)[i]);
    }
    ExpectClose(kept, 0, kept_model.*of, all.*of, what);
  };
  const auto floats = [type](const DeviceArray<uint16_t>& array) {
    std::vector<float> values;
    for (const uint16_t value : array.Host()) values.push_back(FromElement(type, value));
    return values;
  };
  const DeviceArray<uint8_t> device_beside(beside);
  problem.key_sums = device_beside.data();
  for (const bool deterministic : {true, false}) {
    problem.deterministic = deterministic;
    const DeviceArray<uint16_t> finished_dk(want.dk.size()), finished_dv(want.dk.size());
    const DeviceArray<float> dk_sums(before), dv_sums(before);
    problem.dk[0].data = dk_sums.data();
    problem.dv[0].data = dv_sums.data();
    problem.finished_dk = finished_dk.data();
    problem.finished_dv = finished_dv.data();
    ASSERT_EQ(TileBackward(problem, nullptr), "");
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    ExpectClose(floats(finished_dk), 0, rounded_model.dk, all.dk, "finished dk");
    ExpectClose(floats(finished_dv), 0, rounded_model.dv, all.dv, "finished dv");
    expect_kept(dk_sums, &Sums::dk, "kept dk");
    expect_kept(dv_sums, &Sums::dv, "kept dv");
  }
}

TEST_P(TileGradientsTest, EqualSumsOnTheHost) {
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
    problem.key_gradients = KeyGradients::kFinish;
    ExpectFinished(problem, lists, want, model);
  }
}

INSTANTIATE_TEST_SUITE_P(Elements, TileGradientsTest, AllElements());

}  // namespace
}  // namespace ringmaster::attention::kernels
