#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "coordinator/records/disk_threads.h"
#include "coordinator/services/permissions.h"
#include "coordinator/services/token_book.h"
#include "grpcpp/server_context.h"

namespace ringmaster::coordinator {

// Who may call what. Thread-safe.
class Access {
 public:
  // `required`: whether callers must show a token. `now`: the clock of `book`.
  Access(bool required, std::unique_ptr<TokenBook> book, std::function<absl::Time()> now);

  // The caller's name: its token's, "tokens/{id}", or, where no token is shown, what its
  // certificate says, "spiffe://{domain}/ringmaster/worker"; empty when neither is asked for.
  // `resource`: what the request is about, as ResourceOf() tells. Nothing else of the request is
  // looked at, so that a refusal tells nothing of what there is. Unauthenticated: nobody who is
  // known; PermissionDenied: the caller may not do that.
  absl::StatusOr<std::string> Admit(const Method& method, const grpc::ServerContextBase& context,
                                    absl::string_view resource) const;

  // The same for a request of HTTP whose Authorization header, empty for none, has the token: as in
  // gRPC, or as the password of `Basic`, which browsers ask for. Returns the token's record, an
  // empty one where none is asked for.
  absl::StatusOr<v1::Token> Admit(const Permission& permission, absl::string_view authorization,
                                  absl::string_view resource) const;

  // Unauthenticated when what Admit() returned is in force no longer.
  absl::Status CheckInForce(const std::string& caller) const;

  // `end` runs, on any thread and perhaps twice, when the token is in force no longer: at once if
  // it is so already. Returns what Release() takes.
  uint64_t Hold(const std::string& caller, std::function<void(const absl::Status&)> end);
  void Release(uint64_t hold);

  // As TokenService says of CreateToken. On the thread of Post().
  absl::StatusOr<v1::CreateTokenResponse> Make(const v1::CreateTokenRequest& request);

  // Runs work that changes tokens, which blocks on the disk.
  void Post(std::function<void()> work) { thread_.Post(std::move(work)); }
  // What ends calls, on the same thread, which hangs on no shared file system.
  void PostAfter(absl::Duration delay, std::function<void()> work) {
    thread_.PostAfter(delay, std::move(work));
  }
  TokenBook& book() { return *book_; }
  // Ends whatever is held by tokens that are in force no longer.
  void EndDead();

 private:
  struct Held {
    std::string caller;
    std::function<void(const absl::Status&)> end;
  };
  // A worker that shows a certificate counts as one with a token.
  absl::StatusOr<v1::Token> Caller(const grpc::ServerContextBase& context) const;
  // At `time`, or before.
  void EndDeadAt(absl::Time time) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnTime(absl::Time time);

  const bool required_;
  const std::unique_ptr<TokenBook> book_;
  const std::function<absl::Time()> now_;

  std::mutex mutex_;
  uint64_t next_hold_ ABSL_GUARDED_BY(mutex_) = 1;
  std::map<uint64_t, Held> held_ ABSL_GUARDED_BY(mutex_);
  // When EndDead() is to run by itself.
  absl::Time next_end_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();

  // Last: its work uses the others.
  DiskThreads thread_;
};

// The project in "projects/{project}/...", empty when `name` is of no project.
std::string ProjectIn(absl::string_view name);

// The name of what a request is about, empty when it names nothing. Requests have it in `name` or
// `parent`, those with a mask in what they hold; without a parent it is "projects/default".
template <typename Request>
std::string ResourceOf(const Request& request) {
  const auto parent = [](const std::string& named) {
    return named.empty() ? std::string("projects/default") : named;
  };
  if constexpr (requires { request.queue_id(); }) {
    return "queues/" + request.queue_id();
  } else if constexpr (requires { request.update_mask(), request.queue(); }) {
    return request.queue().name();
  } else if constexpr (requires { request.update_mask(); }) {
    return request.training_job().name();
  } else if constexpr (requires { request.name(), request.parent(); }) {
    return request.name().empty() ? parent(request.parent()) : request.name();
  } else if constexpr (requires { request.parent(); }) {
    return parent(request.parent());
  } else if constexpr (requires { request.name(); }) {
    return request.name();
  } else if constexpr (requires { request.worker(); }) {
    return request.worker();
  } else {
    return "";
  }
}

}  // namespace ringmaster::coordinator
