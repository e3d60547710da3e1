#pragma once

#include <algorithm>
#include <initializer_list>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "absl/time/time.h"

namespace ringmaster::coordinator {

enum class TimerKind {
  // Subject: a worker's name.
  kLease,
  kSuspect,
  kForgetWorker,
  // Subject: a job's name.
  kStage,
  kRejoin,
  kRetry,
  kForgive,
  kRunClock,
  kStopAgain,
  kMakeRoom,
  // Subject: a request id.
  kForgetRequest,
  // Subject: empty.
  kExplain,
};

// What must happen when, one deadline per (kind, subject). Thread-compatible.
class Timers {
 public:
  struct Key {
    TimerKind kind = TimerKind::kLease;
    std::string subject;
    auto operator<=>(const Key&) const = default;
  };

  void Set(TimerKind kind, const std::string& subject, absl::Time when) {
    const Key key{kind, subject};
    Cancel(kind, subject);
    at_[key] = when;
    queue_.insert({when, key});
  }
  void Cancel(TimerKind kind, const std::string& subject) {
    const auto found = at_.find({kind, subject});
    if (found == at_.end()) return;
    queue_.erase({found->second, found->first});
    at_.erase(found);
  }
  absl::Time Next() const {
    return queue_.empty() ? absl::InfiniteFuture() : queue_.begin()->first;
  }
  // The earliest timer due at `now`, removed.
  std::optional<Key> TakeDue(absl::Time now) {
    if (queue_.empty() || queue_.begin()->first > now) return std::nullopt;
    Key key = queue_.begin()->second;
    Cancel(key.kind, key.subject);
    return key;
  }
  // Every timer of these kinds comes `by` later, and not before `earliest`.
  void Postpone(std::initializer_list<TimerKind> kinds, absl::Duration by, absl::Time earliest) {
    for (const auto& [key, when] : std::map(at_)) {
      const bool meant = std::find(kinds.begin(), kinds.end(), key.kind) != kinds.end();
      if (meant) Set(key.kind, key.subject, std::max(when + by, earliest));
    }
  }

 private:
  std::map<Key, absl::Time> at_;
  std::set<std::pair<absl::Time, Key>> queue_;
};

}  // namespace ringmaster::coordinator
