#pragma once

#include <string>

#include "absl/types/span.h"

namespace ringmaster::coordinator {

enum class MetricType { kCounter, kGauge, kHistogram };

// Every metric that the coordinator exposes, in the order of the documentation.
enum class Metric {
  kBuildInfo,
  kEpoch,
  kDraining,
  kStoreFull,
  kGrpcRequests,
  kGrpcRequestSeconds,
  kWatchers,
  kWatchEvictions,
  kLoopEvents,
  kLoopRejected,
  kLoopQueue,
  kTickSeconds,
  kTickLagSeconds,
  kCommitSeconds,
  kCommitRows,
  kStoreBytes,
  kJobs,
  kJobsSubmitted,
  kJobsFinished,
  kSubmissionsDeduplicated,
  kQueuePending,
  kQueueLongestWait,
  kQueueWaitSeconds,
  kJobsWaiting,
  kQueueJobs,
  kQueueHeldWorkers,
  kQueueMaxWorkers,
  kPlacementAttempts,
  kWorkers,
  kWorkersCordoned,
  kHeartbeatAgeSeconds,
  kLeaseExpirations,
  kStaleReports,
  kWorkerQuarantines,
  kRingsFormed,
  kRecoveryEpisodes,
  kRecoveryPhaseSeconds,
  kRecoveryLostSteps,
  kJobStep,
  kJobSteps,
  kJobLoss,
  kJobTokens,
  kJobTokensPerSecond,
  kJobStepTime,
  kJobGeneration,
  kJobRingSize,
  kJobEpisodes,
  kJobCheckpointTime,
  kCheckpointsCommitted,
  kCheckpointFailures,
};

struct MetricDescription {
  Metric id;
  const char* name;
  MetricType type;
  // What one is: seconds, bytes, rows...
  const char* unit;
  const char* help;
  // Separated by commas; empty: none.
  const char* labels;
};

// One entry per Metric, in its order. The one place where a metric is described: the registry and
// the documentation are made from it.
absl::Span<const MetricDescription> MetricTable();
const MetricDescription& Describe(Metric metric);

// The table as a Markdown table, for `--print-metrics` and docs/metrics.md.
std::string MetricTableMarkdown();

}  // namespace ringmaster::coordinator
