#include "coordinator/core/names.h"

#include <algorithm>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "proto/rpc_status.h"

namespace ringmaster::coordinator {
namespace {

// Project ids are given by users too, but have no shortest length.
bool IsProjectId(absl::string_view id) {
  return !id.empty() && id.size() <= 63 && absl::ascii_islower(id[0]) &&
         std::all_of(id.begin(), id.end(), [](char c) {
           return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '-';
         });
}

bool IsJobPath(const std::vector<std::string>& parts) {
  return parts.size() >= 4 && parts[0] == "projects" && parts[2] == "trainingJobs" &&
         IsProjectId(parts[1]) && IsResourceId(parts[3]);
}

}  // namespace

bool IsResourceId(absl::string_view id) {
  return id.size() >= 4 && IsProjectId(id) && id.back() != '-';
}

bool IsWorkerId(absl::string_view id) {
  return !id.empty() && id.size() <= 63 && std::all_of(id.begin(), id.end(), [](char c) {
    return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-';
  });
}

bool IsQueueId(absl::string_view id) { return IsProjectId(id); }

bool IsUuid(absl::string_view text) {
  if (text.size() != 36) return false;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool dash = i == 8 || i == 13 || i == 18 || i == 23;
    if (dash ? text[i] != '-' : !absl::ascii_isxdigit(text[i])) return false;
  }
  return true;
}

std::string FormatProjectName(absl::string_view project) {
  return absl::StrCat("projects/", project);
}

std::string FormatQueueName(absl::string_view queue) { return absl::StrCat("queues/", queue); }

std::string FormatJobName(absl::string_view project, absl::string_view job) {
  return absl::StrCat("projects/", project, "/trainingJobs/", job);
}

absl::StatusOr<JobName> ParseJobName(absl::string_view field, absl::string_view name) {
  const std::vector<std::string> parts = absl::StrSplit(name, '/');
  if (parts.size() != 4 || !IsJobPath(parts)) {
    return InvalidField(field, absl::StrCat("'", name,
                                            "' is not a job's name; it looks like "
                                            "projects/default/trainingJobs/my-job"));
  }
  return JobName{parts[1], parts[3]};
}

absl::StatusOr<std::string> ParseParent(absl::string_view field, absl::string_view parent,
                                        bool wildcard) {
  if (parent.empty()) return "default";
  if (wildcard && parent == "projects/-") return "-";
  const std::vector<std::string> parts = absl::StrSplit(parent, '/');
  if (parts.size() != 2 || parts[0] != "projects" || !IsProjectId(parts[1])) {
    return InvalidField(
        field,
        absl::StrCat("'", parent, "' is not a project's name; it looks like projects/default",
                     wildcard ? ", or projects/- for all" : ""));
  }
  return parts[1];
}

absl::StatusOr<std::string> ParseQueueName(absl::string_view field, absl::string_view name) {
  absl::string_view id = name;
  if (!absl::ConsumePrefix(&id, "queues/") || !IsQueueId(id)) {
    return InvalidField(
        field, absl::StrCat("'", name, "' is not a queue's name; it looks like queues/default"));
  }
  return std::string(id);
}

absl::StatusOr<std::string> ParseCheckpointName(absl::string_view field, absl::string_view name) {
  const std::vector<std::string> parts = absl::StrSplit(name, '/');
  if (parts.size() != 6 || !IsJobPath(parts) || parts[4] != "checkpoints" || parts[5].empty()) {
    return InvalidField(field,
                        absl::StrCat("'", name,
                                     "' is not a checkpoint's name; it looks like "
                                     "projects/default/trainingJobs/my-job/checkpoints/step-500"));
  }
  return FormatJobName(parts[1], parts[3]);
}

}  // namespace ringmaster::coordinator
