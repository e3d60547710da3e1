#include "models/parameters.h"

#define XXH_INLINE_ALL
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <xxhash.h>

#include <cmath>
#include <numbers>
#include <utility>

namespace ringmaster::models {
namespace {

constexpr int64_t kAlignment = 16;

int64_t RoundUp(int64_t value) { return (value + kAlignment - 1) / kAlignment * kAlignment; }

// The output function of SplitMix64: a bijection that mixes all bits.
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// (0, 1], from the upper 53 bits.
double Uniform(uint64_t key, uint64_t counter) {
  return static_cast<double>((Mix(key + counter * 0x9e3779b97f4a7c15u) >> 11) + 1) * 0x1p-53;
}

// Box-Muller on counters, so that each element stands for itself.
double Normal(uint64_t key, uint64_t element) {
  const double radius = std::sqrt(-2 * std::log(Uniform(key, 2 * element + 1)));
  return radius * std::cos(2 * std::numbers::pi * Uniform(key, 2 * element + 2));
}

template <typename T>
void Fill(const ParameterSpec& spec, uint64_t seed, T* values) {
  if (spec.stddev == 0) {
    std::fill_n(values, spec.elements(), static_cast<T>(spec.mean));
    return;
  }
  const uint64_t key = Mix(seed ^ XXH3_64bits(spec.name.data(), spec.name.size()));
  at::parallel_for(0, spec.elements(), 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      values[i] = static_cast<T>(spec.mean + spec.stddev * Normal(key, i));
    }
  });
}

}  // namespace

ParameterLayout::ParameterLayout(std::vector<ParameterSpec> specs)
    : specs_(std::move(specs)), offsets_(specs_.size()) {
  for (const bool decayed : {true, false}) {
    for (size_t i = 0; i < specs_.size(); ++i) {
      if (specs_[i].decayed == decayed) {
        offsets_[i] = size_;
        size_ += RoundUp(specs_[i].elements());
        parameters_ += specs_[i].elements();
      }
    }
    if (decayed) {
      decayed_size_ = size_;
    }
  }
}

std::vector<at::Tensor> ParameterLayout::Views(const at::Tensor& flat) const {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> views;
  views.reserve(specs_.size());
  for (size_t i = 0; i < specs_.size(); ++i) {
    views.push_back(
        flat.narrow(0, offsets_[i], specs_[i].elements()).view(specs_[i].shape).detach());
  }
  return views;
}

void InitializeParameters(absl::Span<const ParameterSpec> specs, uint64_t seed,
                          absl::Span<const at::Tensor> views) {
  for (size_t i = 0; i < specs.size(); ++i) {
    if (views[i].scalar_type() == at::kDouble) {
      Fill(specs[i], seed, views[i].mutable_data_ptr<double>());
    } else {
      Fill(specs[i], seed, views[i].mutable_data_ptr<float>());
    }
  }
}

}  // namespace ringmaster::models
