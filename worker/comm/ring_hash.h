#pragma once

#include <cstdint>
#include <string>

#include "absl/types/span.h"

namespace ringmaster::worker {

// Stands for one forming of one ring: addresses hold random parts, so equal hashes mean the same
// ranks of the same forming.
inline uint64_t RingHash(absl::Span<const std::string> addresses) {
  uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
  for (const std::string& address : addresses) {
    for (const char character : address + '\n') {
      hash = (hash ^ static_cast<unsigned char>(character)) * 0x100000001b3;
    }
  }
  return hash;
}

}  // namespace ringmaster::worker
