#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "coordinator/core/core.h"
#include "ringmaster/v1/job_service.pb.h"

namespace ringmaster::coordinator {

// One message for many watchers.
using WatchMessage = std::shared_ptr<const v1::WatchTrainingJobsResponse>;

// One WatchTrainingJobs call. Called on the loop's thread; must not block or call back into the
// loop.
class WatchSink {
 public:
  virtual ~WatchSink() = default;
  // The jobs asked for and the mark that they are complete: as many as there are.
  virtual void Start(std::vector<WatchMessage> snapshot) = 0;
  // False when the client has not read enough of the messages before: the sink then ends the call
  // by itself.
  virtual bool Offer(const WatchMessage& message) = 0;
  virtual void Close(const absl::Status& status) = 0;
};

// Who watches which jobs. Lives on the event loop's thread.
class WatchHub {
 public:
  // Silence after which a watcher gets a heartbeat.
  static constexpr absl::Duration kHeartbeatInterval = absl::Seconds(30);

  // Sends the snapshot of what `core` holds. A request for one job that is not there: NOT_FOUND.
  void Add(absl::Time now, const Core& core, const v1::WatchTrainingJobsRequest& request,
           std::shared_ptr<WatchSink> sink);
  void Remove(const WatchSink* sink);

  // Tells everyone whom a change concerns. Returns how many watchers were too slow; they are
  // removed.
  int Publish(absl::Time now, const Core& core, const std::vector<JobChange>& changes);

  // Heartbeats where due.
  int Tick(absl::Time now, const Core& core);
  absl::Time NextTick() const;

  // Ends every watch.
  void CloseAll(const absl::Status& status);

  // Watches of one job, or of all that are there and come.
  size_t Count(bool of_one_job) const;

 private:
  // The message that shows a job as it was last told, while somebody holds it: many snapshots that
  // nobody reads cost no copies.
  WatchMessage Show(const v1::TrainingJob& job, int64_t resource_version);

  struct Watcher {
    std::shared_ptr<WatchSink> sink;
    // One of these is empty: the job, or the prefix of the names ("projects/x/").
    std::string name;
    std::string prefix;
    absl::Time last_message;
  };

  // Offers a message to all whom `concerned` picks.
  int Offer(absl::Time now, const WatchMessage& message,
            const std::function<bool(const Watcher&)>& concerned);

  std::map<const WatchSink*, Watcher> watchers_;
  // By the job's name; a change ends it.
  std::map<std::string, std::weak_ptr<const v1::WatchTrainingJobsResponse>> shown_;
};

}  // namespace ringmaster::coordinator
