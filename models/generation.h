#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "attention/decode_attention.h"
#include "models/longnet.h"

namespace ringmaster::models {

// Generates one sequence token by token, by attention over a cache (attention/decode_attention.h)
// of keys and values as far back as the longest segment reaches, or a mask's rows. Gives the logits
// that LongNet::Logits of the whole sequence would, of a mask those of a whole sequence of as many
// tokens as the mask is of.
//
// Functions throw as LongNet's. One that fails when caches have grown already makes the generator
// useless: later ones throw c10::Error (ValueError). Not thread-safe.
class Generator {
 public:
  // `model` and `parameters` are borrowed. At most `max_tokens` tokens may be fed. A mask is that
  // of sequences of `mask_tokens`, which the model was trained with; branches do not ask. REQUIRES:
  // 1
  // <= max_tokens, of a mask <= mask_tokens.
  Generator(const LongNet& model, absl::Span<const at::Tensor> parameters, int64_t max_tokens,
            int64_t mask_tokens);

  // Feeds the sequence's first tokens in one pass and returns the logits of the one that follows,
  // [vocab] on the CPU, fp32 (fp64 for fp64 parameters). REQUIRES: nothing was fed yet, 1 <=
  // prompt.size() <= max_tokens.
  at::Tensor Prefill(absl::Span<const int64_t> prompt);

  // Feeds one token. REQUIRES: tokens() < max_tokens.
  at::Tensor Next(int64_t token);

  // Fed so far.
  int64_t tokens() const { return tokens_; }

 private:
  void CheckUsable() const;
  absl::Span<const at::Tensor> Block(int64_t layer) const;
  at::Tensor LastLogits(const at::Tensor& x) const;

  const LongNet& model_;
  const std::vector<at::Tensor> parameters_;
  const at::TensorOptions options_;
  int64_t max_tokens_;
  int64_t tokens_ = 0;
  std::vector<attention::KeyValueCache> caches_;  // of the layers
};

// Draws a token from softmax(logits / temperature); temperature 0 takes the most likely one.
// `uniform` in [0, 1) is the random number to use.
int64_t SampleToken(const at::Tensor& logits, double temperature, double uniform);

}  // namespace ringmaster::models
