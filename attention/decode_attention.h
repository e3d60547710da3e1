#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "attention/output.h"
#include "attention/plan/options.h"

namespace ringmaster::attention {

// Keys and values of B sequences that grow together, as far back as later tokens look: in a ring of
// as many rows as the longest segment has tokens, or as a mask's rows reach back, so that memory
// does not grow with the sequence. Thread-compatible.
class KeyValueCache {
 public:
  // For attention under `pattern` over at most `max_tokens` tokens, no more than a mask is of;
  // `tensors` says dtype and device. Throws c10::Error (ValueError) when pattern or sizes do not
  // fit, and for a mask with gates.
  KeyValueCache(AttentionPattern pattern, int64_t batch, int64_t kv_heads, int64_t head_dim,
                int64_t max_tokens, const at::TensorOptions& tensors);

  // The next n >= 0 tokens: k, v [B, n, Hkv, D] of the cache's dtype, copied. Throws c10::Error
  // (ValueError) when shapes or dtypes do not fit, or above max_tokens.
  void Append(const at::Tensor& k, const at::Tensor& v);

  // Appended so far.
  int64_t tokens() const { return tokens_; }
  const AttentionPattern& pattern() const { return pattern_; }
  // [B, rows, Hkv, D]; token t lies in row t mod rows, the last `rows` tokens are there.
  const at::Tensor& keys() const { return keys_; }
  const at::Tensor& values() const { return values_; }

 private:
  AttentionPattern pattern_;
  int64_t max_tokens_;
  int64_t tokens_ = 0;
  at::Tensor keys_;
  at::Tensor values_;
};

// The row of DilatedAttention's or BlockSparseAttention's result that belongs to the token appended
// last, without gradients: q [B, 1, H, D] is its query, of the cache's dtype and device, H a
// multiple of Hkv. Reads, for each branch that selects the token, the selected rows of its own
// segment, at most the sum of w / r rows a head, however long the sequence is; of a mask the blocks
// that the token's own sees. No later token is there, so that `causal` makes no difference.
// Accumulates in fp32 (fp64 for fp64), one rounding. REQUIRES: cache.tokens() > 0. Throws
// c10::Error (ValueError) when shapes do not fit.
AttentionOutput DecodeAttention(const at::Tensor& q, const KeyValueCache& cache);

}  // namespace ringmaster::attention
