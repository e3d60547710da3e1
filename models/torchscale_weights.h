#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "attention/plan/options.h"
#include "base/safetensors.h"
#include "models/longnet_config.h"

namespace ringmaster::models {

// What the state dict of a torchscale LongNet decoder does not tell about its model.
struct TorchscaleModel {
  int64_t heads = 0;  // decoder_attention_heads
  // segment_length and dilated_ratio.
  std::vector<attention::Branch> branches;
  // Embeddings are multiplied by sqrt(dim), that is, no_scale_embedding is False; by default it is
  // True.
  bool scaled_embedding = false;
};

// A model of ours that computes the same logits.
struct TorchscaleImport {
  LongNetConfig config;
  // In the order of ParameterSpecs(config), on the CPU: fp64 when embed_tokens.weight is, else
  // fp32.
  std::vector<at::Tensor> parameters;
};

// Reads a decoder's weights under torchscale's names (`layers.0.self_attn.k_proj.weight` and so
// on), all of them with or all without a leading `decoder.`, in F64, F32, BF16 or F16. Sizes,
// sub-LN, tied embeddings (no output_projection.weight, or one equal to embed_tokens.weight) and
// XPOS (its buffers `xpos.scale`) are read off; the attention is that of torchscale's head offsets,
// its gradient DETACHED. What is laid out differently is changed so that the function stays the
// same:
//   - torchscale turns channels 2i and 2i + 1 of a head, we turn i and i + head_dim / 2: with XPOS
//     the rows of query and key projections are moved.
//   - ours multiplies embeddings by sqrt(dim): unless scaled_embedding, the table is divided by it,
//     and when it is tied the final norm's weight and bias are multiplied by it.
// Taken for granted, as no weight tells: layernorm_eps 1e-5, activation_fn gelu, xpos_scale_base
// 512, no positions but XPOS.
//
// InvalidArgument, naming the tensor: a model of another kind (mixture of experts, relative
// position bias, absolute positions, layernorm_embedding, cross attention, multiway, post-LN or
// deepnorm), a tensor that is missing, left over, of another shape, not floating-point or not
// finite; a branch whose rate does not divide its segment, where torchscale computes something else
// than dilated attention; and what LongNetConfig::Validate refuses. Throws c10::Error when memory
// is short.
absl::StatusOr<TorchscaleImport> ImportTorchscale(const safetensors::File& file,
                                                  const TorchscaleModel& model);

}  // namespace ringmaster::models
