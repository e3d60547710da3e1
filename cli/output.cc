#include "cli/output.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/util/json_util.h"
#include "yaml-cpp/yaml.h"

namespace ringmaster::cli {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;

std::string Json(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  options.preserve_proto_field_names = true;
  std::string json;
  // Cannot fail for our messages: they hold no Any.
  (void)google::protobuf::util::MessageToJsonString(message, &json, options);
  while (!json.empty() && json.back() == '\n') {
    json.pop_back();
  }
  return json;
}

// Whether every reader takes the text for text without quotes too: what begins like this is neither
// a number nor a time.
bool IsPlainText(const std::string& text) {
  static const auto* const kWords =
      new std::set<std::string>{"y", "n", "yes", "no", "on", "off", "true", "false", "null"};
  return !text.empty() && (absl::ascii_isalpha(text[0]) || text[0] == '/') &&
         kWords->count(absl::AsciiStrToLower(text)) == 0;
}

// In JSON whole numbers of 64 bits are text.
bool IsWholeNumber(const FieldDescriptor& field) {
  return field.cpp_type() == FieldDescriptor::CPPTYPE_INT64 ||
         field.cpp_type() == FieldDescriptor::CPPTYPE_UINT64;
}

void EmitScalar(std::string text, bool is_text, YAML::Emitter& out) {
  const size_t e = text.find('e');
  if (is_text && !IsPlainText(text)) {
    out << YAML::DoubleQuoted;
  } else if (!is_text && absl::ascii_isdigit(text.back()) && e != text.npos &&
             !absl::StrContains(text, '.')) {
    // To readers of YAML 1.1 a number with an exponent and without a point is text.
    text.insert(e, ".0");
  }
  out << text;
}

// `node` is a value of `field`, or the message of `type` itself; both are null within maps.
void Emit(const YAML::Node& node, const Descriptor* type, const FieldDescriptor* field,
          YAML::Emitter& out) {
  if (node.IsMap()) {
    out << YAML::BeginMap;
    for (const auto& entry : node) {
      const auto* child = type == nullptr ? nullptr : type->FindFieldByName(entry.first.Scalar());
      out << YAML::Key;
      EmitScalar(entry.first.Scalar(), /*is_text=*/true, out);
      out << YAML::Value;
      Emit(entry.second, child == nullptr || child->is_map() ? nullptr : child->message_type(),
           child, out);
    }
    out << YAML::EndMap;
  } else if (node.IsSequence()) {
    out << YAML::BeginSeq;
    for (const auto& entry : node) Emit(entry, type, field, out);
    out << YAML::EndSeq;
  } else {
    // The parser's mark of what was quoted.
    const bool quoted = node.Tag() == "!";
    EmitScalar(node.Scalar(), quoted && (field == nullptr || !IsWholeNumber(*field)), out);
  }
}

std::string Yaml(const google::protobuf::Message& message) {
  // JSON is YAML; writing it anew gives the block style people expect.
  YAML::Emitter emitter;
  Emit(YAML::Load(Json(message)), message.GetDescriptor(), nullptr, emitter);
  return emitter.c_str();
}

}  // namespace

absl::StatusOr<OutputFormat> ParseOutputFormat(const std::string& text) {
  if (text == "table") return OutputFormat::kTable;
  if (text == "json") return OutputFormat::kJson;
  if (text == "yaml") return OutputFormat::kYaml;
  if (text == "name") return OutputFormat::kName;
  return absl::InvalidArgumentError(
      absl::StrCat("output \"", text, "\" is not one of table, json, yaml, name"));
}

void PrintTable(std::ostream& out, const std::vector<std::string>& header,
                const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  for (const std::string& title : header) {
    widths.push_back(title.size());
  }
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) {
      widths[i] = std::max(widths[i], row[i].size());
    }
  }
  const auto print = [&](const std::vector<std::string>& cells) {
    std::string line;
    for (size_t i = 0; i < cells.size(); ++i) {
      absl::StrAppend(&line, cells[i], std::string(widths[i] - cells[i].size() + 2, ' '));
    }
    absl::StripTrailingAsciiWhitespace(&line);
    out << line << "\n";
  };
  print(header);
  for (const auto& row : rows) {
    print(row);
  }
}

void PrintMessage(std::ostream& out, const google::protobuf::Message& message,
                  OutputFormat format) {
  out << (format == OutputFormat::kYaml ? Yaml(message) : Json(message)) << "\n";
}

void PrintMessages(std::ostream& out, const std::vector<const google::protobuf::Message*>& messages,
                   OutputFormat format) {
  if (format == OutputFormat::kYaml) {
    for (const auto* message : messages) {
      out << "---\n" << Yaml(*message) << "\n";
    }
    return;
  }
  out << "[";
  for (size_t i = 0; i < messages.size(); ++i) {
    out << (i > 0 ? ",\n" : "\n") << Json(*messages[i]);
  }
  out << (messages.empty() ? "]\n" : "\n]\n");
}

std::string HumanDuration(absl::Duration duration) {
  const int64_t seconds = absl::ToInt64Seconds(duration);
  if (seconds < 0) return "-";
  if (seconds < 60) return absl::StrCat(seconds, "s");
  if (seconds < 3600) return absl::StrFormat("%dm%02ds", seconds / 60, seconds % 60);
  if (seconds < 86400) return absl::StrFormat("%dh%02dm", seconds / 3600, seconds / 60 % 60);
  return absl::StrFormat("%dd%02dh", seconds / 86400, seconds / 3600 % 24);
}

absl::Duration FromProto(const google::protobuf::Duration& duration) {
  return absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos());
}

absl::Time FromProto(const google::protobuf::Timestamp& time) {
  return absl::FromUnixSeconds(time.seconds()) + absl::Nanoseconds(time.nanos());
}

std::string Age(const google::protobuf::Timestamp& since, absl::Time now) {
  return HumanDuration(std::max(absl::ZeroDuration(), now - FromProto(since)));
}

std::string HumanCount(double count) {
  static constexpr const char* kUnits[] = {"", "K", "M", "G", "T", "P", "E"};
  size_t unit = 0;
  while (std::abs(count) >= 1000 && unit + 1 < std::size(kUnits)) {
    count /= 1000;
    ++unit;
  }
  return absl::StrFormat("%.3g%s", count, kUnits[unit]);
}

std::string LowerEnumName(const google::protobuf::EnumDescriptor* type, int number) {
  const auto* value = type->FindValueByNumber(number);
  return value == nullptr || number == 0 ? "-" : absl::AsciiStrToLower(value->name());
}

std::string StateName(const v1::TrainingJob& job) {
  return LowerEnumName(v1::TrainingJobStatus::State_descriptor(), job.status().state());
}

std::string ShortName(const std::string& name) { return name.substr(name.rfind('/') + 1); }

}  // namespace ringmaster::cli
