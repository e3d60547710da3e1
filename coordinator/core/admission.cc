#include "coordinator/core/admission.h"

#include <algorithm>
#include <iterator>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "base/status_macros.h"
#include "coordinator/core/labels.h"
#include "coordinator/core/lifecycle.h"
#include "coordinator/core/names.h"
#include "coordinator/core/queues.h"
#include "coordinator/core/spec.h"
#include "coordinator/core/violations.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/text_format.h"

namespace ringmaster::coordinator {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

// Changes that no checkpoint bears: tensors' shapes, and what is as much a part of trained
// parameters, which tokens a head sees.
constexpr absl::string_view kKept[] = {
    "model.",
    "attention.offset_mode:", "attention.block_sparse.kind:", "attention.block_sparse.per_head:"};
// Nor, of a mask that is drawn: another seed, or blocks of another size, draw another one.
constexpr absl::string_view kKeptOfDrawn[] = {"attention.block_sparse.seed:",
                                              "attention.block_sparse.block_size:"};
// Of the uid, in the default directory.
constexpr size_t kUidDigits = 8;

// A field's value as text; of a message, in one line.
std::string ValueText(const Message& message, const FieldDescriptor& field) {
  google::protobuf::TextFormat::Printer printer;
  printer.SetSingleLineMode(true);
  const Reflection& reflection = *message.GetReflection();
  if (!field.is_repeated()) {
    if (field.has_presence() && !reflection.HasField(message, &field)) return "unset";
    std::string text;
    printer.PrintFieldValueToString(message, &field, -1, &text);
    return text;
  }
  std::string text = "[";
  for (int i = 0; i < reflection.FieldSize(message, &field); ++i) {
    std::string element;
    printer.PrintFieldValueToString(message, &field, i, &element);
    absl::StrAppend(&text, i == 0 ? "" : ", ", element);
  }
  return text + "]";
}

void AppendChanges(const Message& before, const Message& now, const std::string& prefix,
                   std::vector<std::string>* changes) {
  for (int i = 0; i < now.GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor& field = *now.GetDescriptor()->field(i);
    const std::string path = prefix + field.name();
    if (field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE && !field.is_repeated() &&
        field.message_type()->file() == v1::TrainingJobSpec::descriptor()->file()) {
      AppendChanges(before.GetReflection()->GetMessage(before, &field),
                    now.GetReflection()->GetMessage(now, &field), path + ".", changes);
      continue;
    }
    const std::string old_text = ValueText(before, field);
    const std::string new_text = ValueText(now, field);
    if (old_text != new_text) {
      changes->push_back(absl::StrCat(path, ": ", old_text, " -> ", new_text));
    }
  }
}

void CheckStart(const v1::TrainingJobSpec& spec,
                const std::optional<absl::StatusOr<ManifestFile>>& manifest, Violations* v) {
  if (spec.start_from_case() == v1::TrainingJobSpec::START_FROM_NOT_SET) return;
  const bool resumes = spec.start_from_case() == v1::TrainingJobSpec::kResumeFrom;
  const char* field = resumes ? "resume_from" : "init_from";
  if (!manifest.has_value() || !manifest->ok()) {
    v->Field(field, manifest.has_value() ? manifest->status().message()
                                         : absl::string_view("its manifest.json was not read"));
    return;
  }
  const ManifestFile& file = **manifest;
  if (resumes && file.checkpoint.step() >= spec.steps() && spec.steps() > 0) {
    v->Field("steps", absl::StrFormat("is %d, but the checkpoint holds %d steps already; it must "
                                      "be larger",
                                      spec.steps(), file.checkpoint.step()));
  }
  // Workers write none at step 0: such a checkpoint was made from weights.
  if (resumes && file.checkpoint.step() == 0) {
    v->Field(field, "holds parameters alone, without a state to go on from; use init_from");
  }
  if (!file.spec.has_value()) return;
  v1::TrainingJobSpec before = *file.spec;
  before.mutable_model()->set_preset(spec.model().preset());
  const auto drawn = [](const v1::TrainingJobSpec& of) {
    return of.attention().block_sparse().kind() == v1::BlockSparseSpec::RANDOM;
  };
  for (const std::string& change : SpecChanges(before, spec)) {
    const auto is_one = [&](absl::string_view kept) { return absl::StartsWith(change, kept); };
    if (std::any_of(std::begin(kKept), std::end(kKept), is_one) ||
        (drawn(before) && drawn(spec) &&
         std::any_of(std::begin(kKeptOfDrawn), std::end(kKeptOfDrawn), is_one))) {
      const size_t colon = change.find(':');
      v->Field(change.substr(0, colon), absl::StrCat("differs from the checkpoint's model (",
                                                     change.substr(colon + 2), ")"));
    }
  }
}

// Two jobs would mix their step records and logs, and sweep each other's temporary files away.
void CheckDirectoryIsFree(const State& state, const v1::TrainingJob& asked, Violations* v) {
  for (const auto& [name, job] : state.jobs) {
    if (name != asked.name() && job->spec().directory() == asked.spec().directory() &&
        !IsTerminal(job->status().state())) {
      v->Field("directory", absl::StrCat("is that of ", name, ", which has not ended"));
      return;
    }
  }
}

}  // namespace

std::vector<std::string> SpecChanges(const v1::TrainingJobSpec& before,
                                     const v1::TrainingJobSpec& now) {
  v1::TrainingJobSpec old_spec = before;
  v1::TrainingJobSpec new_spec = now;
  for (v1::TrainingJobSpec* spec : {&old_spec, &new_spec}) {
    spec->clear_directory();
    spec->clear_start_from();
    spec->clear_resources();
    // How soon it runs, not what.
    spec->clear_priority();
    spec->clear_queue();
  }
  // Undecided until the job is placed.
  if (new_spec.precision() == v1::PRECISION_UNSPECIFIED) old_spec.clear_precision();
  std::vector<std::string> changes;
  AppendChanges(old_spec, new_spec, "", &changes);
  return changes;
}

absl::StatusOr<store::JobRecord> Admit(
    const State& state, const v1::CreateTrainingJobRequest& request, const std::string& project,
    const std::string& id, const std::string& uid,
    const std::optional<absl::StatusOr<ManifestFile>>& manifest) {
  Violations violations("");
  if (!request.request_id().empty() && !IsUuid(request.request_id())) {
    violations.Field("request_id", absl::StrCat("'", request.request_id(), "' is not a UUID"));
  }
  if (!IsResourceId(id) || id == kImportedJobId) {
    violations.Field("training_job_id",
                     absl::StrCat("'", id,
                                  "' must be 4 to 63 characters [a-z][a-z0-9-]*[a-z0-9], "
                                  "and not '",
                                  kImportedJobId, "'"));
  }
  store::JobRecord record;
  v1::TrainingJob* job = record.mutable_job();
  job->set_name(FormatJobName(project, id));
  job->set_uid(uid);
  *job->mutable_labels() = request.training_job().labels();
  *job->mutable_spec() = request.training_job().spec();
  job->mutable_status()->set_state(v1::TrainingJobStatus::QUEUED);
  violations.UsePrefix("training_job");
  CheckLabels(job->labels(), &violations);
  if (!request.has_training_job() || !request.training_job().has_spec()) {
    violations.Field("spec", "is required");
    return violations.ToStatus();
  }
  violations.UsePrefix("training_job.spec");
  v1::TrainingJobSpec* spec = job->mutable_spec();
  const bool given = !spec->directory().empty();
  if (!given && state.options.shared_directory.empty()) {
    violations.Field("directory", "is required: the coordinator runs without --shared-dir");
  } else if (!given) {
    spec->set_directory(absl::StrCat(state.options.shared_directory, "/", project, "/", id, "-",
                                     uid.substr(0, kUidDigits)));
  }
  ResolveSpec(spec, &violations);
  if (IsQueueId(spec->queue())) {
    ASSIGN_OR_RETURN(const ClusterQueue* queue, OpenQueue(state, spec->queue(), project));
    CheckCeiling(queue->record.queue(), spec->priority(), &violations);
  }
  // One of its own has the job's uid in its name; looking at every job for each new one costs.
  if (given) CheckDirectoryIsFree(state, *job, &violations);
  if (violations.empty()) CheckStart(*spec, manifest, &violations);
  if (!violations.empty()) return violations.ToStatus();
  if (spec->start_from_case() != v1::TrainingJobSpec::START_FROM_NOT_SET) {
    *record.mutable_start() = (*manifest)->checkpoint;
    const bool resumes = spec->start_from_case() == v1::TrainingJobSpec::kResumeFrom;
    if ((*manifest)->spec.has_value()) {
      for (std::string& change : SpecChanges(*(*manifest)->spec, *spec)) {
        // Parameters alone know no optimizer, data or schedule.
        if (resumes || absl::StartsWith(change, "attention.")) {
          job->mutable_status()->add_resume_overrides(std::move(change));
        }
      }
    }
  }
  return record;
}

}  // namespace ringmaster::coordinator
