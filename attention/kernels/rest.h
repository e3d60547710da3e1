#pragma once

#include <cstdint>

#include "attention/kernels/element.h"

// What rounding an fp32 number to an Element (element.h) leaves over, eight bits of it: the next
// ones of its mantissa. An output is saved with it, because gradients are differences of what the
// output is multiplied with.
namespace ringmaster::attention::kernels {

// `rounded` are the bits of the element that is nearest to `value`; sign and magnitude
// are apart in both, so that bits differ as magnitudes do.
template <typename Element>
RINGMASTER_HOST_DEVICE int8_t RestOf(float value, uint16_t rounded) {
  const int32_t rest = static_cast<int32_t>(Element::Extended(value) - Element::Extend(rounded)) >>
                       (Element::kExtraBits - 8);
  // Half of a step away neither way, so that the number rounds as it did.
  return static_cast<int8_t>(rest > 127 ? 127 : rest < -127 ? -127 : rest);
}

#ifdef __CUDACC__
// The rests of four numbers, a byte each, that were rounded two and two.
template <typename Element>
__device__ uint32_t RestsOf(const float (&values)[4], uint32_t low, uint32_t high) {
  uint32_t pairs[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t rounded = i == 0 ? low : high;
    const auto rest = [](float value, uint32_t of) {
      return static_cast<uint32_t>(
          static_cast<int32_t>(Element::Extended(value) -
                               Element::Extend(static_cast<uint16_t>(of))) >>
          (Element::kExtraBits - 8));
    };
    const uint32_t two =
        __byte_perm(rest(values[2 * i], rounded), rest(values[2 * i + 1], rounded >> 16), 0x5410);
    pairs[i] = __vmins2(__vmaxs2(two, 0xFF81FF81), 0x007F007F);
  }
  return __byte_perm(pairs[0], pairs[1], 0x6420);
}
#endif

// The number again, to within a 256th of the element's last digit; it rounds to `rounded`. What is
// not finite stays so, whatever its rest.
template <typename Element>
RINGMASTER_HOST_DEVICE float WithRest(uint16_t rounded, int8_t rest) {
  const float whole = Element::Float(Element::Extend(rounded));
  if (!(whole - whole == 0)) {
    return whole;
  }
  return Element::Float(Element::Extend(rounded) +
                        (static_cast<uint32_t>(int32_t{rest}) << (Element::kExtraBits - 8)));
}

}  // namespace ringmaster::attention::kernels
