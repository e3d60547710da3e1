#include "tests/models/torchscale_model.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace ringmaster::models {
namespace {

constexpr double kUnselected = -1e8;

class Decoder {
 public:
  Decoder(const TorchscaleArgs& args, const StateDict& weights) : args_(args), weights_(weights) {}

  at::Tensor Logits(const at::Tensor& tokens) const {
    at::Tensor x = at::embedding(weights_.at("embed_tokens.weight"), tokens);
    if (!args_.no_scale_embedding) x = x * std::sqrt(static_cast<double>(args_.dim));
    for (int64_t layer = 0; layer < args_.layers; ++layer) {
      const std::string name = "layers." + std::to_string(layer) + ".";
      x = x + Attention(name + "self_attn.", Norm(name + "self_attn_layer_norm", x));
      at::Tensor h = Linear(name + "ffn.fc1", Norm(name + "final_layer_norm", x));
      h = h * (at::erf(h / std::sqrt(2.0)) + 1) / 2;
      if (args_.subln) h = Norm(name + "ffn.ffn_layernorm", h);
      x = x + Linear(name + "ffn.fc2", h);
    }
    x = Norm("layer_norm", x);
    return x.matmul(
        weights_
            .at(args_.share_input_output_embed ? "embed_tokens.weight" : "output_projection.weight")
            .t());
  }

 private:
  at::Tensor Linear(const std::string& name, const at::Tensor& x) const {
    return x.matmul(weights_.at(name + ".weight").t()) + weights_.at(name + ".bias");
  }

  at::Tensor Norm(const std::string& name, const at::Tensor& x) const {
    const at::Tensor centred = x - x.mean(-1, /*keepdim=*/true);
    return centred / (centred.square().mean(-1, true) + 1e-5).sqrt() *
               weights_.at(name + ".weight") +
           weights_.at(name + ".bias");
  }

  at::Tensor Attention(const std::string& name, const at::Tensor& x) const {
    const auto project = [&](const char* which) {
      return Linear(name + which, x)
          .view({x.size(0), x.size(1), args_.heads, args_.dim / args_.heads});
    };
    at::Tensor q = project("q_proj"), k = project("k_proj");
    if (args_.xpos_rel_pos) {
      q = Xpos(q, weights_.at(name + "xpos.scale"), /*downscale=*/false);
      k = Xpos(k, weights_.at(name + "xpos.scale"), /*downscale=*/true);
    }
    at::Tensor y = Dilated(q, k, project("v_proj")).reshape(x.sizes());
    if (args_.subln) y = Norm(name + "inner_attn_ln", y);
    return Linear(name + "out_proj", y);
  }

  // Channels 2i and 2i + 1 are a pair; the decay counts from the sequence's middle.
  static at::Tensor Xpos(const at::Tensor& x, const at::Tensor& base, bool downscale) {
    const int64_t length = x.size(1), size = x.size(3);
    const at::Tensor time = at::arange(length, at::kDouble).unsqueeze(1);
    at::Tensor scale = at::pow(base, (time - static_cast<double>((length + 1) / 2)) / 512);
    if (downscale) scale = scale.reciprocal();
    const at::Tensor angle =
        time / at::pow(10000.0, at::arange(size / 2, at::kDouble) / static_cast<double>(size / 2));
    const auto twice = [&](const at::Tensor& t) {
      return (t * scale).repeat_interleave(2, -1).view({1, length, 1, size});
    };
    const at::Tensor pairs = x.reshape({x.size(0), length, x.size(2), size / 2, 2});
    const at::Tensor turned = at::stack({-pairs.select(-1, 1), pairs.select(-1, 0)}, -1);
    return x * twice(angle.cos()) + turned.reshape(x.sizes()) * twice(angle.sin());
  }

  // Every branch gathers the rows of each head, attends, and puts the rows back; the weights that
  // mix the branches are constants.
  at::Tensor Dilated(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) const {
    std::vector<at::Tensor> outs, lses;
    for (const auto& [w, r] : args_.branches) {
      auto [out, lse] = Branch(q, k, v, std::min(w, q.size(1)), r);
      outs.push_back(out);
      lses.push_back(lse.detach());
    }
    const at::Tensor shares = at::softmax(at::stack(lses), 0).unsqueeze(-1);
    return (at::stack(outs) * shares).sum(0);
  }

  std::pair<at::Tensor, at::Tensor> Branch(const at::Tensor& q, const at::Tensor& k,
                                           const at::Tensor& v, int64_t w, int64_t r) const {
    const int64_t batch = q.size(0), length = q.size(1), size = q.size(3);
    const int64_t segments = (length + w - 1) / w, padded = (w + r - 1) / r * r;
    const auto cut = [&](const at::Tensor& x) {  // [B * segments, padded, H, D]
      const at::Tensor whole = at::constant_pad_nd(x, {0, 0, 0, 0, 0, segments * w - length});
      return at::constant_pad_nd(whole.reshape({batch * segments, w, args_.heads, size}),
                                 {0, 0, 0, 0, 0, padded - w});
    };
    const at::Tensor qs = cut(q), ks = cut(k), vs = cut(v);
    at::Tensor out = at::zeros_like(qs);
    at::Tensor lse = at::full({qs.size(0), padded, args_.heads}, kUnselected, at::kDouble);
    const int64_t in_group = (args_.heads + r - 1) / r;
    for (int64_t head = 0; head < args_.heads; ++head) {
      const auto rows = [&](const at::Tensor& x) {
        return x.select(2, head).slice(1, head / in_group, std::nullopt, r);
      };
      const at::Tensor scores =
          rows(qs).matmul(rows(ks).transpose(1, 2)) / std::sqrt(static_cast<double>(size)) +
          at::full({padded / r, padded / r}, -std::numeric_limits<double>::infinity(), at::kDouble)
              .triu(1);
      rows(out).copy_(at::softmax(scores, -1).matmul(rows(vs)));
      rows(lse).copy_(at::logsumexp(scores, -1));
    }
    const auto join = [&](const at::Tensor& x, at::IntArrayRef sizes) {
      return x.slice(1, 0, w).reshape(sizes).slice(1, 0, length);
    };
    return {join(out, {batch, segments * w, args_.heads, size}),
            join(lse, {batch, segments * w, args_.heads})};
  }

  const TorchscaleArgs& args_;
  const StateDict& weights_;
};

}  // namespace

StateDict RandomStateDict(const TorchscaleArgs& args, uint64_t seed) {
  at::manual_seed(seed);
  StateDict weights;
  const auto random = [&](const std::string& name, at::IntArrayRef sizes, double mean,
                          double deviation) {
    weights[name] = at::randn(sizes, at::kDouble) * deviation + mean;
  };
  const auto norm = [&](const std::string& name, int64_t size) {
    random(name + ".weight", {size}, 1, 0.2);
    random(name + ".bias", {size}, 0, 0.2);
  };
  const auto linear = [&](const std::string& name, int64_t out, int64_t in) {
    random(name + ".weight", {out, in}, 0, 0.4);
    random(name + ".bias", {out}, 0, 0.2);
  };
  random("embed_tokens.weight", {args.vocab_size, args.dim}, 0, 1);
  for (int64_t layer = 0; layer < args.layers; ++layer) {
    const std::string name = "layers." + std::to_string(layer) + ".";
    for (const char* which : {"k_proj", "v_proj", "q_proj", "out_proj"}) {
      linear(name + "self_attn." + which, args.dim, args.dim);
    }
    if (args.subln) norm(name + "self_attn.inner_attn_ln", args.dim);
    if (args.xpos_rel_pos) {
      const double size = static_cast<double>(args.dim / args.heads);
      weights[name + "self_attn.xpos.scale"] =
          (at::arange(0, size, 2, at::kDouble) + 0.4 * size) / (1.4 * size);
    }
    norm(name + "self_attn_layer_norm", args.dim);
    linear(name + "ffn.fc1", args.ffn_dim, args.dim);
    linear(name + "ffn.fc2", args.dim, args.ffn_dim);
    if (args.subln) norm(name + "ffn.ffn_layernorm", args.ffn_dim);
    norm(name + "final_layer_norm", args.dim);
  }
  norm("layer_norm", args.dim);
  if (args.share_input_output_embed) {
    weights["output_projection.weight"] = weights["embed_tokens.weight"];
  } else {
    random("output_projection.weight", {args.vocab_size, args.dim}, 0, 0.2);
  }
  return weights;
}

at::Tensor TorchscaleLogits(const TorchscaleArgs& args, const StateDict& weights,
                            const at::Tensor& tokens) {
  return Decoder(args, weights).Logits(tokens);
}

}  // namespace ringmaster::models
