#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "attention/kernels/element.h"

// The kernels' two-byte numbers on the host, made without their own arithmetic.
namespace ringmaster::attention::kernels {

inline uint16_t ToElement(ElementType type, float value) {
  if (type == ElementType::kFp16) {
    const auto half = static_cast<_Float16>(value);
    uint16_t bits;
    std::memcpy(&bits, &half, sizeof(bits));
    return bits;
  }
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  bits += 0x7FFF + (bits >> 16 & 1);
  return static_cast<uint16_t>(bits >> 16);
}

inline float FromElement(ElementType type, uint16_t value) {
  if (type == ElementType::kFp16) {
    _Float16 half;
    std::memcpy(&half, &value, sizeof(half));
    return static_cast<float>(half);
  }
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

// Normal numbers. After a million they repeat: drawing all of a benchmark's would take longer than
// what it measures.
inline std::vector<uint16_t> RandomElements(ElementType type, int64_t count,
                                            std::mt19937_64* random) {
  constexpr size_t kDrawn = size_t{1} << 20;
  std::normal_distribution<float> normal;
  std::vector<uint16_t> values(count);
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = i < kDrawn ? ToElement(type, normal(*random)) : values[i - kDrawn];
  }
  return values;
}

// For tests of kernels with these parameters.
struct ElementCase {
  ElementType type;
  int head_dim;
};

}  // namespace ringmaster::attention::kernels
