#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "models/longnet.h"
#include "models/positions.h"

namespace ringmaster::models {

// Generates one sequence token by token. Keys and values are kept only as far back as the longest
// segment reaches, in a ring; a new token reads, for each branch that selects it, the selected rows
// of its own segment: at most the sum of w / r rows, however long the sequence is. Gives the logits
// that LongNet::Logits of the whole sequence would.
//
// Functions throw as LongNet's. Not thread-safe.
class Generator {
 public:
  // `model` and `parameters` are borrowed. At most `max_tokens` tokens may be fed. REQUIRES:
  // max_tokens >= 1.
  Generator(const LongNet& model, absl::Span<const at::Tensor> parameters, int64_t max_tokens);

  // Feeds the sequence's first tokens in one pass and returns the logits of the one that follows,
  // [vocab] on the CPU, fp32 (fp64 for fp64 parameters). REQUIRES: nothing was fed yet, 1 <=
  // prompt.size() <= max_tokens.
  at::Tensor Prefill(absl::Span<const int64_t> prompt);

  // Feeds one token. REQUIRES: tokens() < max_tokens.
  at::Tensor Next(int64_t token);

  // Fed so far.
  int64_t tokens() const { return tokens_; }

 private:
  // [capacity, kv_heads, head_dim] each; the row of token t is t mod capacity.
  struct LayerCache {
    at::Tensor key;
    at::Tensor value;
  };

  absl::Span<const at::Tensor> Block(int64_t layer) const;
  void Keep(LayerCache& cache, const at::Tensor& key, const at::Tensor& value, int64_t first);
  at::Tensor Attend(const LayerCache& cache, const at::Tensor& query) const;
  at::Tensor LastLogits(const at::Tensor& x) const;

  const LongNet& model_;
  const std::vector<at::Tensor> parameters_;
  const at::TensorOptions options_;
  int64_t max_tokens_;
  int64_t capacity_ = 0;
  int64_t tokens_ = 0;
  std::vector<LayerCache> caches_;
};

// Draws a token from softmax(logits / temperature); temperature 0 takes the most likely one.
// `uniform` in [0, 1) is the random number to use.
int64_t SampleToken(const at::Tensor& logits, double temperature, double uniform);

}  // namespace ringmaster::models
