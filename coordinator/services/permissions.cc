#include "coordinator/services/permissions.h"

#include <algorithm>

namespace ringmaster::coordinator {
namespace {

using v1::Token;

constexpr char kJobs[] = "JobService";
constexpr char kCluster[] = "ClusterService";
constexpr char kCheckpoints[] = "CheckpointService";
constexpr char kWorkers[] = "WorkerService";
constexpr char kTokens[] = "TokenService";
constexpr char kQueues[] = "QueueService";

constexpr Permission kPermissions[] = {
    {{kJobs, "GetTrainingJob"}, Token::VIEWER, Reach::kProject},
    {{kJobs, "ListTrainingJobs"}, Token::VIEWER, Reach::kProject},
    {{kJobs, "WatchTrainingJobs"}, Token::VIEWER, Reach::kProject},
    {{kJobs, "StreamTrainingJobLogs"}, Token::VIEWER, Reach::kProject},
    {{kJobs, "StreamTrainingJobMetrics"}, Token::VIEWER, Reach::kProject},
    {{kJobs, "EstimateTrainingJob"}, Token::VIEWER, Reach::kNothing},
    {{kJobs, "CreateTrainingJob"}, Token::SUBMITTER, Reach::kProject},
    {{kJobs, "UpdateTrainingJob"}, Token::SUBMITTER, Reach::kProject},
    {{kJobs, "PauseTrainingJob"}, Token::SUBMITTER, Reach::kProject},
    {{kJobs, "ResumeTrainingJob"}, Token::SUBMITTER, Reach::kProject},
    {{kJobs, "CancelTrainingJob"}, Token::SUBMITTER, Reach::kProject},
    {{kJobs, "DeleteTrainingJob"}, Token::SUBMITTER, Reach::kProject},
    {{kCheckpoints, "ListCheckpoints"}, Token::VIEWER, Reach::kProject},
    {{kCheckpoints, "GetCheckpoint"}, Token::VIEWER, Reach::kProject},
    {{kCheckpoints, "ImportCheckpoint"}, Token::SUBMITTER, Reach::kProject},
    {{kCluster, "ListWorkers"}, Token::VIEWER, Reach::kCluster},
    {{kCluster, "GetWorker"}, Token::VIEWER, Reach::kCluster},
    {{kCluster, "CordonWorker"}, Token::OPERATOR, Reach::kCluster},
    {{kCluster, "DrainWorker"}, Token::OPERATOR, Reach::kCluster},
    {{kCluster, "UncordonWorker"}, Token::OPERATOR, Reach::kCluster},
    {{kQueues, "ListQueues"}, Token::VIEWER, Reach::kProject},
    {{kQueues, "GetQueue"}, Token::VIEWER, Reach::kCluster},
    {{kQueues, "CreateQueue"}, Token::ADMIN, Reach::kCluster},
    {{kQueues, "UpdateQueue"}, Token::ADMIN, Reach::kCluster},
    {{kQueues, "DeleteQueue"}, Token::ADMIN, Reach::kCluster},
    {{kTokens, "CreateToken"}, Token::ADMIN, Reach::kCluster},
    {{kTokens, "ListTokens"}, Token::ADMIN, Reach::kCluster},
    {{kTokens, "RevokeToken"}, Token::ADMIN, Reach::kCluster},
    {{kWorkers, "Session"}, Token::WORKER, Reach::kCluster},
    {{kWorkers, "ReportFault"}, Token::WORKER, Reach::kCluster},
};

}  // namespace

absl::Span<const Permission> Permissions() { return kPermissions; }

const Permission* FindPermission(const Method& method) {
  const auto* const found = std::find_if(
      std::begin(kPermissions), std::end(kPermissions), [&](const Permission& permission) {
        return absl::string_view(permission.method.service) == method.service &&
               absl::string_view(permission.method.name) == method.name;
      });
  return found == std::end(kPermissions) ? nullptr : found;
}

bool Includes(Token::Scope has, Token::Scope needed) {
  if (needed == Token::WORKER || has == Token::WORKER) return has == needed;
  return needed >= Token::VIEWER && has >= needed && has <= Token::ADMIN;
}

}  // namespace ringmaster::coordinator
