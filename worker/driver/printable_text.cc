#include "worker/driver/printable_text.h"

#include <cstddef>
#include <utility>

#include "absl/strings/str_format.h"

namespace ringmaster::worker {
namespace {

std::string Escape(unsigned char byte) { return absl::StrFormat("\\x%02x", byte); }

// Bytes of the character that starts so; 0 when none does.
size_t LengthOf(unsigned char first) {
  if (first >= 0xC2 && first <= 0xDF) return 2;
  if (first >= 0xE0 && first <= 0xEF) return 3;
  if (first >= 0xF0 && first <= 0xF4) return 4;
  return 0;
}

// Whether `second` may follow `first`: no overlong forms, no surrogates, nothing beyond U+10FFFF,
// no C1 controls.
bool MayFollow(unsigned char first, unsigned char second) {
  switch (first) {
    case 0xC2:
      return second >= 0xA0;
    case 0xE0:
      return second >= 0xA0;
    case 0xED:
      return second <= 0x9F;
    case 0xF0:
      return second >= 0x90;
    case 0xF4:
      return second <= 0x8F;
    default:
      return true;
  }
}

}  // namespace

std::string PrintableText::Feed(unsigned char byte) {
  const bool continues =
      (byte & 0xC0) == 0x80 && !waiting_.empty() &&
      (waiting_.size() > 1 || MayFollow(static_cast<unsigned char>(waiting_.front()), byte));
  if (continues) {
    waiting_.push_back(static_cast<char>(byte));
    return waiting_.size() == wanted_ ? std::exchange(waiting_, {}) : std::string();
  }
  std::string shown = Finish();
  if ((byte >= 0x20 && byte < 0x7F) || byte == '\n' || byte == '\t') {
    shown.push_back(static_cast<char>(byte));
  } else if (wanted_ = LengthOf(byte); wanted_ > 0) {
    waiting_.push_back(static_cast<char>(byte));
  } else {
    shown += Escape(byte);
  }
  return shown;
}

std::string PrintableText::Finish() {
  std::string shown;
  for (const char c : std::exchange(waiting_, {})) {
    shown += Escape(static_cast<unsigned char>(c));
  }
  return shown;
}

}  // namespace ringmaster::worker
