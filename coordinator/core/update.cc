#include "coordinator/core/update.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "coordinator/core/labels.h"
#include "coordinator/core/queues.h"
#include "coordinator/core/spec.h"
#include "coordinator/core/violations.h"
#include "google/protobuf/util/message_differencer.h"

namespace ringmaster::coordinator {
namespace {

constexpr absl::string_view kOneLabel = "labels.";

// What may be changed.
struct Changeable {
  Labels labels;
  int32_t priority;
};

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

// Read, changed and sent back whole.
void TakeSpec(const v1::TrainingJob& update, const v1::TrainingJob& job, Changeable* to,
              Violations* v) {
  if (!update.has_spec()) return;
  to->priority = update.spec().priority();
  v1::TrainingJobSpec kept = job.spec();
  kept.set_priority(to->priority);
  if (!google::protobuf::util::MessageDifferencer::Equals(update.spec(), kept)) {
    v->Field("training_job.spec", "differs from the job's in what cannot be changed");
  }
}

void TakePath(const v1::TrainingJob& update, const std::string& path, const v1::TrainingJob& job,
              Changeable* to, Violations* v) {
  const bool all = path == "*";
  if (all) TakeSpec(update, job, to, v);
  if (all || path == "labels") to->labels = update.labels();
  if (path == "spec.priority") to->priority = update.spec().priority();
  if (all || path == "labels" || path == "spec.priority") return;
  if (!absl::StartsWith(path, kOneLabel)) return v->Field("update_mask", WhyNot(path));
  const std::string key(absl::StripPrefix(path, kOneLabel));
  // To set one, its own rules say more.
  if (!IsLabelKey(key) && update.labels().count(key) == 0) {
    v->Field("update_mask", absl::StrFormat("'%s' names nothing", path));
  }
  Take(update.labels(), key, &to->labels);
}

}  // namespace

absl::StatusOr<bool> ApplyUpdate(const v1::TrainingJob& update,
                                 const google::protobuf::FieldMask& mask, const v1::Queue& queue,
                                 v1::TrainingJob* job) {
  Violations violations("");
  Changeable after = {job->labels(), job->spec().priority()};
  if (mask.paths().empty()) {
    if (!update.labels().empty()) after.labels = update.labels();
    TakeSpec(update, *job, &after, &violations);
  }
  for (const std::string& path : mask.paths()) TakePath(update, path, *job, &after, &violations);
  violations.UsePrefix("training_job");
  CheckLabels(after.labels, &violations);
  violations.UsePrefix("training_job.spec");
  CheckPriority("priority", after.priority, &violations);
  if (after.priority != job->spec().priority()) CheckCeiling(queue, after.priority, &violations);
  if (!violations.empty()) return violations.ToStatus();
  const bool changed =
      !Same(after.labels, job->labels()) || after.priority != job->spec().priority();
  *job->mutable_labels() = std::move(after.labels);
  job->mutable_spec()->set_priority(after.priority);
  return changed;
}

}  // namespace ringmaster::coordinator
