#pragma once

#include <cstddef>
#include <list>
#include <mutex>
#include <string>

#include "absl/base/thread_annotations.h"

namespace ringmaster {

class HttpStream;

// The connections of an HttpEndpoint: who has to go when all its threads are busy, and how many
// requests are handled at a time. Thread-safe.
class HttpConnections {
 private:
  // What a connection's thread does.
  enum class Phase {
    // Nothing of the client's: nobody would be helped by its end.
    kBusy,
    // As kBusy, and counted.
    kHandling,
    // Waits for the client's request, or for its goodbye.
    kListening,
    // Waits until the client has taken its answer.
    kAnswering,
  };
  struct Connection {
    HttpStream* stream;
    std::string host;
    Phase phase;
    bool interrupted;
  };

 public:
  // One for each of `threads`.
  explicit HttpConnections(size_t threads);

  // A connection, for as long as it is there. Of one thread.
  class Place {
   public:
    // `host`: where the client is, without its port. `stream` outlives the place.
    Place(HttpConnections& all, HttpStream& stream, std::string host);
    ~Place();
    Place(const Place&) = delete;
    Place& operator=(const Place&) = delete;

    void Listen() { Enter(Phase::kListening); }
    void Answer() { Enter(Phase::kAnswering); }
    // From now on it is not ended for others. False, with nothing changed, when it has been
    // already, or when too many requests are handled. `probe`: those are never too many.
    bool Handle(bool probe);

   private:
    void Enter(Phase phase);

    HttpConnections& all_;
    const std::list<Connection>::iterator connection_;
  };

  // Ends all connections, those that come later at once.
  void Stop();
  bool Stopping() const;

 private:
  // When all threads are busy, one of them is to come free soon: ends the connection that is missed
  // least of those that wait for their clients, but for `except`.
  void MakeRoom(const Connection& except) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  size_t CountOf(const std::string& host) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const size_t threads_;
  mutable std::mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  // The oldest first.
  std::list<Connection> connections_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ringmaster
