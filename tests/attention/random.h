#pragma once

#include <ATen/Functions.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "attention/plan/options.h"
#include "attention/plan/shard_map.h"

namespace ringmaster::attention {

// What random problems are drawn from; the same seed gives the same.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}

  int64_t Between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(engine_() % (high - low + 1));
  }
  bool OneIn(int64_t n) { return Between(1, n) == 1; }
  template <typename T>
  T Of(const std::vector<T>& values) {
    return values[Between(0, static_cast<int64_t>(values.size()) - 1)];
  }
  double Normal() { return normal_(engine_); }

  // Sometimes a view whose heads lie before its tokens, or every second of a wider tensor.
  at::Tensor Tensor(at::IntArrayRef sizes, at::ScalarType dtype) {
    std::vector<int64_t> stored(sizes.begin(), sizes.end());
    const int64_t layout = Between(0, 3);
    if (layout == 1) std::swap(stored[1], stored[2]);
    if (layout == 2) stored[1] *= 2;
    at::Tensor x = at::empty(stored, at::kDouble);
    double* data = x.data_ptr<double>();
    for (int64_t i = 0; i < x.numel(); ++i) data[i] = Normal();
    x = x.to(dtype);
    if (layout == 1) x = x.transpose(1, 2);
    if (layout == 2) x = x.slice(1, 0, std::nullopt, 2);
    return x;
  }

  // One, a few or many of a few tokens.
  Documents SomeDocuments(int64_t tokens) {
    if (OneIn(2)) return {};
    const int64_t longest = OneIn(3) ? 4 : OneIn(2) ? 1 + tokens / 5 : 1 + tokens;
    Documents documents;
    for (int64_t start = 0; start < tokens; start += Between(1, longest)) {
      documents.push_back(start);
    }
    return documents;
  }

  ShardMap Map(int64_t tokens, int ranks) {
    if (!OneIn(3)) return ShardMap::Contiguous(tokens, ranks, OneIn(2) ? 1 : Between(1, 16));
    // Pieces of random length to random ranks, so that ranks hold several ranges, or none.
    std::vector<std::vector<TokenRange>> ranges(ranks);
    for (int64_t begin = 0; begin < tokens;) {
      const int64_t end = std::min(tokens, begin + Between(1, 1 + tokens / 4));
      ranges[Between(0, ranks - 1)].push_back({begin, end});
      begin = end;
    }
    return *ShardMap::FromRanges(tokens, ranges);
  }

 private:
  std::mt19937_64 engine_;
  std::normal_distribution<double> normal_;
};

}  // namespace ringmaster::attention
