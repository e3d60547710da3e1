#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "models/longnet_config.h"

namespace ringmaster::models {

// Where each parameter lies in one flat tensor, so that optimizer, reduction, digest and copies
// work on whole buffers. Decayed parameters come first; every parameter starts on a multiple of 64
// bytes (16 fp32 elements) and the gaps hold zeros. Immutable value.
class ParameterLayout {
 public:
  explicit ParameterLayout(std::vector<ParameterSpec> specs);

  const std::vector<ParameterSpec>& specs() const { return specs_; }
  int64_t size() const { return size_; }
  // Elements [0, decayed_size()) are those of decayed parameters.
  int64_t decayed_size() const { return decayed_size_; }
  // Elements of the parameters themselves, without gaps.
  int64_t parameters() const { return parameters_; }

  // A tensor for each parameter, in the order of specs(), that shares memory with `flat` (1-D,
  // contiguous, size() elements) and is detached from any graph.
  std::vector<at::Tensor> Views(const at::Tensor& flat) const;

 private:
  std::vector<ParameterSpec> specs_;
  std::vector<int64_t> offsets_;
  int64_t size_ = 0;
  int64_t decayed_size_ = 0;
  int64_t parameters_ = 0;
};

// Fills `views` (a layout's, on the CPU, fp32 or fp64) with initial values that are a pure function
// of (seed, parameter name, element), whatever the device, thread count or world size.
void InitializeParameters(absl::Span<const ParameterSpec> specs, uint64_t seed,
                          absl::Span<const at::Tensor> views);

}  // namespace ringmaster::models
