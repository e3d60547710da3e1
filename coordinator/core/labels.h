#pragma once

#include <string>

#include "coordinator/core/violations.h"
#include "google/protobuf/map.h"

// What users write on their jobs.
namespace ringmaster::coordinator {

using Labels = google::protobuf::Map<std::string, std::string>;

bool IsLabelKey(const std::string& text);

// The rules of TrainingJob.labels.
void CheckLabels(const Labels& labels, Violations* violations);

}  // namespace ringmaster::coordinator
