#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/http/http_connections.h"
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

struct HttpEndpointOptions {
  // At least 4.
  size_t threads = 32;
  // For the handshake and the request together.
  absl::Duration read_time = absl::Seconds(5);
};

// A small HTTP server for GET: metrics, probes, pages. A connection is good for one request of at
// most 16 KiB, which must be there in time, and one answer. Threads of its own call the handler,
// which must be thread-safe and may block for a few seconds at most. When all of them are busy, a
// connection that waits for its client is ended, first one without a whole request and of the
// address that has the most: who says nothing, or reads nothing, keeps nobody out. Three quarters
// of the threads at most are in the handler, who asks for more has a 503; "/healthz" and "/readyz"
// find a thread always.
class HttpEndpoint {
 public:
  // Of an answer; the client of a larger one has a 500.
  static constexpr size_t kBodyBytesMax = 8 << 20;

  // Of a GET or HEAD; the endpoint refuses others.
  using Handler = std::function<HttpReply(const HttpRequest&)>;

  // `address` is "host:port"; port 0 takes a free one. `tls`: null for none. Errors:
  // InvalidArgument (not an address), Unavailable (cannot listen there).
  static absl::StatusOr<std::unique_ptr<HttpEndpoint>> Start(
      const std::string& address, Handler handler, std::unique_ptr<ServerTls> tls = nullptr,
      const HttpEndpointOptions& options = {});

  // Ends connections, and waits for the handlers that run.
  ~HttpEndpoint();
  HttpEndpoint(const HttpEndpoint&) = delete;
  HttpEndpoint& operator=(const HttpEndpoint&) = delete;

  // "host:port" with the real port.
  const std::string& address() const { return address_; }

 private:
  HttpEndpoint(Handler handler, std::unique_ptr<ServerTls> tls, const HttpEndpointOptions& options)
      : handler_(std::move(handler)),
        tls_(std::move(tls)),
        read_time_(options.read_time),
        connections_(options.threads) {}

  absl::Status Listen(const std::string& address);
  void Run();
  void Serve(HttpStream& stream, HttpConnections::Place& place, const std::string& peer) const;
  HttpReply Handle(const HttpRequest& request, HttpConnections::Place& place) const;

  const Handler handler_;
  const std::unique_ptr<ServerTls> tls_;
  const absl::Duration read_time_;
  int listener_ = -1;
  std::string address_;
  HttpConnections connections_;
  std::vector<std::thread> threads_;
};

}  // namespace ringmaster
