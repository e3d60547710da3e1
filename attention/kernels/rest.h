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
