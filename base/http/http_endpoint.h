#pragma once

#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "base/http/http_request.h"
#include "base/http/server_tls.h"

namespace ringmaster {

class HttpStream;

// Of what Prometheus reads.
inline constexpr char kMetricsContentType[] = "text/plain; version=0.0.4; charset=utf-8";

struct HttpReply {
  int code = 200;
  std::string content_type = "text/plain; charset=utf-8";
  std::string body;
  // Further headers: name and value.
  std::vector<std::pair<std::string, std::string>> headers = {};
};

// A small HTTP server for GET: metrics, probes, pages. A connection is good for one request of at
// most 16 KiB, which must be there within five seconds. Threads of its own call the handler, which
// must be thread-safe and may block for a few seconds at most. When all of them are busy, the
// oldest connection is ended: who says nothing, or reads nothing, keeps nobody out.
class HttpEndpoint {
 public:
  static constexpr int kThreads = 32;

  // Of a GET or HEAD; the endpoint refuses others.
  using Handler = std::function<HttpReply(const HttpRequest&)>;

  // `address` is "host:port"; port 0 takes a free one. `tls`: null for none. Errors:
  // InvalidArgument (not an address), Unavailable (cannot listen there).
  static absl::StatusOr<std::unique_ptr<HttpEndpoint>> Start(
      const std::string& address, Handler handler, std::unique_ptr<ServerTls> tls = nullptr);

  // Ends connections, and waits for the handlers that run.
  ~HttpEndpoint();
  HttpEndpoint(const HttpEndpoint&) = delete;
  HttpEndpoint& operator=(const HttpEndpoint&) = delete;

  // "host:port" with the real port.
  const std::string& address() const { return address_; }

 private:
  HttpEndpoint(Handler handler, std::unique_ptr<ServerTls> tls)
      : handler_(std::move(handler)), tls_(std::move(tls)) {}

  absl::Status Listen(const std::string& address);
  void Run();
  void Serve(HttpStream& stream, const std::string& peer) const;
  bool Stopping() const;

  const Handler handler_;
  const std::unique_ptr<ServerTls> tls_;
  int listener_ = -1;
  std::string address_;

  mutable std::mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  // The oldest first.
  std::list<HttpStream*> streams_ ABSL_GUARDED_BY(mutex_);

  std::vector<std::thread> threads_;
};

}  // namespace ringmaster
