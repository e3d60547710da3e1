#pragma once

#include <c10/core/ScalarType.h>

#include "absl/status/statusor.h"
#include "base/safetensors.h"

namespace ringmaster::models {

// The type of a stored tensor's numbers; InvalidArgument naming the tensor if they are not
// floating-point.
absl::StatusOr<at::ScalarType> ScalarTypeOf(const safetensors::Tensor& tensor);
// As which type the numbers of a parameter are stored. REQUIRES: fp64 or fp32.
safetensors::Type StoredType(at::ScalarType type);

}  // namespace ringmaster::models
