#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "coordinator/metrics/metric_table.h"
#include "prometheus/counter.h"
#include "prometheus/family.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"

namespace ringmaster::coordinator {

// Values of a metric's labels, in the table's order.
using LabelValues = std::vector<std::string>;

// The process's metrics, one family per entry of the table. Thread-safe; nothing here blocks for
// long.
class Metrics {
 public:
  Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  // REQUIRES of all: the metric has this type and as many labels.
  void Count(Metric metric, const LabelValues& labels = {}, double increment = 1);
  void Set(Metric metric, double value, const LabelValues& labels = {});
  void Observe(Metric metric, double value, const LabelValues& labels = {});

  // The gauge's only series from now on: what is not in `series` ends. So no label value outlives
  // its job.
  void Replace(Metric metric, const std::vector<std::pair<LabelValues, double>>& series);

  // Prometheus text format 0.0.4.
  std::string Text() const;

 private:
  template <typename T>
  using Families = std::map<Metric, prometheus::Family<T>*>;

  // Families are owned by the registry and never removed.
  prometheus::Registry registry_;
  Families<prometheus::Counter> counters_;
  Families<prometheus::Gauge> gauges_;
  Families<prometheus::Histogram> histograms_;

  std::mutex replaced_mutex_;
  std::map<Metric, std::map<LabelValues, prometheus::Gauge*>> replaced_
      ABSL_GUARDED_BY(replaced_mutex_);
};

}  // namespace ringmaster::coordinator
