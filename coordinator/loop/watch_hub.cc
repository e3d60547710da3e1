#include "coordinator/loop/watch_hub.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "proto/rpc_status.h"

namespace ringmaster::coordinator {
namespace {

constexpr char kAllProjects[] = "projects/-";
constexpr char kDefaultProject[] = "projects/default";

WatchMessage JobMessage(const v1::TrainingJob& job, int64_t resource_version) {
  auto message = std::make_shared<v1::WatchTrainingJobsResponse>();
  *message->mutable_job() = job;
  message->set_resource_version(resource_version);
  return message;
}

}  // namespace

WatchMessage WatchHub::Show(const v1::TrainingJob& job, int64_t resource_version) {
  std::weak_ptr<const v1::WatchTrainingJobsResponse>& shown = shown_[job.name()];
  WatchMessage message = shown.lock();
  if (message == nullptr) shown = message = JobMessage(job, resource_version);
  return message;
}

void WatchHub::Add(absl::Time now, const Core& core, const v1::WatchTrainingJobsRequest& request,
                   std::shared_ptr<WatchSink> sink) {
  Watcher watcher = {.sink = sink, .name = request.name(), .last_message = now};
  const int64_t version = core.resource_version();
  std::vector<WatchMessage> snapshot;
  if (!request.name().empty()) {
    const v1::TrainingJob* job = core.FindJob(request.name());
    if (job == nullptr) {
      sink->Close(NotFound("training job", request.name()));
      return;
    }
    snapshot.push_back(Show(*job, version));
  } else {
    const std::string parent = request.parent().empty() ? kDefaultProject : request.parent();
    watcher.prefix = parent == kAllProjects ? "projects/" : absl::StrCat(parent, "/");
    for (const v1::TrainingJob* job : core.Jobs(parent)) {
      snapshot.push_back(Show(*job, version));
    }
  }
  auto synced = std::make_shared<v1::WatchTrainingJobsResponse>();
  synced->mutable_synced();
  synced->set_resource_version(version);
  snapshot.push_back(std::move(synced));
  sink->Start(std::move(snapshot));
  const WatchSink* key = sink.get();
  watchers_.emplace(key, std::move(watcher));
}

void WatchHub::Remove(const WatchSink* sink) { watchers_.erase(sink); }

int WatchHub::Publish(absl::Time now, const Core& core, const std::vector<JobChange>& changes) {
  int evicted = 0;
  for (const JobChange& change : changes) {
    shown_.erase(change.name);
    if (watchers_.empty()) continue;
    WatchMessage message;
    if (change.deleted) {
      auto deleted = std::make_shared<v1::WatchTrainingJobsResponse>();
      deleted->set_deleted_name(change.name);
      deleted->set_resource_version(change.resource_version);
      message = std::move(deleted);
    } else if (const v1::TrainingJob* job = core.FindJob(change.name); job != nullptr) {
      message = Show(*job, change.resource_version);
    } else {
      continue;  // Deleted later in the same batch.
    }
    evicted += Offer(now, message, [&](const Watcher& watcher) {
      return watcher.name.empty() ? absl::StartsWith(change.name, watcher.prefix)
                                  : watcher.name == change.name;
    });
  }
  return evicted;
}

int WatchHub::Tick(absl::Time now, const Core& core) {
  if (now < NextTick()) return 0;
  auto heartbeat = std::make_shared<v1::WatchTrainingJobsResponse>();
  heartbeat->mutable_heartbeat();
  heartbeat->set_resource_version(core.resource_version());
  return Offer(now, std::move(heartbeat), [&](const Watcher& watcher) {
    return now - watcher.last_message >= kHeartbeatInterval;
  });
}

int WatchHub::Offer(absl::Time now, const WatchMessage& message,
                    const std::function<bool(const Watcher&)>& concerned) {
  int evicted = 0;
  for (auto it = watchers_.begin(); it != watchers_.end();) {
    const bool wanted = concerned(it->second);
    if (wanted && !it->second.sink->Offer(message)) {
      it = watchers_.erase(it);
      ++evicted;
      continue;
    }
    if (wanted) it->second.last_message = now;
    ++it;
  }
  return evicted;
}

size_t WatchHub::Count(bool of_one_job) const {
  return std::count_if(watchers_.begin(), watchers_.end(),
                       [&](const auto& entry) { return !entry.second.name.empty() == of_one_job; });
}

absl::Time WatchHub::NextTick() const {
  absl::Time next = absl::InfiniteFuture();
  for (const auto& [sink, watcher] : watchers_) {
    next = std::min(next, watcher.last_message + kHeartbeatInterval);
  }
  return next;
}

void WatchHub::CloseAll(const absl::Status& status) {
  for (const auto& [sink, watcher] : watchers_) watcher.sink->Close(status);
  watchers_.clear();
}

}  // namespace ringmaster::coordinator
