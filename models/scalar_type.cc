#include "models/scalar_type.h"

#include <string>

#include "absl/strings/str_cat.h"

namespace ringmaster::models {

absl::StatusOr<at::ScalarType> ScalarTypeOf(const safetensors::Tensor& tensor) {
  switch (tensor.type) {
    case safetensors::Type::kF64:
      return at::kDouble;
    case safetensors::Type::kF32:
      return at::kFloat;
    case safetensors::Type::kBF16:
      return at::kBFloat16;
    case safetensors::Type::kF16:
      return at::kHalf;
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", tensor.name, " is ",
                       std::string(safetensors::TypeName(tensor.type)), ", not floating-point"));
  }
}

safetensors::Type StoredType(at::ScalarType type) {
  return type == at::kDouble ? safetensors::Type::kF64 : safetensors::Type::kF32;
}

}  // namespace ringmaster::models
