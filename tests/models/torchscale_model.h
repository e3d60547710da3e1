#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "attention/plan/options.h"

namespace ringmaster::models {

// A LongNet decoder as torchscale defines it, written down anew from that definition in plain ATen,
// sharing no code with ours: a state dict and its logits.

struct TorchscaleArgs {
  int64_t layers = 2;
  int64_t dim = 24;
  int64_t heads = 6;
  int64_t ffn_dim = 20;
  int64_t vocab_size = 50;
  bool subln = true;
  bool xpos_rel_pos = true;
  bool share_input_output_embed = false;
  bool no_scale_embedding = true;
  std::vector<attention::Branch> branches = {{8, 1}, {16, 4}, {32, 2}};
};

using StateDict = std::map<std::string, at::Tensor>;

// Names as torchscale's, random values, fp64.
StateDict RandomStateDict(const TorchscaleArgs& args, uint64_t seed);

// tokens [B, N] -> [B, N, vocab]; differentiable in the state dict.
at::Tensor TorchscaleLogits(const TorchscaleArgs& args, const StateDict& weights,
                            const at::Tensor& tokens);

}  // namespace ringmaster::models
