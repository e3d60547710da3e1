#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ringmaster/v1/job.pb.h"

namespace ringmaster::cli {

// A job as a user writes it: the fields of TrainingJobSpec at the top level, beside `name` and
// `labels`.
//
//   name: bible
//   model: {preset: tiny}
//   data: {paths: [/data/bible.txt], sequence_length: 8192}
//   steps: 200
//
// Names are the proto's; enum values are written in lower case; durations as "30s", "5m", "1.5h".
struct JobFile {
  // Empty: the service makes one.
  std::string id;
  std::map<std::string, std::string> labels;
  v1::TrainingJobSpec spec;
};

// Parses YAML text, then applies `overrides` ("optimizer.lr=3e-4", values in YAML), later ones
// last. Everything is checked for form only; the service checks meaning. InvalidArgument names
// `source`, the line, the key and, for an unknown key or enum value, the nearest known one.
absl::StatusOr<JobFile> ParseJobFile(const std::string& yaml, const std::string& source,
                                     const std::vector<std::string>& overrides);

// Reads `path` ("-": standard input) and parses it. InvalidArgument also when it cannot
// be read.
absl::StatusOr<JobFile> ReadJobFile(const std::string& path,
                                    const std::vector<std::string>& overrides);

}  // namespace ringmaster::cli
