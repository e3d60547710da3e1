#pragma once

#include <cstdint>
#include <cstring>

#include "attention/kernels/host_device.h"

// What rounding an fp32 number to bf16 leaves over, eight bits of it: the next ones of its
// mantissa. An output is saved with it, because gradients are differences of what the output is
// multiplied with.
namespace ringmaster::attention::kernels {

// `rounded` are the bits of the bf16 number that is nearest to `value`, both finite; sign and
// magnitude are apart in both, so that bits differ as magnitudes do.
RINGMASTER_HOST_DEVICE int8_t RestOf(float value, uint16_t rounded) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  const int32_t rest = static_cast<int32_t>(bits - (uint32_t{rounded} << 16)) >> 8;
  // Half of a step away neither way, so that the number rounds as it did.
  return static_cast<int8_t>(rest > 127 ? 127 : rest < -127 ? -127 : rest);
}

// The number again, to within 2^-15 of its size; it rounds to `rounded`.
RINGMASTER_HOST_DEVICE float WithRest(uint16_t rounded, int8_t rest) {
  const uint32_t bits = (uint32_t{rounded} << 16) + (static_cast<uint32_t>(int32_t{rest}) << 8);
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace ringmaster::attention::kernels
