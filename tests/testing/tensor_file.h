#pragma once

#include <ATen/core/Tensor.h>

#include <fstream>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/safetensors.h"
#include "gtest/gtest.h"

namespace ringmaster {

// Writes a safetensors file of F64, F32, BF16, F16 and I64 tensors.
inline void WriteTensors(const std::string& path,
                         const std::map<std::string, at::Tensor>& tensors) {
  const std::map<at::ScalarType, safetensors::Type> types = {
      {at::kDouble, safetensors::Type::kF64},
      {at::kFloat, safetensors::Type::kF32},
      {at::kBFloat16, safetensors::Type::kBF16},
      {at::kHalf, safetensors::Type::kF16},
      {at::kLong, safetensors::Type::kI64}};
  std::vector<safetensors::TensorSpec> specs;
  for (const auto& [name, tensor] : tensors) {
    specs.push_back({name, types.at(tensor.scalar_type()), tensor.sizes().vec()});
  }
  const auto header = safetensors::LayOut(std::move(specs), {});
  ASSERT_TRUE(header.ok()) << header.status();
  std::ofstream file(path, std::ios::binary);
  file << safetensors::EncodeHeader(*header);
  for (const safetensors::Tensor& place : header->tensors) {
    const at::Tensor values = tensors.at(place.name).contiguous();
    file.write(static_cast<const char*>(values.const_data_ptr()),
               static_cast<std::streamsize>(values.nbytes()));
  }
  ASSERT_TRUE(file.flush()) << path;
}

}  // namespace ringmaster
