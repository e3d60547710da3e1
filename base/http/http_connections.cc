#include "base/http/http_connections.h"

#include <algorithm>
#include <utility>

#include "base/http/http_stream.h"

namespace ringmaster {

HttpConnections::HttpConnections(size_t threads) : threads_(threads) {}

HttpConnections::Place::Place(HttpConnections& all, HttpStream& stream, std::string host)
    : all_(all), connection_([&] {
        const std::lock_guard lock(all.mutex_);
        if (all.stopping_) stream.Interrupt();
        const auto place = all.connections_.insert(all.connections_.end(),
                                                   Connection{.stream = &stream,
                                                              .host = std::move(host),
                                                              .phase = Phase::kBusy,
                                                              .interrupted = all.stopping_});
        all.MakeRoom(*place);
        return place;
      }()) {}

HttpConnections::Place::~Place() {
  const std::lock_guard lock(all_.mutex_);
  all_.connections_.erase(connection_);
}

void HttpConnections::Place::Enter(Phase phase) {
  const std::lock_guard lock(all_.mutex_);
  connection_->phase = phase;
  // Before, it may have been one of those that could not be ended.
  all_.MakeRoom(*connection_);
}

bool HttpConnections::Place::Handle(bool probe) {
  const std::lock_guard lock(all_.mutex_);
  const auto handled =
      std::count_if(all_.connections_.begin(), all_.connections_.end(),
                    [](const Connection& each) { return each.phase == Phase::kHandling; });
  // Some threads are left for probes.
  const size_t handled_max = all_.threads_ - all_.threads_ / 4;
  if (connection_->interrupted || (!probe && static_cast<size_t>(handled) >= handled_max)) {
    return false;
  }
  connection_->phase = probe ? Phase::kBusy : Phase::kHandling;
  return true;
}

void HttpConnections::Stop() {
  const std::lock_guard lock(mutex_);
  stopping_ = true;
  for (Connection& connection : connections_) {
    connection.stream->Interrupt();
    connection.interrupted = true;
  }
}

bool HttpConnections::Stopping() const {
  const std::lock_guard lock(mutex_);
  return stopping_;
}

size_t HttpConnections::CountOf(const std::string& host) const {
  return static_cast<size_t>(
      std::count_if(connections_.begin(), connections_.end(),
                    [&host](const Connection& each) { return each.host == host; }));
}

void HttpConnections::MakeRoom(const Connection& except) {
  if (connections_.size() < threads_) return;
  Connection* missed_least = nullptr;
  // The highest goes. Whoever can open many connections is to end his own with them; an answer
  // on its way is worth more than a request that is not there yet.
  std::pair<bool, size_t> rank_of_it;
  for (Connection& connection : connections_) {
    if (connection.interrupted) return;  // Its thread comes free.
    if (&connection == &except) continue;
    if (connection.phase != Phase::kListening && connection.phase != Phase::kAnswering) continue;
    const std::pair rank(connection.phase == Phase::kListening, CountOf(connection.host));
    // Of equals, the oldest.
    if (missed_least != nullptr && rank <= rank_of_it) continue;
    missed_least = &connection;
    rank_of_it = rank;
  }
  if (missed_least == nullptr) return;
  missed_least->stream->Interrupt();
  missed_least->interrupted = true;
}

}  // namespace ringmaster
