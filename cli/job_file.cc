#include "cli/job_file.h"

#include <charconv>
#include <iostream>
#include <iterator>
#include <map>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "base/read_file.h"
#include "base/status_macros.h"
#include "cli/nearest_name.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/duration.pb.h"
#include "google/protobuf/message.h"
#include "yaml-cpp/yaml.h"

namespace ringmaster::cli {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::EnumDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

// Where a value stands, for messages: "job.yaml:7: optimizer.lr".
struct Place {
  std::string source;
  int line = 0;  // 1-based; 0 for an override
  std::string path;

  Place Child(const std::string& key, const YAML::Node& node) const {
    const int child_line = line > 0 && node.Mark().line >= 0 ? node.Mark().line + 1 : line;
    return {source, child_line, path.empty() ? key : absl::StrCat(path, ".", key)};
  }
  absl::Status Error(const std::string& what) const {
    return absl::InvalidArgumentError(absl::StrCat(source, line > 0 ? absl::StrCat(":", line) : "",
                                                   ": ", path, path.empty() ? "" : ": ", what));
  }
};

std::vector<std::string> FieldNames(const Descriptor& type) {
  std::vector<std::string> names;
  for (int i = 0; i < type.field_count(); ++i) {
    names.push_back(type.field(i)->name());
  }
  return names;
}

// The values a user may write: lower case, without the unspecified one.
std::vector<std::string> EnumNames(const EnumDescriptor& type) {
  std::vector<std::string> names;
  for (int i = 0; i < type.value_count(); ++i) {
    if (type.value(i)->number() != 0) {
      names.push_back(absl::AsciiStrToLower(type.value(i)->name()));
    }
  }
  return names;
}

// As protobuf wants its strings: no overlong forms, no surrogates, nothing beyond U+10FFFF.
bool IsUtf8(absl::string_view text) {
  while (!text.empty()) {
    const auto lead = static_cast<unsigned char>(text[0]);
    const size_t length = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    if ((lead >= 0x80 && lead < 0xC2) || lead > 0xF4 || text.size() < length) return false;
    uint32_t code = length == 1 ? lead : lead & (0x7F >> length);
    for (size_t i = 1; i < length; ++i) {
      const auto byte = static_cast<unsigned char>(text[i]);
      if ((byte & 0xC0) != 0x80) return false;
      code = code << 6 | (byte & 0x3F);
    }
    if ((length == 3 && code < 0x800) || (length == 4 && code < 0x10000) || code > 0x10FFFF ||
        (code >= 0xD800 && code < 0xE000)) {
      return false;
    }
    text.remove_prefix(length);
  }
  return true;
}

absl::StatusOr<std::string> Scalar(const YAML::Node& node, const Place& place,
                                   const std::string& wanted) {
  if (!node.IsScalar()) {
    return place.Error(absl::StrCat("expected ", wanted, ", found a ",
                                    node.IsSequence() ? "list"
                                    : node.IsMap()    ? "map"
                                                      : "null"));
  }
  if (!IsUtf8(node.Scalar())) return place.Error("is not UTF-8 text");
  return node.Scalar();
}

template <typename T>
absl::StatusOr<T> Integer(const YAML::Node& node, const Place& place) {
  ASSIGN_OR_RETURN(const std::string text, Scalar(node, place, "a whole number"));
  T value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc::result_out_of_range) {
    return place.Error(absl::StrCat(text, " does not fit into ", sizeof(T) * 8, " bits"));
  }
  if (error != std::errc() || end != text.data() + text.size()) {
    return place.Error(
        absl::StrCat("\"", text, "\" is not a whole number", std::is_unsigned_v<T> ? " >= 0" : ""));
  }
  return value;
}

// What a map has set so far: a key that comes twice, or two fields of which only one may be set,
// would otherwise win by their order.
class Seen {
 public:
  absl::Status Add(const std::string& key, const Place& place) {
    if (!keys_.insert(key).second) return place.Error("is set twice");
    return absl::OkStatus();
  }
  absl::Status Add(const FieldDescriptor* field, const Place& place) {
    const auto* oneof = field->real_containing_oneof();
    if (oneof == nullptr) return absl::OkStatus();
    const auto [other, is_first] = oneofs_.emplace(oneof, field->name());
    if (is_first) return absl::OkStatus();
    return place.Error(absl::StrCat("cannot be set beside ", other->second));
  }

 private:
  std::set<std::string> keys_;
  std::map<const google::protobuf::OneofDescriptor*, std::string> oneofs_;
};

absl::Status SetMessage(const YAML::Node& node, const Place& place, Message* message);

absl::Status SetDuration(const YAML::Node& node, const Place& place, Message* message) {
  ASSIGN_OR_RETURN(const std::string text, Scalar(node, place, "a duration"));
  absl::Duration duration;
  if (!absl::ParseDuration(text, &duration) ||
      absl::AbsDuration(duration) == absl::InfiniteDuration()) {
    return place.Error(
        absl::StrCat("\"", text, "\" is not a duration; write 500ms, 30s, 5m or 1.5h"));
  }
  auto* proto = static_cast<google::protobuf::Duration*>(message);
  const int64_t seconds = absl::IDivDuration(duration, absl::Seconds(1), &duration);
  proto->set_seconds(seconds);
  proto->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(duration)));
  return absl::OkStatus();
}

absl::StatusOr<int> EnumNumber(const YAML::Node& node, const Place& place,
                               const EnumDescriptor& type) {
  ASSIGN_OR_RETURN(const std::string text, Scalar(node, place, "a name"));
  const auto* value = type.FindValueByName(absl::AsciiStrToUpper(text));
  if (value == nullptr || value->number() == 0) {
    const std::vector<std::string> names = EnumNames(type);
    return place.Error(absl::StrCat("\"", text, "\" is not one of ", absl::StrJoin(names, ", "),
                                    DidYouMean(absl::AsciiStrToLower(text), names)));
  }
  return value->number();
}

// Sets a singular field, or adds to a repeated one.
absl::Status SetScalar(const YAML::Node& node, const Place& place, const FieldDescriptor* field,
                       Message* message) {
  const Reflection* reflection = message->GetReflection();
  const bool add = field->is_repeated();
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32: {
      ASSIGN_OR_RETURN(const int32_t value, Integer<int32_t>(node, place));
      add ? reflection->AddInt32(message, field, value)
          : reflection->SetInt32(message, field, value);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_INT64: {
      ASSIGN_OR_RETURN(const int64_t value, Integer<int64_t>(node, place));
      add ? reflection->AddInt64(message, field, value)
          : reflection->SetInt64(message, field, value);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_UINT64: {
      ASSIGN_OR_RETURN(const uint64_t value, Integer<uint64_t>(node, place));
      add ? reflection->AddUInt64(message, field, value)
          : reflection->SetUInt64(message, field, value);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_DOUBLE: {
      ASSIGN_OR_RETURN(const std::string text, Scalar(node, place, "a number"));
      double value = 0;
      if (!absl::SimpleAtod(text, &value)) {
        return place.Error(absl::StrCat("\"", text, "\" is not a number"));
      }
      add ? reflection->AddDouble(message, field, value)
          : reflection->SetDouble(message, field, value);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_BOOL: {
      ASSIGN_OR_RETURN(const std::string text, Scalar(node, place, "true or false"));
      if (text != "true" && text != "false") {
        return place.Error(absl::StrCat("\"", text, "\" is neither true nor false"));
      }
      reflection->SetBool(message, field, text == "true");
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_ENUM: {
      ASSIGN_OR_RETURN(const int number, EnumNumber(node, place, *field->enum_type()));
      reflection->SetEnumValue(message, field, number);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_STRING: {
      ASSIGN_OR_RETURN(const std::string text, Scalar(node, place, "text"));
      add ? reflection->AddString(message, field, text)
          : reflection->SetString(message, field, text);
      return absl::OkStatus();
    }
    default:
      return place.Error("this field cannot be set in a job file");
  }
}

absl::Status SetField(const YAML::Node& node, const Place& place, const FieldDescriptor* field,
                      Message* message) {
  const Reflection* reflection = message->GetReflection();
  if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
    Message* child = reflection->MutableMessage(message, field);
    const bool duration = field->message_type() == google::protobuf::Duration::descriptor();
    return duration ? SetDuration(node, place, child) : SetMessage(node, place, child);
  }
  if (!field->is_repeated()) {
    return SetScalar(node, place, field, message);
  }
  if (!node.IsSequence()) {
    return place.Error("expected a list, for example [1, 2]");
  }
  reflection->ClearField(message, field);
  for (size_t i = 0; i < node.size(); ++i) {
    Place item = place.Child("", node[i]);
    item.path = absl::StrCat(place.path, "[", i, "]");
    RETURN_IF_ERROR(SetScalar(node[i], item, field, message));
  }
  return absl::OkStatus();
}

absl::Status SetMessage(const YAML::Node& node, const Place& place, Message* message) {
  if (!node.IsMap()) {
    return place.Error("expected a map of fields");
  }
  Seen seen;
  for (const auto& entry : node) {
    const std::string key = entry.first.as<std::string>();
    const Place child = place.Child(key, entry.first);
    RETURN_IF_ERROR(seen.Add(key, child));
    const FieldDescriptor* field = message->GetDescriptor()->FindFieldByName(key);
    if (field == nullptr) {
      return child.Error(
          absl::StrCat("unknown key", DidYouMean(key, FieldNames(*message->GetDescriptor()))));
    }
    RETURN_IF_ERROR(seen.Add(field, child));
    RETURN_IF_ERROR(SetField(entry.second, child, field, message));
  }
  return absl::OkStatus();
}

absl::Status SetTopLevel(const YAML::Node& root, const Place& place, JobFile* job) {
  if (!root.IsMap()) {
    return place.Error("a job file is a map; it needs at least model, data and steps");
  }
  Seen seen;
  for (const auto& entry : root) {
    const std::string key = entry.first.as<std::string>();
    const Place child = place.Child(key, entry.first);
    RETURN_IF_ERROR(seen.Add(key, child));
    if (key == "name") {
      ASSIGN_OR_RETURN(job->id, Scalar(entry.second, child, "text"));
    } else if (key == "labels") {
      if (!entry.second.IsMap()) {
        return child.Error("expected a map of text to text");
      }
      Seen labels;
      for (const auto& label : entry.second) {
        const std::string label_key = label.first.as<std::string>();
        RETURN_IF_ERROR(labels.Add(label_key, child.Child(label_key, label.first)));
        ASSIGN_OR_RETURN(job->labels[label_key],
                         Scalar(label.second, child.Child(label_key, label.first), "text"));
      }
    } else {
      const FieldDescriptor* field = v1::TrainingJobSpec::descriptor()->FindFieldByName(key);
      if (field == nullptr) {
        std::vector<std::string> known = FieldNames(*v1::TrainingJobSpec::descriptor());
        known.insert(known.end(), {"name", "labels"});
        return child.Error(absl::StrCat("unknown key", DidYouMean(key, known)));
      }
      RETURN_IF_ERROR(seen.Add(field, child));
      RETURN_IF_ERROR(SetField(entry.second, child, field, &job->spec));
    }
  }
  return absl::OkStatus();
}

// "optimizer.lr=3e-4" becomes the map {optimizer: {lr: 3e-4}}, so that it takes the same road as
// the file.
absl::Status ApplyOverride(const std::string& text, JobFile* job) {
  const Place place{"--set", 0, ""};
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0) {
    return place.Error(absl::StrCat("\"", text, "\" is not of the form key.key=value"));
  }
  YAML::Node value;
  try {
    value = YAML::Load(text.substr(equals + 1));
  } catch (const YAML::Exception& error) {
    return place.Error(absl::StrCat(text, ": ", error.msg));
  }
  const std::vector<std::string> keys = absl::StrSplit(text.substr(0, equals), '.');
  for (auto key = keys.rbegin(); key != keys.rend(); ++key) {
    YAML::Node parent(YAML::NodeType::Map);
    parent[*key] = value;
    value.reset(parent);
  }
  return SetTopLevel(value, place, job);
}

}  // namespace

absl::StatusOr<JobFile> ParseJobFile(const std::string& yaml, const std::string& source,
                                     const std::vector<std::string>& overrides) {
  JobFile job;
  try {
    const std::vector<YAML::Node> documents = YAML::LoadAll(yaml);
    if (documents.size() > 1) {
      return absl::InvalidArgumentError(
          absl::StrCat(source, ": holds ", documents.size(), " documents; a job file is one"));
    }
    const YAML::Node root = documents.empty() ? YAML::Node() : documents.front();
    RETURN_IF_ERROR(SetTopLevel(root, {source, 1, ""}, &job));
    for (const std::string& text : overrides) {
      RETURN_IF_ERROR(ApplyOverride(text, &job));
    }
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(source, ":", error.mark.line + 1, ": not valid YAML: ", error.msg));
  }
  return job;
}

absl::StatusOr<JobFile> ReadJobFile(const std::string& path,
                                    const std::vector<std::string>& overrides) {
  if (path == "-") {
    const std::string text(std::istreambuf_iterator<char>(std::cin), {});
    return ParseJobFile(text, "standard input", overrides);
  }
  const absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok()) return absl::InvalidArgumentError(text.status().message());
  return ParseJobFile(*text, path, overrides);
}

}  // namespace ringmaster::cli
