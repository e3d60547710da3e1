#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "attention/parts/row_set.h"

// What loops over the rows of a set on the CPU are made of.
namespace ringmaster::attention {

// Element (b, t, h) of a tensor begins at data + b * batch + t * token + h * head.
template <typename T>
struct Rows {
  explicit Rows(const at::Tensor& x)
      : data(x.data_ptr<T>()),
        batch(x.stride(0)),
        token(x.stride(1)),
        head(x.dim() > 3 ? x.stride(2) : 0) {}

  T* At(int64_t b, const Run& run, int64_t i) const {
    return data + b * batch + (run.first + i * run.step) * token + run.head * head;
  }

  T* data;
  int64_t batch, token, head;
};

// Calls f(run, number of its first row in the group) for the runs of a group.
template <typename F>
void ForEachRun(const RowSet& set, int64_t group, const F& f) {
  int64_t at = 0;
  for (size_t i = set.group_begin[group]; i < set.group_begin[group + 1]; ++i) {
    f(set.runs[i], at);
    at += set.runs[i].count;
  }
}

// Calls f(run, i, row) for rows [begin, end) of a group: row number `row` is the i-th of its run.
template <typename F>
void ForEachRow(const RowSet& set, int64_t group, int64_t begin, int64_t end, const F& f) {
  ForEachRun(set, group, [&](const Run& run, int64_t row) {
    const int64_t last = std::min(run.count, end - row);
    for (int64_t i = std::max<int64_t>(0, begin - row); i < last; ++i) {
      f(run, i, row + i);
    }
  });
}

template <typename From, typename To>
void CopyRow(const From* from, int64_t size, To* to) {
  if constexpr (std::is_same_v<From, To>) {
    std::memcpy(to, from, size * sizeof(To));
  } else {
    for (int64_t d = 0; d < size; ++d) {
      to[d] = static_cast<To>(from[d]);
    }
  }
}

// Merges a row's softmax into a running one, which holds 0 and -inf at first.
template <typename T>
void MergeRow(const T* out, T lse, int64_t size, T* merged_out, T* merged_lse) {
  if (*merged_lse == -std::numeric_limits<T>::infinity()) {
    std::memcpy(merged_out, out, size * sizeof(T));
    *merged_lse = lse;
    return;
  }
  const T largest = std::max(*merged_lse, lse);
  const T before = std::exp(*merged_lse - largest), now = std::exp(lse - largest);
  const T sum = before + now;
  // From the one with more weight towards the other: where a key has nearly all of it, weights
  // whose sum is one but for their rounding would cost gradients that cancel their last digits.
  if (now < before) {
    for (int64_t d = 0; d < size; ++d) {
      merged_out[d] += (out[d] - merged_out[d]) * (now / sum);
    }
  } else {
    for (int64_t d = 0; d < size; ++d) {
      merged_out[d] = out[d] + (merged_out[d] - out[d]) * (before / sum);
    }
  }
  *merged_lse = largest + std::log(sum);
}

}  // namespace ringmaster::attention
