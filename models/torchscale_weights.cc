#include "models/torchscale_weights.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/isfinite.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "base/status_macros.h"
#include "models/scalar_type.h"

namespace ringmaster::models {
namespace {

constexpr char kEmbedding[] = "embed_tokens.weight";
constexpr char kOutput[] = "output_projection.weight";

absl::Status Refuse(absl::string_view tensor, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("tensor ", tensor, " ", what));
}

// Ours -> torchscale's: of a whole name, or of what stands between "layers.{i}." and ".weight" or
// ".bias".
std::string TorchscaleName(const std::string& name) {
  static const auto& whole = *new std::map<absl::string_view, absl::string_view>{
      {"embedding.weight", kEmbedding},
      {"final_norm.weight", "layer_norm.weight"},
      {"final_norm.bias", "layer_norm.bias"},
      {"output.weight", kOutput}};
  static const auto& of_layers = *new std::map<absl::string_view, absl::string_view>{
      {"attention_norm", "self_attn_layer_norm"},
      {"attention.query", "self_attn.q_proj"},
      {"attention.key", "self_attn.k_proj"},
      {"attention.value", "self_attn.v_proj"},
      {"attention.sub_norm", "self_attn.inner_attn_ln"},
      {"attention.output", "self_attn.out_proj"},
      {"ffn_norm", "final_layer_norm"},
      {"ffn.up", "ffn.fc1"},
      {"ffn.sub_norm", "ffn.ffn_layernorm"},
      {"ffn.down", "ffn.fc2"}};
  if (const auto found = whole.find(name); found != whole.end()) return std::string(found->second);
  const size_t begin = name.find('.', name.find('.') + 1) + 1;  // after "layers.{i}."
  const size_t end = name.rfind('.');
  return absl::StrCat(name.substr(0, begin), of_layers.at(name.substr(begin, end - begin)),
                      name.substr(end));
}

// The kinds of models that torchscale has and we have not, by what their tensors are called.
absl::Status CheckKind(absl::string_view name) {
  static constexpr struct {
    absl::string_view part;
    absl::string_view kind;
  } kKinds[] = {{".moe_layer.", "belongs to a mixture of experts"},
                {"relative_position", "is a relative position bias"},
                {"embed_positions.", "gives absolute positions"},
                {"layernorm_embedding.", "is a LayerNorm of embeddings (layernorm_embedding)"},
                {".encoder_attn", "belongs to cross attention, of an encoder-decoder"},
                {"encoder.", "belongs to an encoder"},
                {".A.", "belongs to a multiway model"},
                {".B.", "belongs to a multiway model"}};
  for (const auto& [part, kind] : kKinds) {
    if (absl::StrContains(absl::StrCat(".", name), part)) {
      return Refuse(name, absl::StrCat(kind, ", which this LongNet decoder does not have"));
    }
  }
  return absl::OkStatus();
}

class Importer {
 public:
  Importer(const safetensors::File& file, const TorchscaleModel& model)
      : file_(file), model_(model) {}

  absl::StatusOr<TorchscaleImport> Run() {
    RETURN_IF_ERROR(ReadNames());
    TorchscaleImport result;
    ASSIGN_OR_RETURN(result.config, ReadConfig());
    RETURN_IF_ERROR(CheckXpos(result.config));
    ASSIGN_OR_RETURN(const safetensors::Tensor* table, Find(kEmbedding));
    const at::ScalarType dtype = table->type == safetensors::Type::kF64 ? at::kDouble : at::kFloat;
    std::vector<std::pair<const safetensors::Tensor*, ParameterSpec>> found;
    for (const ParameterSpec& spec : ParameterSpecs(result.config)) {
      const std::string name = TorchscaleName(spec.name);
      ASSIGN_OR_RETURN(const safetensors::Tensor* tensor, Find(name));
      RETURN_IF_ERROR(CheckShape(name, *tensor, spec.shape));
      used_.insert(name);
      found.emplace_back(tensor, spec);
    }
    for (const auto& [name, tensor] : tensors_) {
      if (!used_.contains(name)) {
        return Refuse(name, "is not one of this LongNet decoder");
      }
    }
    for (const auto& [tensor, spec] : found) {
      ASSIGN_OR_RETURN(const at::Tensor values, Read(*tensor));
      result.parameters.push_back(
          Converted(result.config, spec.name, values).to(dtype).contiguous());
    }
    return result;
  }

 private:
  absl::Status ReadNames() {
    const bool prefixed = file_.header().Find(absl::StrCat("decoder.", kEmbedding)) != nullptr;
    for (const safetensors::Tensor& tensor : file_.header().tensors) {
      absl::string_view name = tensor.name;
      if (prefixed) absl::ConsumePrefix(&name, "decoder.");
      if (!tensors_.emplace(name, &tensor).second) {
        return Refuse(name, "is there twice, with and without decoder.");
      }
    }
    for (const auto& [name, tensor] : tensors_) {
      RETURN_IF_ERROR(CheckKind(name));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<const safetensors::Tensor*> Find(const std::string& name) const {
    if (const auto found = tensors_.find(name); found != tensors_.end()) return found->second;
    return Refuse(name, name == "layer_norm.weight"
                            ? "is missing: without it the decoder is post-LN (deepnorm, or "
                              "decoder_normalize_before off), which ours is not"
                            : "is missing");
  }

  static absl::Status CheckShape(absl::string_view name, const safetensors::Tensor& tensor,
                                 const std::vector<int64_t>& shape) {
    if (tensor.shape == shape) return absl::OkStatus();
    return Refuse(
        name, absl::StrCat("has shape [", absl::StrJoin(tensor.shape, ", "),
                           "]; beside the others it should be [", absl::StrJoin(shape, ", "), "]"));
  }

  // In fp64.
  absl::StatusOr<at::Tensor> Read(const safetensors::Tensor& tensor) const {
    ASSIGN_OR_RETURN(const at::ScalarType type, ScalarTypeOf(tensor));
    at::Tensor raw = at::empty(tensor.shape, type);
    const absl::Span<const char> bytes = file_.Bytes(tensor);
    if (!bytes.empty()) std::memcpy(raw.mutable_data_ptr(), bytes.data(), bytes.size());
    at::Tensor values = raw.to(at::kDouble);
    if (!at::isfinite(values).all().item<bool>()) {
      return Refuse(tensor.name, "holds values that are not finite");
    }
    return values;
  }

  absl::StatusOr<bool> Tied() {
    const auto output = tensors_.find(kOutput);
    if (output == tensors_.end()) return true;
    ASSIGN_OR_RETURN(const safetensors::Tensor* table, Find(kEmbedding));
    const absl::Span<const char> a = file_.Bytes(*table), b = file_.Bytes(*output->second);
    const bool tied = output->second->type == table->type &&
                      output->second->shape == table->shape &&
                      std::equal(a.begin(), a.end(), b.begin(), b.end());
    if (tied) used_.insert(kOutput);
    return tied;
  }

  absl::StatusOr<LongNetConfig> ReadConfig() {
    LongNetConfig config;
    for (const auto& [name, tensor] : tensors_) {
      absl::string_view rest = name;
      int64_t layer = 0;
      if (absl::ConsumePrefix(&rest, "layers.") &&
          absl::SimpleAtoi(rest.substr(0, rest.find('.')), &layer)) {
        if (layer < 0 || layer >= static_cast<int64_t>(tensors_.size())) {
          return Refuse(name, "is of a layer before which others are missing");
        }
        config.layers = std::max(config.layers, layer + 1);
      }
    }
    ASSIGN_OR_RETURN(const safetensors::Tensor* table, Find(kEmbedding));
    ASSIGN_OR_RETURN(const safetensors::Tensor* up, Find("layers.0.ffn.fc1.weight"));
    for (const auto& [name, tensor] :
         {std::pair{kEmbedding, table}, {"layers.0.ffn.fc1.weight", up}}) {
      if (tensor->shape.size() != 2) {
        return Refuse(name, absl::StrCat("has ", tensor->shape.size(), " dimensions, not 2"));
      }
    }
    config.vocab_size = table->shape[0];
    config.dim = table->shape[1];
    config.ffn_dim = up->shape[0];
    config.heads = model_.heads;
    config.kv_heads = model_.heads;
    config.sub_ln = tensors_.contains("layers.0.self_attn.inner_attn_ln.weight");
    config.positions =
        tensors_.contains("layers.0.self_attn.xpos.scale") ? Positions::kXpos : Positions::kNone;
    ASSIGN_OR_RETURN(config.tied_embeddings, Tied());
    config.attention.branches = model_.branches;
    config.attention.offset_mode = attention::OffsetMode::kTorchscale;
    config.attention.mix_gradient = attention::MixGradient::kDetached;
    RETURN_IF_ERROR(config.Validate());
    for (const attention::Branch& branch : config.attention.branches) {
      if (branch.segment_length % branch.dilation_rate != 0) {
        return absl::InvalidArgumentError(absl::StrCat(
            "dilation rate ", branch.dilation_rate, " does not divide its segment length ",
            branch.segment_length,
            "; torchscale shifts rows there, which is another function than dilated attention"));
      }
    }
    return config;
  }

  // The buffers hold what ours computes: as precisely as their type says it.
  absl::Status CheckXpos(const LongNetConfig& config) {
    if (config.positions != Positions::kXpos) return absl::OkStatus();
    const int64_t half = config.head_dim() / 2;
    const at::Tensor expected = (at::arange(half, at::kDouble) / half + 0.4) / 1.4;
    for (int64_t layer = 0; layer < config.layers; ++layer) {
      const std::string name = absl::StrCat("layers.", layer, ".self_attn.xpos.scale");
      ASSIGN_OR_RETURN(const safetensors::Tensor* scale, Find(name));
      if (scale->shape != std::vector<int64_t>{half}) {
        return Refuse(name,
                      absl::StrCat("has shape [", absl::StrJoin(scale->shape, ", "), "]; with ",
                                   config.heads, " heads it should be [", half, "]"));
      }
      ASSIGN_OR_RETURN(const at::Tensor values, Read(*scale));
      if ((values / expected - 1).abs().max().item<double>() > 0x1p-8) {
        return Refuse(name, absl::StrCat("is not XPOS's for heads of ", config.head_dim()));
      }
      used_.insert(name);
    }
    return absl::OkStatus();
  }

  at::Tensor Converted(const LongNetConfig& config, const std::string& name,
                       const at::Tensor& values) const {
    const double root = std::sqrt(static_cast<double>(config.dim));
    if (name == "embedding.weight" && !model_.scaled_embedding) return values / root;
    if (absl::StartsWith(name, "final_norm.") && config.tied_embeddings &&
        !model_.scaled_embedding) {
      return values * root;
    }
    if (config.positions == Positions::kXpos && (absl::StrContains(name, ".attention.query.") ||
                                                 absl::StrContains(name, ".attention.key."))) {
      // Rows (head, pair, of the pair) become (head, of the pair, pair).
      return values.view({config.heads, config.head_dim() / 2, 2, -1})
          .transpose(1, 2)
          .reshape(values.sizes());
    }
    return values;
  }

  const safetensors::File& file_;
  const TorchscaleModel& model_;
  std::map<std::string, const safetensors::Tensor*> tensors_;  // without "decoder."
  std::set<std::string> used_;
};

}  // namespace

absl::StatusOr<TorchscaleImport> ImportTorchscale(const safetensors::File& file,
                                                  const TorchscaleModel& model) {
  return Importer(file, model).Run();
}

}  // namespace ringmaster::models
