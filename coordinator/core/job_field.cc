#include "coordinator/core/job_field.h"

#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"
#include "google/protobuf/duration.pb.h"
#include "google/protobuf/timestamp.pb.h"

namespace ringmaster::coordinator {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::EnumValueDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using Path = std::vector<const FieldDescriptor*>;

bool Is(const FieldDescriptor& field, const Descriptor* message) {
  return field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE && field.message_type() == message;
}
bool IsTime(const FieldDescriptor& field) {
  return Is(field, google::protobuf::Timestamp::descriptor());
}
bool IsDuration(const FieldDescriptor& field) {
  return Is(field, google::protobuf::Duration::descriptor());
}

// Empty when some name is unknown, or behind what is no message.
Path Walk(const Descriptor* message, const std::vector<std::string>& names) {
  Path path;
  for (const std::string& name : names) {
    const FieldDescriptor* field = message == nullptr ? nullptr : message->FindFieldByName(name);
    if (field == nullptr) return {};
    path.push_back(field);
    const bool inside = field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE &&
                        !field->is_repeated() && !IsTime(*field) && !IsDuration(*field);
    message = inside ? field->message_type() : nullptr;
  }
  return path;
}

Path WalkJob(const std::vector<std::string>& names) {
  for (const char* around : {"", "status", "spec"}) {
    std::vector<std::string> whole = names;
    if (*around != '\0') whole.insert(whole.begin(), around);
    if (Path path = Walk(v1::TrainingJob::descriptor(), whole); !path.empty()) return path;
  }
  return {};
}

template <typename SecondsAndNanos>
absl::int128 Nanos(const Message& message) {
  const auto& x = static_cast<const SecondsAndNanos&>(message);
  return absl::int128(x.seconds()) * 1'000'000'000 + x.nanos();
}

JobFieldValue Read(const Message& message, const FieldDescriptor& field) {
  const google::protobuf::Reflection& reflection = *message.GetReflection();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return absl::int128(reflection.GetInt32(message, &field));
    case FieldDescriptor::CPPTYPE_INT64:
      return absl::int128(reflection.GetInt64(message, &field));
    case FieldDescriptor::CPPTYPE_UINT32:
      return absl::int128(reflection.GetUInt32(message, &field));
    case FieldDescriptor::CPPTYPE_UINT64:
      return absl::int128(reflection.GetUInt64(message, &field));
    case FieldDescriptor::CPPTYPE_BOOL:
      return absl::int128(reflection.GetBool(message, &field) ? 1 : 0);
    case FieldDescriptor::CPPTYPE_ENUM:
      return absl::int128(reflection.GetEnumValue(message, &field));
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return reflection.GetDouble(message, &field);
    case FieldDescriptor::CPPTYPE_FLOAT:
      return static_cast<double>(reflection.GetFloat(message, &field));
    case FieldDescriptor::CPPTYPE_STRING:
      return reflection.GetString(message, &field);
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return IsTime(field)
                 ? Nanos<google::protobuf::Timestamp>(reflection.GetMessage(message, &field))
                 : Nanos<google::protobuf::Duration>(reflection.GetMessage(message, &field));
  }
  return std::monostate();
}

std::optional<JobFieldValue> ParseEnum(const FieldDescriptor& field, absl::string_view text) {
  const EnumValueDescriptor* value =
      field.enum_type()->FindValueByName(absl::AsciiStrToUpper(text));
  if (value == nullptr) return std::nullopt;
  return absl::int128(value->number());
}

// What a value of the field is called, for people.
std::string Wanted(const FieldDescriptor& field) {
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_BOOL:
      return "true or false";
    case FieldDescriptor::CPPTYPE_ENUM: {
      std::vector<std::string> names;
      for (int i = 0; i < field.enum_type()->value_count(); ++i) {
        names.push_back(field.enum_type()->value(i)->name());
      }
      return absl::StrCat("one of ", absl::StrJoin(names, ", "));
    }
    case FieldDescriptor::CPPTYPE_DOUBLE:
    case FieldDescriptor::CPPTYPE_FLOAT:
      return "a number";
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return IsTime(field) ? "a time like 2026-01-31T08:00:00Z" : "a duration like 1h30m";
    default:
      return "a whole number";
  }
}

std::optional<JobFieldValue> ParseValue(const FieldDescriptor& field, absl::string_view text) {
  double number;
  absl::int128 integer;
  absl::Time time;
  absl::Duration duration;
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING:
      return std::string(text);
    case FieldDescriptor::CPPTYPE_ENUM:
      return ParseEnum(field, text);
    case FieldDescriptor::CPPTYPE_BOOL:
      if (text != "true" && text != "false") return std::nullopt;
      return absl::int128(text == "true" ? 1 : 0);
    case FieldDescriptor::CPPTYPE_DOUBLE:
    case FieldDescriptor::CPPTYPE_FLOAT:
      if (!absl::SimpleAtod(text, &number)) return std::nullopt;
      return number;
    case FieldDescriptor::CPPTYPE_MESSAGE:
      if (IsTime(field)) {
        if (!absl::ParseTime(absl::RFC3339_full, text, &time, nullptr)) return std::nullopt;
        duration = time - absl::UnixEpoch();
      } else if (!absl::ParseDuration(text, &duration)) {
        return std::nullopt;
      }
      return absl::int128(absl::ToInt64Nanoseconds(duration));
    default:
      if (!absl::SimpleAtoi(text, &integer)) return std::nullopt;
      return integer;
  }
}

}  // namespace

absl::StatusOr<JobField> JobField::Find(absl::string_view path) {
  JobField field;
  constexpr absl::string_view kLabels = "labels.";
  if (absl::StartsWith(path, kLabels) && path.size() > kLabels.size()) {
    field.path_ = WalkJob({"labels"});
    field.label_ = std::string(absl::StripPrefix(path, kLabels));
    return field;
  }
  field.path_ = WalkJob(absl::StrSplit(path, '.'));
  if (field.path_.empty()) {
    return absl::NotFoundError(absl::StrCat("a job has no field '", path, "'"));
  }
  const FieldDescriptor& leaf = *field.path_.back();
  if (leaf.is_repeated()) {
    return absl::InvalidArgumentError(absl::StrCat("'", path, "' holds several values"));
  }
  if (leaf.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE && !IsTime(leaf) && !IsDuration(leaf)) {
    return absl::InvalidArgumentError(absl::StrCat("'", path, "' has fields of its own, like '",
                                                   path, ".", leaf.message_type()->field(0)->name(),
                                                   "'; name one"));
  }
  return field;
}

JobFieldValue JobField::Of(const v1::TrainingJob& job) const {
  if (!label_.empty()) {
    const auto found = job.labels().find(label_);
    if (found == job.labels().end()) return std::monostate();
    return found->second;
  }
  const Message* message = &job;
  for (const FieldDescriptor* field : path_) {
    const google::protobuf::Reflection& reflection = *message->GetReflection();
    if (field->has_presence() && !reflection.HasField(*message, field)) return std::monostate();
    if (field == path_.back()) break;
    message = &reflection.GetMessage(*message, field);
  }
  return Read(*message, *path_.back());
}

absl::StatusOr<JobFieldValue> JobField::Parse(absl::string_view text) const {
  if (is_string()) return std::string(text);
  if (std::optional<JobFieldValue> value = ParseValue(*path_.back(), text); value.has_value()) {
    return *std::move(value);
  }
  return absl::InvalidArgumentError(absl::StrCat("'", text, "' is not ", Wanted(*path_.back())));
}

bool JobField::is_string() const {
  return !label_.empty() || path_.back()->cpp_type() == FieldDescriptor::CPPTYPE_STRING;
}

bool JobField::can_be_unset() const { return !label_.empty() || path_.back()->has_presence(); }

bool JobField::ordered() const {
  const auto type = path_.back()->cpp_type();
  return !is_string() && type != FieldDescriptor::CPPTYPE_BOOL &&
         type != FieldDescriptor::CPPTYPE_ENUM;
}

}  // namespace ringmaster::coordinator
