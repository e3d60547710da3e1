#pragma once

#include <cstdint>

#include "attention/kernels/host_device.h"

namespace ringmaster::attention::kernels {

// Four random words, or what they are made of.
struct PhiloxWords {
  uint32_t words[4];
};

// Philox4x32-10 (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3; 2011): random words
// that are a pure function of a counter and a key, so that whoever wants them again makes them
// again, in any order and on any device.
RINGMASTER_HOST_DEVICE PhiloxWords Philox(PhiloxWords counter, uint64_t key) {
  constexpr uint64_t kMultiply0 = 0xD2511F53, kMultiply1 = 0xCD9E8D57;
  constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
  uint32_t(&x)[4] = counter.words;
  auto key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = kMultiply0 * x[0], product1 = kMultiply1 * x[2];
    x[0] = static_cast<uint32_t>(product1 >> 32) ^ x[1] ^ key0;
    x[2] = static_cast<uint32_t>(product0 >> 32) ^ x[3] ^ key1;
    x[1] = static_cast<uint32_t>(product1);
    x[3] = static_cast<uint32_t>(product0);
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  return counter;
}

// The words of a query and of the four keys with this one's quotient by four.
RINGMASTER_HOST_DEVICE PhiloxWords WordsOf(uint64_t philox_key, uint64_t query, uint64_t key) {
  const uint64_t four = key / 4;
  return Philox({{static_cast<uint32_t>(query), static_cast<uint32_t>(query >> 32),
                  static_cast<uint32_t>(four), static_cast<uint32_t>(four >> 32)}},
                philox_key);
}
// The word of a query and a key.
RINGMASTER_HOST_DEVICE uint32_t WordOf(uint64_t philox_key, uint64_t query, uint64_t key) {
  return WordsOf(philox_key, query, key).words[key % 4];
}

}  // namespace ringmaster::attention::kernels
