#include "cli/explain.h"

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/status_macros.h"
#include "cli/commands.h"
#include "cli/nearest_name.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/descriptor.pb.h"

namespace ringmaster::cli {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::DescriptorPool;
using google::protobuf::FieldDescriptor;

std::string Comment(const FieldDescriptor& field) {
  google::protobuf::SourceLocation location;
  if (!field.GetSourceLocation(&location)) {
    return "";
  }
  std::string text = location.leading_comments;
  absl::StripAsciiWhitespace(&text);
  std::vector<std::string> lines = absl::StrSplit(text, '\n');
  for (std::string& line : lines) {
    absl::StripAsciiWhitespace(&line);
  }
  return absl::StrJoin(lines, "\n");
}

std::string TypeName(const FieldDescriptor& field) {
  std::string name = field.cpp_type_name();
  if (field.cpp_type() == FieldDescriptor::CPPTYPE_ENUM) {
    std::vector<std::string> values;
    for (int i = 0; i < field.enum_type()->value_count(); ++i) {
      if (field.enum_type()->value(i)->number() != 0) {
        values.push_back(absl::AsciiStrToLower(field.enum_type()->value(i)->name()));
      }
    }
    name = absl::StrCat("one of ", absl::StrJoin(values, ", "));
  } else if (field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
    name = field.message_type()->full_name() == "google.protobuf.Duration"
               ? "duration, for example 30s"
               : "group";
  }
  if (field.is_map()) return "map of text to text";
  return field.is_repeated() ? absl::StrCat("list of ", name) : name;
}

bool IsGroup(const FieldDescriptor& field) {
  return !field.is_map() && field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE &&
         field.message_type()->full_name() != "google.protobuf.Duration";
}

// The first sentence or line, for lists.
std::string Summary(const FieldDescriptor& field) {
  const std::string comment = Comment(field);
  return comment.substr(0, comment.find('\n'));
}

std::string ListFields(const Descriptor& type) {
  size_t width = 0;
  for (int i = 0; i < type.field_count(); ++i) {
    width = std::max(width, type.field(i)->name().size());
  }
  std::string text = "Fields:\n";
  for (int i = 0; i < type.field_count(); ++i) {
    const FieldDescriptor& field = *type.field(i);
    absl::StrAppend(&text, "  ", field.name(), std::string(width - field.name().size() + 2, ' '),
                    IsGroup(field) ? "(group) " : "", Summary(field), "\n");
  }
  return text;
}

// The keys that a job file has beside the fields of TrainingJobSpec, and where the API has them.
constexpr std::pair<const char*, const char*> kJobKeys[] = {
    {"name", "ringmaster.v1.CreateTrainingJobRequest.training_job_id"},
    {"labels", "ringmaster.v1.TrainingJob.labels"},
};

// What can be written in a group, or with `top` at the top of a job file.
std::map<std::string, const FieldDescriptor*> FieldsOf(const Descriptor& type, bool top) {
  std::map<std::string, const FieldDescriptor*> fields;
  for (int i = 0; i < type.field_count(); ++i) {
    fields[type.field(i)->name()] = type.field(i);
  }
  for (const auto& [key, field] : kJobKeys) {
    if (top) fields[key] = type.file()->pool()->FindFieldByName(field);
  }
  return fields;
}

absl::StatusOr<const FieldDescriptor*> Find(const Descriptor& root, absl::string_view path) {
  const Descriptor* type = &root;
  const FieldDescriptor* field = nullptr;
  std::string name;
  for (const absl::string_view part : absl::StrSplit(path, '.')) {
    if (type == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": ", name, " has no fields of its own"));
    }
    name = std::string(part);
    const auto fields = FieldsOf(*type, type == &root);
    const auto found = fields.find(name);
    if (found == fields.end()) {
      std::vector<std::string> known;
      for (const auto& entry : fields) known.push_back(entry.first);
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": unknown field \"", name, "\"", DidYouMean(name, known)));
    }
    field = found->second;
    type = IsGroup(*field) ? field->message_type() : nullptr;
  }
  return field;
}

}  // namespace

absl::StatusOr<std::string> ExplainField(absl::string_view path) {
  google::protobuf::FileDescriptorSet set;
  if (!set.ParseFromArray(ApiDescriptors().data(), static_cast<int>(ApiDescriptors().size()))) {
    return absl::InternalError("the embedded API description is damaged");
  }
  DescriptorPool pool;
  for (const auto& file : set.file()) {
    pool.BuildFile(file);
  }
  const Descriptor* root = pool.FindMessageTypeByName("ringmaster.v1.TrainingJobSpec");
  if (root == nullptr) {
    return absl::InternalError("the embedded API description lacks TrainingJobSpec");
  }
  if (path.empty()) {
    return absl::StrCat("A job file. `name` and `labels` stand beside these fields.\n\n",
                        ListFields(*root));
  }
  ASSIGN_OR_RETURN(const FieldDescriptor* field, Find(*root, path));
  std::string text = absl::StrCat(path, " (", TypeName(*field), ")\n\n", Comment(*field), "\n");
  if (IsGroup(*field)) {
    absl::StrAppend(&text, "\n", ListFields(*field->message_type()));
  }
  return text;
}

void AddExplainCommand(CLI::App& app, CommandContext& context) {
  auto field = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("explain", "What a field of a job file means");
  command->add_option("FIELD", *field, "For example optimizer.lr; nothing: the top level");
  command->callback([&context, field] {
    context.RunLocal([&]() -> absl::StatusOr<int> {
      ASSIGN_OR_RETURN(const std::string text, ExplainField(*field));
      *context.out << text;
      return kExitOk;
    });
  });
}

}  // namespace ringmaster::cli
