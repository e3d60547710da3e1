#include "coordinator/records/step_line.h"

#include <string>

#include "google/protobuf/util/json_util.h"

namespace ringmaster::coordinator {

bool IsStepLineOf(absl::string_view line, absl::string_view training_job_uid) {
  if (line.size() <= 2 || line.front() != '{' || line.back() != '}') return false;
  constexpr absl::string_view kName = "\"training_job_uid\":\"";
  const size_t at = line.find(kName);
  if (at == absl::string_view::npos) return true;
  const absl::string_view rest = line.substr(at + kName.size());
  return rest.substr(0, rest.find('"')) == training_job_uid;
}

std::optional<v1::StepRecord> ParseStepLine(absl::string_view line) {
  google::protobuf::util::JsonParseOptions options;
  options.ignore_unknown_fields = true;
  v1::StepRecord record;
  if (!google::protobuf::util::JsonStringToMessage(std::string(line), &record, options).ok()) {
    return std::nullopt;
  }
  return record;
}

}  // namespace ringmaster::coordinator
