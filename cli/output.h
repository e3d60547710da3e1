#pragma once

#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cli/client.h"
#include "google/protobuf/duration.pb.h"
#include "google/protobuf/message.h"
#include "google/protobuf/timestamp.pb.h"

namespace ringmaster::cli {

absl::StatusOr<OutputFormat> ParseOutputFormat(const std::string& text);

// Left-aligned columns two spaces apart, header in capitals, no trailing blanks.
void PrintTable(std::ostream& out, const std::vector<std::string>& header,
                const std::vector<std::vector<std::string>>& rows);

// The message with its proto field names; kJson and kYaml only. In YAML text that reads as
// something else is quoted, and whole numbers of 64 bits, which JSON has as text, are numbers.
void PrintMessage(std::ostream& out, const google::protobuf::Message& message, OutputFormat format);
// Several messages: a JSON array, or YAML documents.
void PrintMessages(std::ostream& out, const std::vector<const google::protobuf::Message*>& messages,
                   OutputFormat format);

// "3d4h", "2m05s", "41s"; "-" for nothing.
std::string HumanDuration(absl::Duration duration);
std::string Age(const google::protobuf::Timestamp& since, absl::Time now);
absl::Duration FromProto(const google::protobuf::Duration& duration);
absl::Time FromProto(const google::protobuf::Timestamp& time);
// "1.2K", "3.45M": three significant digits.
std::string HumanCount(double count);
// "running" from RUNNING.
std::string LowerEnumName(const google::protobuf::EnumDescriptor* type, int number);
// "running".
std::string StateName(const v1::TrainingJob& job);
// The last segment of a resource name.
std::string ShortName(const std::string& name);

}  // namespace ringmaster::cli
