#include "coordinator/metrics/metrics.h"

#include "absl/strings/str_split.h"
#include "prometheus/text_serializer.h"

namespace ringmaster::coordinator {
namespace {

prometheus::Labels LabelsFor(Metric metric, const LabelValues& values) {
  prometheus::Labels labels;
  size_t i = 0;
  for (const absl::string_view name :
       absl::StrSplit(Describe(metric).labels, ',', absl::SkipEmpty())) {
    labels.emplace(std::string(name), values.at(i++));
  }
  return labels;
}

// A factor of about 2.2 between neighbours: 0.2 ms to 60 s, or 1 to 4096 rows. A queue is waited in
// for up to a day.
const prometheus::Histogram::BucketBoundaries& Buckets(Metric metric) {
  static const prometheus::Histogram::BucketBoundaries seconds = {
      0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60};
  static const prometheus::Histogram::BucketBoundaries rows = {1,   2,   4,   8,    16,   32,  64,
                                                               128, 256, 512, 1024, 2048, 4096};
  static const prometheus::Histogram::BucketBoundaries waits = {
      0.1, 1, 5, 15, 60, 300, 900, 1800, 3600, 7200, 14400, 28800, 57600, 86400};
  return metric == Metric::kCommitRows         ? rows
         : metric == Metric::kQueueWaitSeconds ? waits
                                               : seconds;
}

}  // namespace

Metrics::Metrics() {
  for (const MetricDescription& metric : MetricTable()) {
    switch (metric.type) {
      case MetricType::kCounter:
        counters_[metric.id] =
            &prometheus::BuildCounter().Name(metric.name).Help(metric.help).Register(registry_);
        break;
      case MetricType::kGauge:
        gauges_[metric.id] =
            &prometheus::BuildGauge().Name(metric.name).Help(metric.help).Register(registry_);
        break;
      case MetricType::kHistogram:
        histograms_[metric.id] =
            &prometheus::BuildHistogram().Name(metric.name).Help(metric.help).Register(registry_);
        break;
    }
  }
}

void Metrics::Count(Metric metric, const LabelValues& labels, double increment) {
  counters_.at(metric)->Add(LabelsFor(metric, labels)).Increment(increment);
}

void Metrics::Set(Metric metric, double value, const LabelValues& labels) {
  gauges_.at(metric)->Add(LabelsFor(metric, labels)).Set(value);
}

void Metrics::Observe(Metric metric, double value, const LabelValues& labels) {
  histograms_.at(metric)->Add(LabelsFor(metric, labels), Buckets(metric)).Observe(value);
}

void Metrics::Replace(Metric metric, const std::vector<std::pair<LabelValues, double>>& series) {
  prometheus::Family<prometheus::Gauge>& family = *gauges_.at(metric);
  std::lock_guard lock(replaced_mutex_);
  std::map<LabelValues, prometheus::Gauge*> before = std::move(replaced_[metric]);
  std::map<LabelValues, prometheus::Gauge*>& now = replaced_[metric];
  now.clear();
  for (const auto& [labels, value] : series) {
    auto old = before.extract(labels);
    prometheus::Gauge* gauge = old.empty() ? &family.Add(LabelsFor(metric, labels)) : old.mapped();
    gauge->Set(value);
    now[labels] = gauge;
  }
  for (const auto& [labels, gauge] : before) family.Remove(gauge);
}

std::string Metrics::Text() const {
  return prometheus::TextSerializer().Serialize(registry_.Collect());
}

}  // namespace ringmaster::coordinator
