#include "coordinator/core/ids.h"

#include "absl/strings/str_format.h"

namespace ringmaster::coordinator {

// SplitMix64: every seed gives a full period.
uint64_t IdSource::Next() {
  state_ += 0x9E3779B97F4A7C15u;
  uint64_t z = state_;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

std::string IdSource::Uuid() {
  const uint64_t high = (Next() & ~uint64_t{0xF000}) | 0x4000;
  const uint64_t low = (Next() & ~(uint64_t{3} << 62)) | (uint64_t{2} << 62);
  return absl::StrFormat("%08x-%04x-%04x-%04x-%012x", high >> 32, (high >> 16) & 0xFFFF,
                         high & 0xFFFF, low >> 48, low & 0xFFFFFFFFFFFFu);
}

std::string IdSource::JobId() {
  static constexpr char kAlphabet[] = "abcdefghijklmnopqrstuvwxyz0123456789";
  std::string id = "job-";
  uint64_t bits = Next();
  for (int i = 0; i < 10; ++i) {
    id += kAlphabet[bits % 36];
    bits /= 36;
  }
  return id;
}

}  // namespace ringmaster::coordinator
