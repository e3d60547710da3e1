#pragma once

#include <cstdint>
#include <cstring>

#include "attention/kernels/host_device.h"

// The two-byte numbers that operands and outputs are made of; sums are fp32.
namespace ringmaster::attention::kernels {

enum class ElementType { kBf16, kFp16 };

RINGMASTER_HOST_DEVICE uint32_t BitsOf(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}
RINGMASTER_HOST_DEVICE float FloatOf(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

// What kernels know of each type. A number is *extended* by kExtraBits more of its mantissa to four
// bytes; an fp32 number becomes one without loss where the type has its exponents.
struct Bf16 {
  static constexpr int kExtraBits = 16;
  RINGMASTER_HOST_DEVICE static uint32_t Extend(uint16_t bits) { return uint32_t{bits} << 16; }
  RINGMASTER_HOST_DEVICE static uint32_t Extended(float value) { return BitsOf(value); }
  RINGMASTER_HOST_DEVICE static float Float(uint32_t extended) { return FloatOf(extended); }
#ifdef __CUDACC__
  // Two numbers, rounded.
  __device__ static uint32_t Pack(float low, float high) {
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
  }
#endif
};

// Its exponents are 112 below those of fp32; numbers too small for them have no leading one, as
// those of fp32 have not that are 112 below.
struct Fp16 {
  static constexpr int kExtraBits = 13;
  RINGMASTER_HOST_DEVICE static uint32_t Extend(uint16_t bits) {
    return (bits & 0x8000u) << 16 | (bits & 0x7FFFu) << 13;
  }
  RINGMASTER_HOST_DEVICE static uint32_t Extended(float value) { return BitsOf(value * 0x1p-112f); }
  RINGMASTER_HOST_DEVICE static float Float(uint32_t extended) {
    // Infinities and what is no number stay so.
    constexpr uint32_t kInfinite = uint32_t{0x7C00} << 13;
    const bool finite = (extended & 0x7FFFFFFF) < kInfinite;
    return finite ? FloatOf(extended) * 0x1p112f : FloatOf(extended | 0x7F800000);
  }
#ifdef __CUDACC__
  __device__ static uint32_t Pack(float low, float high) {
    uint32_t packed;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
  }
#endif
};

// Calls f with the type.
template <typename F>
auto WithElement(ElementType type, const F& f) {
  return type == ElementType::kFp16 ? f(Fp16{}) : f(Bf16{});
}

}  // namespace ringmaster::attention::kernels
