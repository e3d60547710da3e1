#include "coordinator/core/spec.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "coordinator/core/names.h"
#include "coordinator/core/times.h"

namespace ringmaster::coordinator {
namespace {

constexpr int64_t kStepsMax = 1'000'000'000;
constexpr int64_t kRanksMax = 1024;
// Of a google.protobuf.Duration: about 10,000 years.
constexpr int64_t kSecondsMax = 315'576'000'000;
constexpr int64_t kThreadsMax = 1024;
// Of Linux. Specs are stored, listed and shown: what no worker could open is not kept.
constexpr size_t kPathBytesMax = 4096;
constexpr int kDataPathsMax = 1024;
constexpr int64_t kSequencesMax = 1 << 30;

void Within(absl::string_view field, int64_t value, int64_t low, int64_t high, Violations* v) {
  if (value < low || value > high) {
    v->Field(field, absl::StrFormat("is %d; it must be %d to %d", value, low, high));
  }
}

// `value` in [low, high), or (low, high) when `open`. NaN is in no range.
void Real(absl::string_view field, double value, double low, double high, bool open,
          Violations* v) {
  const bool inside = (open ? value > low : value >= low) && value < high;
  if (!inside) {
    v->Field(field, absl::StrCat("is ", value, "; it must be ", open ? "above " : "at least ", low,
                                 std::isfinite(high) ? absl::StrCat(" and below ", high)
                                                     : std::string(" and finite")));
  }
}

void Interval(absl::string_view field, int64_t value, Violations* v) {
  if (value < -1) {
    v->Field(field, absl::StrFormat("is %d; it must be at least 1, or -1 for never", value));
  }
}

// False when it is too long to say more of it.
bool PathLength(absl::string_view field, absl::string_view path, Violations* v) {
  if (path.size() <= kPathBytesMax) return true;
  v->Field(field, absl::StrCat("has ", path.size(), " bytes; a path has at most ", kPathBytesMax));
  return false;
}

void ResolveData(v1::DataSpec* data, Violations* v) {
  if (data->paths().empty()) v->Field("data.paths", "is required");
  if (data->paths_size() > kDataPathsMax) {
    v->Field("data.paths", absl::StrCat("are ", data->paths_size(), "; there may be ",
                                        kDataPathsMax, ", each of them a glob or directory"));
  }
  for (int i = 0; i < std::min(data->paths_size(), kDataPathsMax); ++i) {
    if (!PathLength(absl::StrFormat("data.paths[%d]", i), data->paths(i), v)) continue;
    if (!absl::StartsWith(data->paths(i), "/")) {
      v->Field(absl::StrFormat("data.paths[%d]", i),
               absl::StrCat("'", data->paths(i),
                            "' must be an absolute path or glob, as the "
                            "workers see it"));
    }
  }
  if (data->sequence_length() == 0) {
    v->Field("data.sequence_length", "is required");
  } else if (data->sequence_length() < 1) {
    v->Shape("data.sequence_length", data->sequence_length(), 0, {1}, "sequence_length >= 1");
  }
  if (!data->has_validation_fraction()) data->set_validation_fraction(0.05);
  const double fraction = data->validation_fraction();
  if (!(fraction >= 0 && fraction <= 0.5)) {
    v->Field("data.validation_fraction", absl::StrCat("is ", fraction, "; it must be 0 to 0.5"));
  }
}

void ResolveOptimizer(v1::OptimizerSpec* optimizer, Violations* v) {
  constexpr double kInfinite = std::numeric_limits<double>::infinity();
  if (!optimizer->has_lr()) optimizer->set_lr(6e-4);
  if (!optimizer->has_beta1()) optimizer->set_beta1(0.9);
  if (!optimizer->has_beta2()) optimizer->set_beta2(0.98);
  if (!optimizer->has_epsilon()) optimizer->set_epsilon(1e-8);
  if (!optimizer->has_weight_decay()) optimizer->set_weight_decay(0.01);
  if (!optimizer->has_clip_norm()) optimizer->set_clip_norm(2);
  Real("optimizer.lr", optimizer->lr(), 0, kInfinite, true, v);
  Real("optimizer.beta1", optimizer->beta1(), 0, 1, false, v);
  Real("optimizer.beta2", optimizer->beta2(), 0, 1, false, v);
  Real("optimizer.epsilon", optimizer->epsilon(), 0, kInfinite, true, v);
  Real("optimizer.weight_decay", optimizer->weight_decay(), 0, kInfinite, false, v);
  Real("optimizer.clip_norm", optimizer->clip_norm(), 0, kInfinite, false, v);
}

void ResolveSchedule(v1::ScheduleSpec* schedule, Violations* v) {
  if (!schedule->has_warmup_steps()) schedule->set_warmup_steps(100);
  if (schedule->decay() == v1::DECAY_UNSPECIFIED) schedule->set_decay(v1::COSINE);
  if (!schedule->has_final_lr_ratio()) schedule->set_final_lr_ratio(0.1);
  if (!schedule->has_power()) schedule->set_power(1);
  Within("schedule.warmup_steps", schedule->warmup_steps(), 0, kStepsMax, v);
  if (!v1::Decay_IsValid(schedule->decay())) {
    v->Field("schedule.decay", absl::StrCat("has the unknown value ", schedule->decay()));
  }
  const double ratio = schedule->final_lr_ratio();
  if (!(ratio >= 0 && ratio <= 1)) {
    v->Field("schedule.final_lr_ratio", absl::StrCat("is ", ratio, "; it must be 0 to 1"));
  }
  Real("schedule.power", schedule->power(), 0, std::numeric_limits<double>::infinity(), true, v);
}

void ResolveBatch(v1::TrainingJobSpec* spec, Violations* v) {
  v1::ParallelSpec* parallel = spec->mutable_parallel();
  if (parallel->ring_size() == 0) parallel->set_ring_size(1);
  if (parallel->replicas() == 0) parallel->set_replicas(1);
  Within("parallel.ring_size", parallel->ring_size(), 1, kRanksMax, v);
  Within("parallel.replicas", parallel->replicas(), 1, kRanksMax, v);

  v1::BatchSpec* batch = spec->mutable_batch();
  if (batch->micro_sequences() == 0) batch->set_micro_sequences(1);
  Within("batch.micro_sequences", batch->micro_sequences(), 1, kSequencesMax, v);
  if (parallel->replicas() < 1 || batch->micro_sequences() < 1 ||
      batch->micro_sequences() > kSequencesMax) {
    return;
  }
  const int64_t multiple = batch->micro_sequences() * parallel->replicas();
  if (batch->global_sequences() == 0) batch->set_global_sequences(multiple);
  const int64_t given = batch->global_sequences();
  if (given < 1) {
    v->Shape("batch.global_sequences", given, multiple, {multiple},
             "global_sequences % (micro_sequences x replicas) == 0");
    return;
  }
  v->Multiple("batch.global_sequences", given, multiple,
              "global_sequences % (micro_sequences x replicas) == 0");
  const int64_t tokens = spec->data().sequence_length();
  if (tokens >= 1 && given > std::numeric_limits<int64_t>::max() / tokens) {
    v->Shape("batch.global_sequences", given, 0, {std::numeric_limits<int64_t>::max() / tokens},
             "global_sequences x sequence_length < 2^63");
  }
}

void PositiveDuration(absl::string_view field, const google::protobuf::Duration& duration,
                      Violations* v) {
  const bool sane = duration.nanos() >= 0 && duration.nanos() < 1'000'000'000 &&
                    duration.seconds() >= 0 && duration.seconds() <= kSecondsMax;
  if (!sane || FromProto(duration) <= absl::ZeroDuration()) {
    v->Field(field, absl::StrCat("is ", duration.seconds(), " s ", duration.nanos(),
                                 " ns; it must be longer than 0 and at most ", kSecondsMax, " s"));
  }
}

void ResolveRecovery(v1::RecoverySpec* recovery, Violations* v) {
  if (recovery->on_loss() == v1::ON_LOSS_UNSPECIFIED) recovery->set_on_loss(v1::SAME_SIZE);
  if (!recovery->has_rejoin_timeout()) recovery->mutable_rejoin_timeout()->set_seconds(600);
  if (recovery->episodes_max() == 0) recovery->set_episodes_max(100);
  if (!recovery->has_hop_deadline()) recovery->mutable_hop_deadline()->set_seconds(30);
  if (!recovery->has_abort_deadline()) recovery->mutable_abort_deadline()->set_seconds(5);
  if (!v1::OnLoss_IsValid(recovery->on_loss())) {
    v->Field("recovery.on_loss", absl::StrCat("has the unknown value ", recovery->on_loss()));
  }
  Within("recovery.episodes_max", recovery->episodes_max(), 1, 1'000'000, v);
  PositiveDuration("recovery.rejoin_timeout", recovery->rejoin_timeout(), v);
  PositiveDuration("recovery.hop_deadline", recovery->hop_deadline(), v);
  PositiveDuration("recovery.abort_deadline", recovery->abort_deadline(), v);
}

void ResolveIntervals(v1::TrainingJobSpec* spec, Violations* v) {
  v1::ValidationSpec* validation = spec->mutable_validation();
  if (validation->interval_steps() == 0) validation->set_interval_steps(100);
  // Nothing is held out.
  if (spec->data().validation_fraction() == 0) validation->set_interval_steps(-1);
  if (validation->sequences() == 0) validation->set_sequences(4);
  Interval("validation.interval_steps", validation->interval_steps(), v);
  Within("validation.sequences", validation->sequences(), 1, 1'000'000, v);

  v1::CheckpointSpec* checkpoint = spec->mutable_checkpoint();
  if (checkpoint->interval_steps() == 0) checkpoint->set_interval_steps(500);
  if (checkpoint->keep_last() == 0) checkpoint->set_keep_last(3);
  Interval("checkpoint.interval_steps", checkpoint->interval_steps(), v);
  Within("checkpoint.keep_last", checkpoint->keep_last(), 1, 10'000, v);
}

void ResolveResources(v1::TrainingJobSpec* spec, Violations* v) {
  v1::ResourceSpec* resources = spec->mutable_resources();
  if (resources->threads() == 0) resources->set_threads(1);
  Within("resources.threads", resources->threads(), 1, kThreadsMax, v);
  if (!v1::Device_IsValid(resources->device())) {
    v->Field("resources.device", absl::StrCat("has the unknown value ", resources->device()));
  }
  if (!v1::Precision_IsValid(spec->precision())) {
    v->Field("precision", absl::StrCat("has the unknown value ", spec->precision()));
  }
  if (resources->device() != v1::DEVICE_UNSPECIFIED) FixDevice(resources->device(), spec);
}

void ResolveDirectory(v1::TrainingJobSpec* spec, Violations* v) {
  if (!PathLength("directory", spec->directory(), v)) return;
  // In "/" no file's path would begin with the directory and a slash.
  const bool below_root = spec->directory().find_first_not_of('/') != std::string::npos;
  if (!spec->directory().empty() && !(below_root && IsCleanAbsolutePath(spec->directory()))) {
    v->Field("directory",
             absl::StrCat("'", absl::CHexEscape(spec->directory()),
                          "' must be an absolute path below /, without . and .. parts and control "
                          "characters"));
  } else if (!spec->directory().empty()) {
    // Paths are compared as text.
    const std::vector<absl::string_view> parts =
        absl::StrSplit(spec->directory(), '/', absl::SkipEmpty());
    spec->set_directory(absl::StrCat("/", absl::StrJoin(parts, "/")));
  }
}

void CheckStart(const v1::TrainingJobSpec& spec, Violations* v) {
  if (spec.start_from_case() == v1::TrainingJobSpec::START_FROM_NOT_SET) return;
  const bool resumes = spec.start_from_case() == v1::TrainingJobSpec::kResumeFrom;
  const std::string& start = resumes ? spec.resume_from() : spec.init_from();
  const char* const field = resumes ? "resume_from" : "init_from";
  if (PathLength(field, start, v) && !IsCleanAbsolutePath(start)) {
    v->Field(field, absl::StrCat("'", absl::CHexEscape(start),
                                 "' must be the absolute path of a checkpoint"));
  }
}

}  // namespace

bool IsCleanAbsolutePath(const std::string& path) {
  if (!absl::StartsWith(path, "/")) return false;
  // No file system call takes a NUL, and no log line a line feed.
  if (std::any_of(path.begin(), path.end(), [](char c) { return absl::ascii_iscntrl(c); })) {
    return false;
  }
  for (const absl::string_view part : absl::StrSplit(path, '/')) {
    if (part == "." || part == "..") return false;
  }
  return true;
}

void CheckPriority(absl::string_view field, int32_t priority, Violations* v) {
  Within(field, priority, -kPriorityMax, kPriorityMax, v);
}

void FixDevice(v1::Device device, v1::TrainingJobSpec* spec) {
  spec->mutable_resources()->set_device(device);
  if (spec->precision() == v1::PRECISION_UNSPECIFIED) {
    spec->set_precision(device == v1::CUDA ? v1::BF16 : v1::FP32);
  }
}

void ResolveSpec(v1::TrainingJobSpec* spec, Violations* v) {
  ResolveModel(spec, v);
  if (spec->has_data()) {
    ResolveData(spec->mutable_data(), v);
  } else {
    v->Field("data", "is required: paths and sequence_length");
  }
  if (spec->steps() == 0) {
    v->Field("steps", "is required");
  } else {
    Within("steps", spec->steps(), 1, kStepsMax, v);
  }
  CheckPriority("priority", spec->priority(), v);
  if (spec->queue().empty()) spec->set_queue(kDefaultQueue);
  if (!IsQueueId(spec->queue())) {
    v->Field("queue", absl::StrCat("'", absl::CHexEscape(spec->queue()), "' ", kQueueIdRule));
  }
  if (spec->has_max_runtime()) PositiveDuration("max_runtime", spec->max_runtime(), v);
  Real("dropout", spec->dropout(), 0, 1, false, v);
  Real("attention.dropout", spec->attention().dropout(), 0, 1, false, v);
  ResolveOptimizer(spec->mutable_optimizer(), v);
  ResolveSchedule(spec->mutable_schedule(), v);
  ResolveBatch(spec, v);
  ResolveIntervals(spec, v);
  ResolveRecovery(spec->mutable_recovery(), v);
  ResolveResources(spec, v);
  ResolveDirectory(spec, v);
  CheckStart(*spec, v);
}

}  // namespace ringmaster::coordinator
