#include "worker/driver/worker_metrics.h"

#include <unistd.h>

#include <atomic>
#include <fstream>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/mutex.h"
#include "base/version.h"
#include "prometheus/counter.h"
#include "prometheus/family.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"
#include "prometheus/text_serializer.h"

namespace ringmaster::worker {
namespace {

enum class Type { kCounter, kGauge, kHistogram };
using enum Type;

struct Description {
  const char* name;
  Type type;
  const char* unit;
  // Separated by commas.
  const char* labels;
  const char* help;
};

constexpr Description kBuildInfo = {"ringmaster_build_info", kGauge, "1", "version,commit",
                                    "Version and commit of this binary."};
constexpr Description kAttached = {"ringmaster_worker_attached", kGauge, "0 or 1", "",
                                   "1 while the stream to the coordinator is open."};
constexpr Description kPublishing = {
    "ringmaster_worker_publishing", kGauge, "0 or 1", "",
    "1 while the coordinator counts this worker as alive; at 0 no training series are shown."};
constexpr Description kResidentBytes = {"ringmaster_host_rss_bytes", kGauge, "bytes", "",
                                        "Host memory of this process."};
constexpr Description kDeviceBytes = {
    "ringmaster_cuda_memory_bytes", kGauge, "bytes", "kind",
    "Device memory of this process: allocated, reserved by the allocator, their peaks; limit: what "
    "the device has."};
constexpr Description kFaults = {"ringmaster_worker_faults_total", kCounter, "faults", "kind",
                                 "Faults this worker reported."};
constexpr Description kSteps = {"ringmaster_step_total", kCounter, "steps", "",
                                "Steps this process took part in, repeated ones included."};
constexpr Description kStepSeconds = {"ringmaster_step_duration_seconds", kHistogram, "seconds", "",
                                      "One step on this rank, validation and checkpoint excluded."};
constexpr Description kTokens = {"ringmaster_tokens_processed_total", kCounter, "tokens", "",
                                 "Training tokens of these steps, all ranks together."};
constexpr Description kSent = {"ringmaster_comm_bytes_total", kCounter, "bytes", "op",
                               "Payload that this rank sent; exchange: attention, in these steps."};
constexpr Description kStep = {"ringmaster_step", kGauge, "steps", "training_job,rank",
                               "Optimizer updates this rank holds."};
constexpr Description kLoss = {"ringmaster_loss", kGauge, "nats per token", "training_job,rank",
                               "Training loss of the last step, all ranks together."};
constexpr Description kValidationLoss = {"ringmaster_validation_loss", kGauge, "nats per token",
                                         "training_job,rank", "Loss of the last validation."};
constexpr Description kGradNorm = {"ringmaster_grad_norm", kGauge, "1", "training_job,rank",
                                   "Global gradient norm of the last step, before clipping."};
constexpr Description kLearningRate = {"ringmaster_learning_rate", kGauge, "1", "training_job,rank",
                                       "Of the last step."};
constexpr Description kExchangeStep = {
    "ringmaster_exchange_bytes_per_step", kGauge, "bytes", "training_job,rank",
    "Attention payload that the busiest rank sent in the last step."};
constexpr Description kPlannedStep = {"ringmaster_planned_exchange_bytes_per_step", kGauge, "bytes",
                                      "training_job,rank",
                                      "What the exchange plan says it must be."};
constexpr Description kGeneration = {"ringmaster_worker_generation", kGauge, "generations",
                                     "training_job,rank", "Of the ring this worker is in."};
constexpr Description kCheckpointSeconds = {
    "ringmaster_checkpoint_duration_seconds", kHistogram, "seconds", "kind",
    "write: one shard to the disk; restore: from the connected ring to the restored state."};
constexpr Description kCheckpointBytes = {"ringmaster_checkpoint_bytes_total", kCounter, "bytes",
                                          "", "Bytes of the shards this worker wrote."};
constexpr Description kShardFailures = {"ringmaster_checkpoint_shard_failures_total", kCounter,
                                        "shards", "", "Shards this worker could not write."};

constexpr Description kTable[] = {kBuildInfo,
                                  kAttached,
                                  kPublishing,
                                  kResidentBytes,
                                  kDeviceBytes,
                                  kFaults,
                                  kSteps,
                                  kStepSeconds,
                                  kTokens,
                                  kSent,
                                  kStep,
                                  kLoss,
                                  kValidationLoss,
                                  kGradNorm,
                                  kLearningRate,
                                  kExchangeStep,
                                  kPlannedStep,
                                  kGeneration,
                                  kCheckpointSeconds,
                                  kCheckpointBytes,
                                  kShardFailures};

// A factor of about 2 between neighbours.
const prometheus::Histogram::BucketBoundaries kSecondsBuckets = {
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 300};

const char* TypeName(Type type) {
  return type == kCounter ? "counter" : type == kGauge ? "gauge" : "histogram";
}

int64_t ResidentBytes() {
  int64_t pages = 0;
  std::string ignored;
  std::ifstream("/proc/self/statm") >> ignored >> pages;
  return pages * sysconf(_SC_PAGESIZE);
}

}  // namespace

struct WorkerMetrics::Implementation {
  using Labels = prometheus::Labels;

  std::function<std::optional<DeviceMemory>()> read_device;
  // Each with its value; none without a device of its own.
  std::vector<std::pair<int64_t DeviceMemory::*, prometheus::Gauge*>> device;
  std::atomic<int64_t> reserved_bytes = 0;

  prometheus::Family<prometheus::Gauge>& GaugeFamily(const Description& of) {
    return prometheus::BuildGauge().Name(of.name).Help(of.help).Register(registry);
  }
  prometheus::Counter& Counter(const Description& of, const Labels& labels = {}) {
    return prometheus::BuildCounter().Name(of.name).Help(of.help).Register(registry).Add(labels);
  }
  prometheus::Gauge& Gauge(const Description& of, const Labels& labels = {}) {
    return GaugeFamily(of).Add(labels);
  }
  prometheus::Histogram& Histogram(const Description& of, const Labels& labels = {}) {
    return prometheus::BuildHistogram().Name(of.name).Help(of.help).Register(registry).Add(
        labels, kSecondsBuckets);
  }

  mutable prometheus::Registry registry;
  prometheus::Gauge& build = Gauge(kBuildInfo, {{"version", Version()}, {"commit", Commit()}});
  prometheus::Gauge& attached = Gauge(kAttached);
  prometheus::Gauge& publishing = Gauge(kPublishing);
  prometheus::Gauge& resident = Gauge(kResidentBytes);
  prometheus::Counter& steps = Counter(kSteps);
  prometheus::Histogram& step_seconds = Histogram(kStepSeconds);
  prometheus::Counter& tokens = Counter(kTokens);
  prometheus::Counter& sent = Counter(kSent, {{"op", "exchange"}});
  prometheus::Histogram& write_seconds = Histogram(kCheckpointSeconds, {{"kind", "write"}});
  prometheus::Histogram& restore_seconds = Histogram(kCheckpointSeconds, {{"kind", "restore"}});
  prometheus::Counter& checkpoint_bytes = Counter(kCheckpointBytes);
  prometheus::Counter& shard_failures = Counter(kShardFailures);

  // The training series: the newest values, and the gauges while they are shown.
  struct Series {
    prometheus::Family<prometheus::Gauge>* family = nullptr;
    double value = 0;
    bool known = false;
    prometheus::Gauge* gauge = nullptr;
  };
  enum {
    kAtStep,
    kAtLoss,
    kAtValidation,
    kAtNorm,
    kAtRate,
    kAtExchange,
    kAtPlanned,
    kAtGeneration
  };

  Implementation() {
    for (const Description& of : {kStep, kLoss, kValidationLoss, kGradNorm, kLearningRate,
                                  kExchangeStep, kPlannedStep, kGeneration}) {
      series.push_back({.family = &GaugeFamily(of)});
    }
    build.Set(1);
    publishing.Set(1);
  }

  void Set(int which, double value) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    series[which].value = value;
    series[which].known = true;
  }

  // Makes what is shown what is to be shown.
  void Show() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    for (Series& one : series) {
      const bool wanted = in_ring && published && one.known;
      if (wanted && one.gauge == nullptr) {
        one.gauge = &one.family->Add(labels);
      } else if (!wanted && one.gauge != nullptr) {
        one.family->Remove(one.gauge);
        one.gauge = nullptr;
      }
      if (one.gauge != nullptr) {
        one.gauge->Set(one.value);
      }
    }
  }

  absl::Mutex mutex;
  bool in_ring ABSL_GUARDED_BY(mutex) = false;
  bool published ABSL_GUARDED_BY(mutex) = true;
  Labels labels ABSL_GUARDED_BY(mutex);
  std::vector<Series> series ABSL_GUARDED_BY(mutex);
};

WorkerMetrics::WorkerMetrics() : implementation_(std::make_unique<Implementation>()) {}
WorkerMetrics::~WorkerMetrics() = default;

void WorkerMetrics::EnterRing(const v1::RingRef& ring) {
  Implementation& self = *implementation_;
  absl::MutexLock lock(&self.mutex);
  self.labels = {{"training_job", ring.training_job()}, {"rank", absl::StrCat(ring.rank())}};
  self.in_ring = true;
  self.Set(Implementation::kAtGeneration, static_cast<double>(ring.generation()));
  self.Show();
}

void WorkerMetrics::LeaveRing() {
  Implementation& self = *implementation_;
  absl::MutexLock lock(&self.mutex);
  self.in_ring = false;
  self.Show();
  for (auto& one : self.series) {
    one.known = false;
  }
}

void WorkerMetrics::SetPublishing(bool publishing) {
  Implementation& self = *implementation_;
  absl::MutexLock lock(&self.mutex);
  self.publishing.Set(publishing ? 1 : 0);
  self.published = publishing;
  self.Show();
}

void WorkerMetrics::OnStep(const v1::StepRecord& record, const StepBytes& bytes) {
  Implementation& self = *implementation_;
  self.steps.Increment();
  self.step_seconds.Observe(record.seconds());
  self.tokens.Increment(static_cast<double>(record.tokens()));
  self.sent.Increment(static_cast<double>(bytes.sent));
  absl::MutexLock lock(&self.mutex);
  self.Set(Implementation::kAtStep, static_cast<double>(record.step()));
  self.Set(Implementation::kAtLoss, record.loss());
  if (record.has_validation_loss()) {
    self.Set(Implementation::kAtValidation, record.validation_loss());
  }
  self.Set(Implementation::kAtNorm, record.grad_norm());
  self.Set(Implementation::kAtRate, record.learning_rate());
  self.Set(Implementation::kAtExchange, static_cast<double>(bytes.busiest));
  self.Set(Implementation::kAtPlanned, static_cast<double>(bytes.planned));
  self.Show();
}

void WorkerMetrics::OnRestore(absl::Duration duration) {
  implementation_->restore_seconds.Observe(absl::ToDoubleSeconds(duration));
}

void WorkerMetrics::OnShard(const v1::ShardWritten& report, absl::Duration duration) {
  if (!report.error().empty()) {
    implementation_->shard_failures.Increment();
    return;
  }
  implementation_->write_seconds.Observe(absl::ToDoubleSeconds(duration));
  implementation_->checkpoint_bytes.Increment(static_cast<double>(report.shard().bytes()));
}

void WorkerMetrics::OnFault(v1::Fault::Kind kind) {
  implementation_->Counter(kFaults, {{"kind", absl::AsciiStrToLower(v1::Fault::Kind_Name(kind))}})
      .Increment();
}

void WorkerMetrics::OnStream(bool attached) { implementation_->attached.Set(attached ? 1 : 0); }

void WorkerMetrics::SetDeviceMemory(std::function<std::optional<DeviceMemory>()> read) {
  Implementation& self = *implementation_;
  auto& family = self.GaugeFamily(kDeviceBytes);
  const std::pair<const char*, int64_t DeviceMemory::*> kinds[] = {
      {"allocated", &DeviceMemory::allocated_bytes},
      {"reserved", &DeviceMemory::reserved_bytes},
      {"peak_allocated", &DeviceMemory::peak_allocated_bytes},
      {"peak_reserved", &DeviceMemory::peak_reserved_bytes},
      {"limit", &DeviceMemory::limit_bytes}};
  for (const auto& [kind, bytes] : kinds) {
    self.device.emplace_back(bytes, &family.Add({{"kind", kind}}));
  }
  self.read_device = std::move(read);
}

void WorkerMetrics::SampleDeviceMemory() {
  Implementation& self = *implementation_;
  const auto sample = self.read_device == nullptr ? std::nullopt : self.read_device();
  if (sample.has_value()) {
    for (const auto& [bytes, gauge] : self.device) gauge->Set(static_cast<double>(*sample.*bytes));
    self.reserved_bytes = sample->reserved_bytes;
  }
}

int64_t WorkerMetrics::MemoryUsedBytes() const {
  return implementation_->device.empty() ? ResidentBytes() : implementation_->reserved_bytes.load();
}

std::string WorkerMetrics::Text() const {
  implementation_->resident.Set(static_cast<double>(ResidentBytes()));
  return prometheus::TextSerializer().Serialize(implementation_->registry.Collect());
}

std::string WorkerMetrics::Markdown() {
  std::string text = "| name | type | unit | labels | meaning |\n|---|---|---|---|---|\n";
  for (const Description& of : kTable) {
    absl::StrAppend(&text, "| `", of.name, "` | ", TypeName(of.type), " | ", of.unit, " | ",
                    absl::StrReplaceAll(of.labels, {{",", ", "}}), " | ", of.help, " |\n");
  }
  return text;
}

}  // namespace ringmaster::worker
