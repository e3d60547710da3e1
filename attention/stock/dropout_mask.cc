#include "attention/stock/dropout_mask.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <cmath>

#include "attention/kernels/philox.h"
#include "attention/tiles/tile_ops.h"

namespace ringmaster::attention {
namespace {

using kernels::Philox;

// Factors that are worth another thread.
constexpr int64_t kGrainFactors = 1 << 12;

uint32_t Low(uint64_t x) { return static_cast<uint32_t>(x); }
uint32_t High(uint64_t x) { return static_cast<uint32_t>(x >> 32); }

// Words below are dropped.
uint64_t DroppedBelow(double probability) {
  return static_cast<uint64_t>(std::ldexp(probability, 32));
}

at::Tensor TokensOf(const RowSet& set, const std::vector<int64_t>& tokens, at::Device device) {
  const at::Tensor result = at::empty({set.groups(), set.rows_per_group}, at::kLong);
  int64_t* next = result.mutable_data_ptr<int64_t>();
  for (const Run& run : set.runs) {
    for (int64_t i = 0; i < run.count; ++i) *next++ = tokens[run.first + i * run.step];
  }
  return result.to(device);
}

at::Tensor PhiloxKeysOf(const AttentionDropout& dropout, const Part& part, at::Device device) {
  const RowSet& queries = part.queries;
  const auto batch = static_cast<int64_t>(dropout.seeds.size());
  const at::Tensor result = at::empty({batch * queries.groups()}, at::kLong);
  int64_t* next = result.mutable_data_ptr<int64_t>();
  for (const uint64_t seed : dropout.seeds) {
    for (int64_t group = 0; group < queries.groups(); ++group) {
      const auto head =
          static_cast<uint32_t>(dropout.first_head + queries.runs[queries.group_begin[group]].head);
      const auto [words] = Philox(
          {{Low(dropout.call), High(dropout.call), head, static_cast<uint32_t>(part.branch)}},
          seed);
      *next++ = static_cast<int64_t>(words[0] | uint64_t{words[1]} << 32);
    }
  }
  return result.to(device);
}

// Of one query.
template <typename T>
void Fill(uint64_t philox_key, uint64_t query, const int64_t* keys, int64_t count, uint64_t below,
          T kept, T* factors) {
  int64_t four = -1;
  kernels::PhiloxWords random = {};
  for (int64_t i = 0; i < count; ++i) {
    if (keys[i] / 4 != four) {
      four = keys[i] / 4;
      random = kernels::WordsOf(philox_key, query, keys[i]);
    }
    factors[i] = random.words[keys[i] % 4] < below ? 0 : kept;
  }
}

template <typename T>
void FillAll(double probability, const at::Tensor& philox_keys, const at::Tensor& queries,
             const at::Tensor& keys, const at::Tensor& factors) {
  const int64_t rows = queries.size(1), count = keys.size(1);
  const auto key_of = philox_keys.accessor<int64_t, 1>();
  const auto query_of = queries.accessor<int64_t, 2>();
  const int64_t* tokens = keys.const_data_ptr<int64_t>();
  T* to = factors.mutable_data_ptr<T>();
  const auto kept = static_cast<T>(1 / (1 - probability));
  at::parallel_for(0, factors.size(0) * rows, std::max<int64_t>(1, kGrainFactors / count),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i) {
                       const int64_t group = i / rows;
                       Fill(static_cast<uint64_t>(key_of[group]),
                            static_cast<uint64_t>(query_of[group][i % rows]),
                            tokens + group * count, count, DroppedBelow(probability), kept,
                            to + i * count);
                     }
                   });
}

constexpr int64_t kWord = 0xFFFFFFFF;

at::Tensor LowOf(const at::Tensor& x) { return x.bitwise_and(kWord); }
// The shift is one with sign.
at::Tensor HighOf(const at::Tensor& x) { return x.bitwise_right_shift(32).bitwise_and_(kWord); }

}  // namespace

DropoutMask::DropoutMask(const AttentionDropout& dropout, const Part& part,
                         const std::vector<int64_t>& own, const std::vector<int64_t>& keys,
                         at::Device device)
    : probability_(dropout.probability),
      philox_keys_(PhiloxKeysOf(dropout, part, device)),
      queries_(TokensOf(part.queries, own, device)),
      keys_(TokensOf(part.keys, keys, device)) {}

at::Tensor DropoutMask::Factors(int64_t first, int64_t groups, int64_t query, int64_t queries,
                                int64_t keys, at::ScalarType dtype) const {
  const at::Tensor number =
      at::arange(first, first + groups, queries_.options()).remainder(queries_.size(0));
  const at::Tensor philox_keys = philox_keys_.narrow(0, first, groups);
  const at::Tensor query_tokens = queries_.narrow(1, query, queries).index_select(0, number);
  const at::Tensor key_tokens = keys_.narrow(1, 0, keys).index_select(0, number);
  if (!queries_.is_cpu() && WhyNoTileKernels(queries_).empty()) {
    const at::Tensor factors =
        at::empty({groups, queries, keys}, philox_keys.options().dtype(dtype));
    DropoutFactors(philox_keys, query_tokens, key_tokens, DroppedBelow(probability_),
                   1 / (1 - probability_), factors);
    return factors;
  }
  if (!queries_.is_cpu()) {
    return DropoutFactorsOnDevice(probability_, philox_keys, query_tokens, key_tokens, dtype);
  }
  const at::Tensor factors = at::empty({groups, queries, keys}, dtype);
  if (dtype == at::kDouble) {
    FillAll<double>(probability_, philox_keys, query_tokens, key_tokens, factors);
  } else {
    FillAll<float>(probability_, philox_keys, query_tokens, key_tokens, factors);
  }
  return factors;
}

DropoutMasks::DropoutMasks(const AttentionDropout& dropout, const RankParts& parts)
    : dropout_(dropout) {
  if (!dropout.on()) return;
  const auto expand = [](const std::vector<Run>& runs, std::vector<int64_t>* tokens) {
    for (const Run& run : runs) {
      for (int64_t i = 0; i < run.count; ++i) tokens->push_back(run.first + i * run.step);
    }
  };
  expand(parts.own_tokens, &own_);
  expand(parts.pool_tokens, &pool_);
}

std::optional<DropoutMask> DropoutMasks::Of(const Part& part, bool far, at::Device device) const {
  if (!dropout_.on()) return std::nullopt;
  return DropoutMask(dropout_, part, own_, far ? pool_ : own_, device);
}

at::Tensor DropoutFactorsOnDevice(double probability, const at::Tensor& philox_keys,
                                  const at::Tensor& queries, const at::Tensor& keys,
                                  at::ScalarType dtype) {
  // philox.h, each word the lower half of an int64.
  constexpr int64_t kMultiply0 = 0xD2511F53, kMultiply1 = 0xCD9E8D57;
  constexpr int64_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
  const at::Tensor query = queries.unsqueeze(2), key = keys.unsqueeze(1);
  const at::Tensor four = key.bitwise_right_shift(2), lane = key.bitwise_and(3);
  at::Tensor x0 = LowOf(query), x1 = HighOf(query), x2 = LowOf(four), x3 = HighOf(four);
  const at::Tensor seeds = philox_keys.view({-1, 1, 1});
  at::Tensor key0 = LowOf(seeds), key1 = HighOf(seeds);
  for (int round = 0; round < 10; ++round) {
    const at::Tensor product0 = x0 * kMultiply0, product1 = x2 * kMultiply1;
    x0 = HighOf(product1).bitwise_xor(x1).bitwise_xor(key0);
    x2 = HighOf(product0).bitwise_xor(x3).bitwise_xor(key1);
    x1 = LowOf(product1);
    x3 = LowOf(product0);
    key0 = LowOf(key0 + kWeyl0);
    key1 = LowOf(key1 + kWeyl1);
  }
  const at::Tensor word =
      at::where(lane.lt(2), at::where(lane.eq(0), x0, x1), at::where(lane.eq(2), x2, x3));
  return word.ge(static_cast<int64_t>(DroppedBelow(probability)))
      .to(dtype)
      .mul_(1 / (1 - probability));
}

}  // namespace ringmaster::attention
