#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace ringmaster::coordinator {

// Resource names: "projects/{project}/trainingJobs/{job}[/checkpoints/{checkpoint}]",
// "workers/{id}", "queues/{id}".

// The parent of imported checkpoints is not a job; no job may have its id.
inline constexpr char kImportedJobId[] = "imported";

// The queue that is always there.
inline constexpr char kDefaultQueue[] = "default";

// 4 to 63 characters, [a-z][a-z0-9-]*[a-z0-9].
bool IsResourceId(absl::string_view id);
// 1 to 63 characters of [A-Za-z0-9._-].
bool IsWorkerId(absl::string_view id);
// 1 to 63 characters, [a-z][a-z0-9-]*.
bool IsQueueId(absl::string_view id);
// What is wrong with one that is none, after its name.
inline constexpr char kQueueIdRule[] = "must be 1 to 63 characters [a-z][a-z0-9-]*";
// 8-4-4-4-12 hexadecimal digits.
bool IsUuid(absl::string_view text);

struct JobName {
  std::string project;
  std::string job;
};

std::string FormatProjectName(absl::string_view project);
std::string FormatQueueName(absl::string_view queue);
std::string FormatJobName(absl::string_view project, absl::string_view job);
// InvalidArgument naming `field`.
absl::StatusOr<JobName> ParseJobName(absl::string_view field, absl::string_view name);
// The project of "projects/{project}"; empty means "default". With `wildcard`, "projects/-" gives
// "-".
absl::StatusOr<std::string> ParseParent(absl::string_view field, absl::string_view parent,
                                        bool wildcard);
// The id of "queues/{id}".
absl::StatusOr<std::string> ParseQueueName(absl::string_view field, absl::string_view name);
// The job's name within a checkpoint's name.
absl::StatusOr<std::string> ParseCheckpointName(absl::string_view field, absl::string_view name);

}  // namespace ringmaster::coordinator
