// Lists of tiles, done as the kernels do them but one number at a time, against the dense oracle.
#include "attention/tiles/tile_lists.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "attention/plan/plan.h"
#include "attention/reference_attention.h"
#include "tests/attention/attention_case.h"
#include "tests/attention/tiles/tile_shape.h"

namespace ringmaster::attention {
namespace {

using kernels::KeyTile;
using kernels::Tile;
using kernels::TileKeys;
using kernels::TileRows;

// The parts of each rank of a problem.
std::vector<RankParts> PartsOf(const AttentionCase& problem) {
  const auto plan =
      AttentionPlan::Create(problem.pattern(), problem.map, static_cast<int>(problem.q.size(2)),
                            static_cast<int>(problem.k.size(2)));
  std::vector<RankParts> parts;
  for (int rank = 0; rank < problem.map.ranks(); ++rank)
    parts.push_back(MakeRankParts(*plan, rank));
  return parts;
}

// Calls f(token, head, row of the message) for what a message consists of.
template <typename F>
void ForEachMessageRow(const RankParts::Message& message, const F& f) {
  int64_t row = 0;
  for (const RowSet& set : message.local) {
    for (const Run& run : set.runs) {
      for (int64_t i = 0; i < run.count; ++i) f(run.first + i * run.step, run.head, row++);
    }
  }
}

// Calls f(owner, token, head, receiver, row) for each row of the receiver's pool and where the
// owner has it, for all ranks of a ring.
template <typename F>
void ForEachPoolRow(const std::vector<RankParts>& ranks, const F& f) {
  for (size_t to = 0; to < ranks.size(); ++to) {
    ForEachMessageRow(ranks[to].kept, [&](int64_t token, int64_t head, int64_t row) {
      f(to, token, head, to, ranks[to].kept.begin + row);
    });
    for (const RankParts::Message& incoming : ranks[to].incoming) {
      for (const RankParts::Message& outgoing : ranks[incoming.peer].outgoing) {
        if (outgoing.peer != static_cast<int>(to)) continue;
        ForEachMessageRow(outgoing, [&](int64_t token, int64_t head, int64_t row) {
          f(static_cast<size_t>(incoming.peer), token, head, to, incoming.begin + row);
        });
      }
    }
  }
}

// One batch of one rank, rows [tokens, heads, D] in fp64; pools are [rows, 1, D].
struct Rank {
  RankParts parts;
  TileLists lists;
  at::Tensor positions;  // of its tokens
  at::Tensor q, k, v, dout, dq, dk, dv;
  at::Tensor pool_k, pool_v, pool_dk, pool_dv;
  // Of keys, before they are finished.
  at::Tensor dk_sums, dv_sums;
  // Merged: [tokens, heads, D] and twice [tokens, heads].
  at::Tensor out, lse, delta;
  double scale = 1;

  int64_t size() const { return q.size(2); }
  int64_t Token(const TileRows& rows, int64_t i) const {
    return rows.view == lists.pool_view()
               ? rows.first + i
               : rows.residue + (rows.first + i) * lists.steps[rows.view];
  }
  double* Row(const TileRows& rows, int64_t i, const at::Tensor& own,
              const at::Tensor& pool = {}) const {
    const at::Tensor& x = rows.view == lists.pool_view() ? pool : own;
    return x.mutable_data_ptr<double>() + (Token(rows, i) * x.size(1) + rows.head) * x.size(2);
  }
  uint8_t SumsBeside(int64_t token, int64_t head) const {
    return lists.key_sums.empty() ? 0 : lists.key_sums[token * k.size(1) + head];
  }
  double Dot(const double* a, const double* b) const {
    return std::inner_product(a, a + size(), b, 0.0);
  }
  void Add(double factor, const double* from, double* to) const {
    for (int64_t d = 0; d < size(); ++d) to[d] += factor * from[d];
  }
};

// Parts [parts, D] and [parts].
struct Parts {
  at::Tensor outs;
  std::vector<double> lses;
};

// `last`: the tiles have numbers of their own, and parts are merged into their results.
void Forward(Rank& rank, const TileLists::QueryTiles& lists, bool last, Parts* parts) {
  const int64_t heads = rank.q.size(1);
  double* const lses = rank.lse.data_ptr<double>();
  const auto& begin = rank.lists.merge_begin;
  for (const Tile& tile : lists.tiles) {
    for (int32_t j = 0; j < tile.count; ++j) {
      const at::Tensor numerator = at::zeros({rank.size()}, at::kDouble);
      double sum = 0;
      for (int32_t list = tile.keys_begin; list < tile.keys_end; ++list) {
        const TileKeys& keys = lists.keys[list];
        for (int32_t i = 0; i < keys.count && i <= keys.step * j + keys.diagonal; ++i) {
          const double p =
              std::exp(rank.scale * rank.Dot(rank.Row(tile.rows, j, rank.q),
                                             rank.Row(keys.rows, i, rank.k, rank.pool_k)));
          rank.Add(p, rank.Row(keys.rows, i, rank.v, rank.pool_v),
                   numerator.mutable_data_ptr<double>());
          sum += p;
        }
      }
      const int64_t place = rank.Token(tile.rows, j) * heads + tile.rows.head;
      const auto& slots = last ? rank.lists.last_slots : rank.lists.slots;
      const uint32_t slot = last && slots.empty() ? kernels::kWhole : slots.at(tile.first_row + j);
      const bool whole = slot == kernels::kWhole;
      const uint32_t first = begin.empty() ? 0 : begin[place];
      const uint32_t end = begin.empty() ? 0 : begin[place + 1];
      ASSERT_TRUE(last ? whole || first == end : !whole || first == end);
      for (uint32_t i = first; last && i < end; ++i) {
        numerator.add_(parts->outs[i], std::exp(parts->lses[i]));
        sum += std::exp(parts->lses[i]);
      }
      double& lse = whole ? lses[place] : parts->lses.at(slot);
      ASSERT_TRUE(std::isnan(lse)) << "a result is written twice";
      lse = std::log(sum);
      const at::Tensor out = whole ? rank.out[place / heads][place % heads] : parts->outs[slot];
      if (sum > 0) out.copy_(numerator / sum);
    }
  }
}

void ForwardAndMerge(Rank& rank) {
  const int64_t tokens = rank.q.size(0), heads = rank.q.size(1);
  const TileLists& lists = rank.lists;
  Parts parts{at::zeros({lists.parts(), rank.size()}, at::kDouble),
              std::vector<double>(lists.parts(), std::nan(""))};
  rank.out = at::zeros_like(rank.q);
  rank.lse = at::full({tokens, heads}, std::nan(""), at::kDouble);
  Forward(rank, lists.local, /*last=*/false, &parts);
  Forward(rank, lists.last, /*last=*/true, &parts);
  Forward(rank, lists.far, /*last=*/false, &parts);
  ASSERT_TRUE(lists.merge_begin.empty() ||
              lists.merge_begin.size() == static_cast<size_t>(tokens * heads + 1));
  ASSERT_EQ(lists.mix_begin.size(), lists.mix_places.empty() ? 0 : lists.mix_places.size() + 1);
  for (int64_t place = 0, next = 0; place < tokens * heads; ++place) {
    const at::Tensor out = rank.out[place / heads][place % heads];
    const at::Tensor lse = rank.lse[place / heads][place % heads];
    uint32_t begin = 0, end = 0;
    if (next < static_cast<int64_t>(lists.mix_places.size()) && lists.mix_places[next] == place) {
      begin = lists.mix_begin[next], end = lists.mix_begin[++next];
    }
    ASSERT_TRUE(lists.last.tiles.empty() || begin < end || !lse.isnan().item<bool>());
    ASSERT_TRUE(begin == end || lse.isnan().item<bool>()) << "whole and in parts";
    double sum = begin == end ? std::exp(lse.item<double>()) : 0;
    for (uint32_t i = begin; i < end; ++i) {
      out.add_(parts.outs[i], std::exp(parts.lses[i]));
      sum += std::exp(parts.lses[i]);
    }
    if (begin < end && sum > 0) out.div_(sum);
    if (std::isnan(sum)) {
      ASSERT_EQ(begin, end) << "a part is written by nobody";
    }
    lse.fill_(std::isnan(sum) ? -std::numeric_limits<double>::infinity() : std::log(sum));
  }
  rank.delta = (rank.out * rank.dout).sum(-1);
}

// p and ds of FlashAttention-2, section 3.1.2.
std::pair<double, double> Products(const Rank& rank, const TileRows& queries, int64_t j,
                                   const TileRows& keys, int64_t i) {
  const int64_t place = rank.Token(queries, j) * rank.q.size(1) + queries.head;
  const double score =
      rank.Dot(rank.Row(queries, j, rank.q), rank.Row(keys, i, rank.k, rank.pool_k));
  const double p = std::exp(rank.scale * score - rank.lse.const_data_ptr<double>()[place]);
  const double dp =
      rank.Dot(rank.Row(queries, j, rank.dout), rank.Row(keys, i, rank.v, rank.pool_v));
  return {p, p * (dp - rank.delta.const_data_ptr<double>()[place]) * rank.scale};
}

// Fails when two tiles of one call have a row in common.
class Once {
 public:
  explicit Once(const Rank& rank) : rank_(rank) {}
  size_t rows() const { return seen_.size(); }
  void Take(const TileRows& rows, int32_t count) {
    const bool pool = rows.view == rank_.lists.pool_view();
    for (int32_t i = 0; i < count; ++i) {
      ASSERT_TRUE(seen_.emplace(pool, rank_.Token(rows, i), rows.head).second);
    }
  }

 private:
  const Rank& rank_;
  std::set<std::tuple<bool, int64_t, int32_t>> seen_;
};

// A key's place for sums before a call.
void Prepare(const Rank& rank, const KeyTile& tile, kernels::KeyGradients gradients) {
  if (gradients == kernels::KeyGradients::kAdd) return;
  const bool finish = gradients == kernels::KeyGradients::kFinish;
  for (int32_t j = 0; j < tile.count; ++j) {
    const int64_t token = rank.Token(tile.rows, j), head = tile.rows.head;
    const at::Tensor dk = (finish ? rank.dk : rank.dk_sums)[token][head];
    const at::Tensor dv = (finish ? rank.dv : rank.dv_sums)[token][head];
    if (finish && (rank.SumsBeside(token, head) & kernels::kSumsBefore) != 0) {
      dk.copy_(rank.dk_sums[token][head]);
      dv.copy_(rank.dv_sums[token][head]);
    } else {
      dk.zero_();
      dv.zero_();
    }
  }
}

void Backward(const Rank& rank, const TileLists::Backward& lists) {
  const bool finish = lists.key_gradients == kernels::KeyGradients::kFinish;
  Once queries_once(rank), keys_once(rank);
  for (const Tile& tile : lists.queries.tiles) {
    queries_once.Take(tile.rows, tile.count);
    for (int32_t j = 0; j < tile.count; ++j) {
      for (int32_t list = tile.keys_begin; list < tile.keys_end; ++list) {
        const TileKeys& keys = lists.queries.keys[list];
        for (int32_t i = 0; i < keys.count && i <= keys.step * j + keys.diagonal; ++i) {
          rank.Add(Products(rank, tile.rows, j, keys.rows, i).second,
                   rank.Row(keys.rows, i, rank.k, rank.pool_k), rank.Row(tile.rows, j, rank.dq));
        }
      }
    }
  }
  for (const KeyTile& tile : lists.keys.tiles) {
    keys_once.Take(tile.rows, tile.count);
    Prepare(rank, tile, lists.key_gradients);
    for (int32_t list = tile.queries_begin; list < tile.queries_end; ++list) {
      const TileKeys& queries = lists.keys.queries[list];
      for (int32_t i = 0; i < queries.count; ++i) {
        for (int32_t j = 0; j < tile.count && j <= i + queries.diagonal; ++j) {
          const auto [p, ds] = Products(rank, queries.rows, i, tile.rows, j);
          rank.Add(ds, rank.Row(queries.rows, i, rank.q),
                   rank.Row(tile.rows, j, finish ? rank.dk : rank.dk_sums, rank.pool_dk));
          rank.Add(p, rank.Row(queries.rows, i, rank.dout),
                   rank.Row(tile.rows, j, finish ? rank.dv : rank.dv_sums, rank.pool_dv));
        }
      }
    }
  }
}

void BackwardFar(const Rank& rank) {
  for (const TileLists::Backward& pass : rank.lists.backward_far) Backward(rank, pass);
}

// Copies the rows of keys whose sums are added to after they are finished, from either of sums and
// what is finished to the other.
void CopyAddedTo(const Rank& rank, const TileLists::Backward& finisher, bool to_sums) {
  for (const KeyTile& tile : finisher.keys.tiles) {
    for (int32_t j = 0; j < tile.count; ++j) {
      const int64_t token = rank.Token(tile.rows, j), head = tile.rows.head;
      if ((rank.SumsBeside(token, head) & kernels::kSumsAfter) == 0) continue;
      for (auto [sums, finished] : {std::pair(rank.dk_sums, rank.dk), {rank.dv_sums, rank.dv}}) {
        if (!to_sums) std::swap(sums, finished);
        sums[token][head].copy_(finished[token][head]);
      }
    }
  }
}

// Sums that nobody has written are NaN. `add_returned` adds what the pools' rows owe to them.
template <typename F>
void BackwardOwn(const Rank& rank, const F& add_returned) {
  int64_t begin = 0;
  rank.dk_sums.fill_(std::nan(""));
  rank.dv_sums.fill_(std::nan(""));
  for (const TileLists::Window& window : rank.lists.windows) {
    ASSERT_EQ(window.begin, begin);
    begin += window.tokens;
    const auto part = [&](const at::Tensor& x) { return x.narrow(0, window.begin, window.tokens); };
    for (const at::Tensor& sums : {part(rank.dk_sums), part(rank.dv_sums)}) {
      if (window.zero_keys) sums.zero_();
    }
    for (const TileLists::Backward& pass : window.passes) Backward(rank, pass);
    if (window.finishes()) CopyAddedTo(rank, window.passes.back(), /*to_sums=*/true);
    add_returned();
    if (window.finishes()) {
      CopyAddedTo(rank, window.passes.back(), /*to_sums=*/false);
      continue;
    }
    part(rank.dk).copy_(part(rank.dk_sums));
    part(rank.dv).copy_(part(rank.dv_sums));
  }
  ASSERT_EQ(begin, rank.q.size(0));
}

std::vector<Rank> MakeRanks(const AttentionCase& problem, const std::vector<RankParts>& parts,
                            int head_dim, int64_t batch) {
  std::vector<Rank> ranks(problem.map.ranks());
  for (int i = 0; i < problem.map.ranks(); ++i) {
    Rank& rank = ranks[i];
    rank.parts = parts[i];
    rank.lists = MakeTileLists(
        rank.parts, Shape(problem.map.LocalTokens(i), static_cast<int>(problem.q.size(2)),
                          static_cast<int>(problem.k.size(2)), head_dim));
    rank.positions = at::tensor(problem.map.Positions(i), at::kLong);
    const auto local = [&](const at::Tensor& x) {
      return x[batch].index_select(0, rank.positions);
    };
    rank.q = local(problem.q), rank.k = local(problem.k), rank.v = local(problem.v);
    rank.dout = local(problem.dout);
    rank.scale = problem.scale().value_or(1 / std::sqrt(static_cast<double>(problem.q.size(3))));
    rank.dq = at::zeros_like(rank.q);
    for (at::Tensor* x : {&rank.dk, &rank.dv, &rank.dk_sums, &rank.dv_sums}) {
      *x = at::full_like(rank.k, std::nan(""));
    }
    for (at::Tensor* pool : {&rank.pool_k, &rank.pool_v, &rank.pool_dk, &rank.pool_dv}) {
      *pool = at::zeros({rank.parts.pool_rows, 1, problem.q.size(3)}, at::kDouble);
    }
  }
  ForEachPoolRow(parts,
                 [&](size_t owner, int64_t token, int64_t head, size_t receiver, int64_t row) {
                   ranks[receiver].pool_k[row][0].copy_(ranks[owner].k[token][head]);
                   ranks[receiver].pool_v[row][0].copy_(ranks[owner].v[token][head]);
                 });
  return ranks;
}

ReferenceResult Run(const AttentionCase& problem, int head_dim) {
  ReferenceResult result{
      at::zeros_like(problem.q), at::zeros(problem.q.sizes().slice(0, 3), at::kDouble),
      at::zeros_like(problem.q), at::zeros_like(problem.k), at::zeros_like(problem.v)};
  const std::vector<RankParts> parts = PartsOf(problem);
  for (int64_t batch = 0; batch < problem.q.size(0); ++batch) {
    std::vector<Rank> ranks = MakeRanks(problem, parts, head_dim, batch);
    for (Rank& rank : ranks) {
      ForwardAndMerge(rank);
      if (testing::Test::HasFatalFailure()) return result;
      result.lse[batch].index_copy_(0, rank.positions, rank.lse);
      BackwardFar(rank);
      if (testing::Test::HasFatalFailure()) return result;
    }
    for (size_t i = 0; i < ranks.size(); ++i) {
      const Rank& rank = ranks[i];
      BackwardOwn(rank, [&] {
        ForEachPoolRow(
            parts, [&](size_t owner, int64_t token, int64_t head, size_t receiver, int64_t row) {
              if (owner != i) return;
              // Windows have no rows of peers in common: there is one then.
              ASSERT_EQ(rank.lists.windows.size(), 1u);
              rank.dk_sums[token][head].add_(ranks[receiver].pool_dk[row][0]);
              rank.dv_sums[token][head].add_(ranks[receiver].pool_dv[row][0]);
            });
      });
      if (testing::Test::HasFatalFailure()) return result;
      result.out[batch].index_copy_(0, rank.positions, rank.out);
      result.dq[batch].index_copy_(0, rank.positions, rank.dq);
      result.dk[batch].index_copy_(0, rank.positions, rank.dk);
      result.dv[batch].index_copy_(0, rank.positions, rank.dv);
    }
  }
  return result;
}

void Check(AttentionCase problem, int head_dim) {
  problem.options.mix_gradient = MixGradient::kExact;
  const ReferenceResult reference =
      ReferenceAttention(problem.q, problem.k, problem.v, problem.dout, problem.pattern());
  ReferenceResult result = Run(problem, head_dim);
  // Where every query sees its own key alone, differences of what is equal remain.
  for (const auto& [got, want] :
       {std::pair(&result.dq, reference.dq), {&result.dk, reference.dk}}) {
    if (want.eq(0).all().item<bool>() && got->abs().lt(1e-12).all().item<bool>()) got->zero_();
  }
  const CaseErrors errors = ErrorsOf(result, reference);
  for (size_t i = 0; i < errors.size(); ++i) EXPECT_LE(errors[i], 1e-10) << kTensors[i];
}

TEST(TileListsTest, EqualTheDenseOracle) {
  for (uint64_t seed = 1; seed <= 600 && !HasFailure(); ++seed) {
    const AttentionCase problem =
        RandomCase(seed, {.max_tokens = 24, .dtypes = {at::kDouble}, .ranks = {1, 2, 3, 4}});
    SCOPED_TRACE(testing::Message() << "seed " << seed << ": " << problem.Describe());
    Check(problem, seed % 2 == 0 ? 64 : 128);
  }
}

// Also rows that see nothing, and keys that nobody sees.
TEST(TileListsTest, BlocksEqualTheDenseOracle) {
  for (uint64_t seed = 1; seed <= 100 && !HasFailure(); ++seed) {
    const AttentionCase problem = RandomBlockCase(
        seed,
        {.max_tokens = 400, .dtypes = {at::kDouble}, .ranks = {1, 2, 3, 4}, .head_dims = {1, 3}});
    SCOPED_TRACE(testing::Message() << "seed " << seed << ": " << problem.Describe());
    Check(problem, seed % 2 == 0 ? 64 : 128);
  }
}

// More rows than a tile has, of queries and keys, in one range and across two.
TEST(TileListsTest, ManyTilesEqualTheDenseOracle) {
  at::manual_seed(1);
  for (const int head_dim : {64, 128}) {
    for (const bool causal : {true, false}) {
      AttentionCase problem;
      const auto randn = [](int64_t heads) { return at::randn({1, 400, heads, 2}, at::kDouble); };
      problem.q = randn(2), problem.k = randn(1), problem.v = randn(1), problem.dout = randn(2);
      problem.options.branches = {{400, 1}, {300, 2}};
      problem.options.causal = causal;
      problem.map = *ShardMap::FromRanges(400, {{{0, 130}, {390, 400}}, {{130, 390}}});
      SCOPED_TRACE(problem.Describe());
      Check(problem, head_dim);
    }
  }
}

// Rows of one group that lie in several runs, of which later ones see earlier ones.
TEST(TileListsTest, RunsOfOneGroupSeeEachOther) {
  at::manual_seed(2);
  const RowSet rows{.runs = {{0, 1, 5, 0}, {10, 2, 200, 0}, {411, 3, 1, 0}},
                    .group_begin = {0, 3},
                    .rows_per_group = 206};
  std::vector<int64_t> tokens = {0, 1, 2, 3, 4};
  for (int64_t i = 0; i < 200; ++i) tokens.push_back(10 + 2 * i);
  tokens.push_back(411);
  Rank rank;
  rank.parts.local = {{.branch = 0, .causal = true, .queries = rows, .keys = rows}};
  rank.lists = MakeTileLists(rank.parts, Shape(412, 1, 1, 128));
  for (at::Tensor* x :
       {&rank.q, &rank.k, &rank.v, &rank.dout, &rank.dk, &rank.dv, &rank.dk_sums, &rank.dv_sums})
    *x = at::randn({412, 1, 2}, at::kDouble);
  rank.dq = at::zeros({412, 1, 2}, at::kDouble);
  ForwardAndMerge(rank);
  BackwardOwn(rank, [] {});
  const at::Tensor index = at::tensor(tokens, at::kLong);
  const auto group = [&](const at::Tensor& x) { return x.index_select(0, index).unsqueeze(0); };
  const ReferenceResult dense =
      ReferenceAttention(group(rank.q), group(rank.k), group(rank.v), group(rank.dout),
                         DilatedAttentionOptions{.branches = {{206, 1}}, .scale = 1});
  EXPECT_LE(RelativeError(group(rank.out), dense.out), 1e-10);
  EXPECT_LE(RelativeError(group(rank.lse), dense.lse), 1e-10);
  EXPECT_LE(RelativeError(group(rank.dq), dense.dq), 1e-10);
  EXPECT_LE(RelativeError(group(rank.dk), dense.dk), 1e-10);
  EXPECT_LE(RelativeError(group(rank.dv), dense.dv), 1e-10);
}

}  // namespace
}  // namespace ringmaster::attention
