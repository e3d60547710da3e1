#include "cli/explain.h"

#include <memory>
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
  return field.is_repeated() ? absl::StrCat("list of ", name) : name;
}

bool IsGroup(const FieldDescriptor& field) {
  return field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE &&
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

absl::StatusOr<const FieldDescriptor*> Find(const Descriptor& root, absl::string_view path) {
  const Descriptor* type = &root;
  const FieldDescriptor* field = nullptr;
  for (const absl::string_view part : absl::StrSplit(path, '.')) {
    if (type == nullptr) {
      return absl::NotFoundError(
          absl::StrCat(path, ": ", field->name(), " has no fields of its own"));
    }
    const std::string name(part);
    field = type->FindFieldByName(name);
    if (field == nullptr) {
      std::vector<std::string> known;
      for (int i = 0; i < type->field_count(); ++i) {
        known.push_back(type->field(i)->name());
      }
      return absl::NotFoundError(
          absl::StrCat(path, ": unknown field \"", name, "\"", DidYouMean(name, known)));
    }
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
