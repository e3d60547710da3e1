#include "coordinator/core/labels.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "google/protobuf/util/message_differencer.h"

namespace ringmaster::coordinator {
namespace {

constexpr int kLabelsMax = 64;
constexpr size_t kLabelMax = 63;
constexpr absl::string_view kOne = "labels.";

bool IsLabel(const std::string& text) {
  return text.size() <= kLabelMax && std::all_of(text.begin(), text.end(), [](char c) {
           return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '_' || c == '-';
         });
}

bool IsKey(const std::string& text) { return !text.empty() && IsLabel(text); }

// One label, set or removed.
void Take(const Labels& from, const std::string& key, Labels* to) {
  const auto found = from.find(key);
  if (found == from.end()) {
    to->erase(key);
  } else {
    (*to)[key] = found->second;
  }
}

bool Same(const Labels& a, const Labels& b) {
  return a.size() == b.size() && std::all_of(a.begin(), a.end(), [&b](const auto& label) {
           const auto found = b.find(label.first);
           return found != b.end() && found->second == label.second;
         });
}

std::string WhyNot(const std::string& path) {
  const std::string field(*absl::StrSplit(path, '.').begin());
  const bool known = v1::TrainingJob::descriptor()->FindFieldByName(field) != nullptr;
  return absl::StrFormat(known ? "'%s' cannot be changed" : "'%s' names nothing", path);
}

}  // namespace

void CheckLabels(const Labels& labels, Violations* v) {
  if (labels.size() > kLabelsMax) {
    v->Field("labels",
             absl::StrFormat("has %d entries; at most %d are allowed", labels.size(), kLabelsMax));
  }
  for (const auto& [key, value] : labels) {
    if (!IsKey(key) || !IsLabel(value)) {
      v->Field("labels",
               absl::StrFormat("'%s: %s' must be at most 63 characters of [a-z0-9_-] each",
                               key.substr(0, kLabelMax), value.substr(0, kLabelMax)));
    }
  }
}

absl::StatusOr<bool> UpdateLabels(const v1::TrainingJob& update,
                                  const google::protobuf::FieldMask& mask, v1::TrainingJob* job) {
  Violations violations("");
  Labels labels = job->labels();
  if (mask.paths().empty()) {
    if (!update.labels().empty()) labels = update.labels();
    // Read, changed and sent back whole.
    if (update.has_spec() &&
        !google::protobuf::util::MessageDifferencer::Equals(update.spec(), job->spec())) {
      violations.Field("training_job.spec", "differs from the job's and cannot be changed");
    }
  }
  for (const std::string& path : mask.paths()) {
    if (path == "*" || path == "labels") {
      labels = update.labels();
    } else if (absl::StartsWith(path, kOne)) {
      const std::string key(absl::StripPrefix(path, kOne));
      // To set one, its own rules say more.
      if (!IsKey(key) && update.labels().count(key) == 0) {
        violations.Field("update_mask", absl::StrFormat("'%s' names nothing", path));
      }
      Take(update.labels(), key, &labels);
    } else {
      violations.Field("update_mask", WhyNot(path));
    }
  }
  violations.UsePrefix("training_job");
  CheckLabels(labels, &violations);
  if (!violations.empty()) return violations.ToStatus();
  const bool changed = !Same(labels, job->labels());
  *job->mutable_labels() = std::move(labels);
  return changed;
}

}  // namespace ringmaster::coordinator
