#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/safetensors.h"
#include "gtest/gtest.h"

namespace ringmaster {

// A tensor's type in memory and in a file; those that tests write and read. What a model's
// parameters are stored as is models/scalar_type.h's to say.
struct TensorType {
  at::ScalarType type;
  safetensors::Type stored;
};
inline constexpr TensorType kTensorTypes[] = {{at::kDouble, safetensors::Type::kF64},
                                              {at::kFloat, safetensors::Type::kF32},
                                              {at::kBFloat16, safetensors::Type::kBF16},
                                              {at::kHalf, safetensors::Type::kF16},
                                              {at::kLong, safetensors::Type::kI64}};

// Writes a safetensors file.
inline void WriteTensors(const std::string& path,
                         const std::map<std::string, at::Tensor>& tensors) {
  std::vector<safetensors::TensorSpec> specs;
  for (const auto& [name, tensor] : tensors) {
    const auto* type = std::ranges::find(kTensorTypes, tensor.scalar_type(), &TensorType::type);
    ASSERT_NE(type, std::end(kTensorTypes)) << tensor.scalar_type();
    specs.push_back({name, type->stored, tensor.sizes().vec()});
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

// Reads all of one; none where it cannot be read, which fails the test.
inline std::map<std::string, at::Tensor> ReadTensors(const std::string& path) {
  const auto file = safetensors::File::Open(path);
  EXPECT_TRUE(file.ok()) << file.status();
  std::map<std::string, at::Tensor> tensors;
  if (!file.ok()) return tensors;
  for (const safetensors::Tensor& place : file->header().tensors) {
    const auto* type = std::ranges::find(kTensorTypes, place.type, &TensorType::stored);
    EXPECT_NE(type, std::end(kTensorTypes)) << safetensors::TypeName(place.type);
    if (type == std::end(kTensorTypes)) return {};
    at::Tensor& tensor = tensors[place.name] = at::empty(place.shape, type->type);
    std::memcpy(tensor.mutable_data_ptr(), file->Bytes(place).data(), place.bytes());
  }
  return tensors;
}

}  // namespace ringmaster
