#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "coordinator/core/presets.h"
#include "coordinator/core/spec.h"

// The model: sizes, presets, and the rules between them.
namespace ringmaster::coordinator {
namespace {

constexpr int32_t kLayersMax = 1024;
constexpr int32_t kDimMax = 1 << 17;
constexpr int32_t kFfnDimMax = 1 << 20;
constexpr int32_t kVocabMax = 1 << 24;
constexpr int32_t kBytes = 256;

void InRange(absl::string_view field, int32_t value, int32_t low, int32_t high, Violations* v) {
  if (value < low || value > high) {
    v->Field(field, absl::StrFormat("is %d; it must be %d to %d", value, low, high));
  }
}

const ModelPreset* Preset(const v1::ModelSpec& model, Violations* v) {
  if (model.preset().empty()) return nullptr;
  const ModelPreset* preset = FindModelPreset(model.preset());
  if (preset == nullptr) {
    v->Field("model.preset",
             absl::StrCat("'", model.preset(), "' is not known; known are ",
                          absl::StrJoin(ModelPresets(), ", ", [](std::string* out, const auto& p) {
                            out->append(p.name);
                          })));
  }
  return preset;
}

// The divisors of `heads` next to `given`.
std::vector<int64_t> NearestDivisors(int64_t heads, int64_t given) {
  std::vector<int64_t> nearest;
  for (int64_t d = std::min(given, heads); d >= 1; --d) {
    if (heads % d == 0) {
      nearest.push_back(d);
      break;
    }
  }
  for (int64_t d = given + 1; d <= heads; ++d) {
    if (heads % d == 0) {
      nearest.push_back(d);
      break;
    }
  }
  return nearest;
}

void CheckHeads(const v1::ModelSpec& model, Violations* v) {
  if (model.heads() < 1 || model.dim() < 1) return;
  const bool rotary = model.positions() != v1::NO_POSITIONS;
  if (model.dim() % model.heads() != 0) {
    v->Multiple("model.dim", model.dim(), model.heads(), "dim % heads == 0");
  } else if (rotary) {
    v->Multiple("model.dim", model.dim(), int64_t{2} * model.heads(),
                "(dim / heads) % 2 == 0, for rotary positions,");
  }
  if (model.kv_heads() >= 1 && model.heads() % model.kv_heads() != 0) {
    v->Shape("model.kv_heads", model.kv_heads(), 0,
             NearestDivisors(model.heads(), model.kv_heads()), "heads % kv_heads == 0");
  }
}

void ResolveSizes(const ModelPreset* preset, v1::ModelSpec* model, Violations* v) {
  if (preset != nullptr) {
    if (model->layers() == 0) model->set_layers(preset->layers);
    if (model->dim() == 0) model->set_dim(preset->dim);
    if (model->heads() == 0) model->set_heads(preset->heads);
  }
  if (model->kv_heads() == 0) model->set_kv_heads(model->heads());
  if (model->ffn_dim() == 0) {
    model->set_ffn_dim(std::min(int64_t{4} * model->dim(), int64_t{kFfnDimMax}));
  }
  if (model->vocab_size() == 0) model->set_vocab_size(kBytes);
  if (model->positions() == v1::POSITIONS_UNSPECIFIED) model->set_positions(v1::ROTARY);
  if (!model->has_tied_embeddings()) model->set_tied_embeddings(true);
  if (!model->has_sub_ln()) model->set_sub_ln(true);

  InRange("model.layers", model->layers(), 1, kLayersMax, v);
  InRange("model.dim", model->dim(), 1, kDimMax, v);
  InRange("model.heads", model->heads(), 1, kDimMax, v);
  if (model->heads() >= 1) {
    InRange("model.kv_heads", model->kv_heads(), 1, model->heads(), v);
  }
  if (model->dim() >= 1) InRange("model.ffn_dim", model->ffn_dim(), 1, kFfnDimMax, v);
  // Corpora are bytes.
  InRange("model.vocab_size", model->vocab_size(), kBytes, kVocabMax, v);
  if (!v1::Positions_IsValid(model->positions())) {
    v->Field("model.positions", absl::StrCat("has the unknown value ", model->positions()));
  }
  CheckHeads(*model, v);
}

}  // namespace

void ResolveModel(v1::TrainingJobSpec* spec, Violations* v) {
  if (!spec->has_model()) {
    v->Field("model", "is required: a preset, or layers, dim and heads");
    return;
  }
  const ModelPreset* preset = Preset(spec->model(), v);
  if (preset == nullptr && !spec->model().preset().empty()) return;
  ResolveSizes(preset, spec->mutable_model(), v);
  ResolveAttention(preset, spec, v);
}

}  // namespace ringmaster::coordinator
