#include "coordinator/core/labels.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_format.h"

namespace ringmaster::coordinator {
namespace {

constexpr int kLabelsMax = 64;
constexpr size_t kLabelMax = 63;

bool IsLabel(const std::string& text) {
  return text.size() <= kLabelMax && std::all_of(text.begin(), text.end(), [](char c) {
           return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '_' || c == '-';
         });
}

}  // namespace

bool IsLabelKey(const std::string& text) { return !text.empty() && IsLabel(text); }

void CheckLabels(const Labels& labels, Violations* v) {
  if (labels.size() > kLabelsMax) {
    v->Field("labels",
             absl::StrFormat("has %d entries; at most %d are allowed", labels.size(), kLabelsMax));
  }
  for (const auto& [key, value] : labels) {
    if (!IsLabelKey(key) || !IsLabel(value)) {
      v->Field("labels",
               absl::StrFormat("'%s: %s' must be at most 63 characters of [a-z0-9_-] each",
                               key.substr(0, kLabelMax), value.substr(0, kLabelMax)));
    }
  }
}

}  // namespace ringmaster::coordinator
