#include "tests/simulation/queues.h"

#include "coordinator/core/events.h"
#include "coordinator/core/lifecycle.h"
#include "ringmaster/store/records.pb.h"

namespace ringmaster::simulation {

using S = v1::TrainingJobStatus;

Queues QueuesIn(const Rows& rows) {
  Queues queues;
  queues["default"].set_max_priority(1000);
  queues["default"].set_weight(1);
  const int table = static_cast<int>(coordinator::Table::kQueues);
  for (auto it = rows.lower_bound({table, ""}); it != rows.end() && it->first.first == table;
       ++it) {
    store::QueueRecord record;
    record.ParseFromString(it->second);
    queues[it->first.second] = record.queue();
  }
  return queues;
}

int WorldOf(const v1::TrainingJob& job) {
  return job.spec().parallel().ring_size() * job.spec().parallel().replicas();
}

int HeldBy(const v1::TrainingJob& job) {
  const auto current = job.status().state();
  const bool holds =
      current != S::QUEUED && current != S::PAUSED && !coordinator::IsTerminal(current);
  return holds ? WorldOf(job) : 0;
}

bool IsToHaveSome(const v1::TrainingJob& job, const v1::Queue& queue) {
  const std::string& code = job.status().pending_reason().code();
  const int quota = queue.max_workers();
  return code == "WORKERS_BUSY" ||
         (code == "WAITING_FOR_QUOTA" && (quota == 0 || WorldOf(job) <= quota));
}

}  // namespace ringmaster::simulation
