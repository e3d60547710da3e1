#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

struct mg_context;

namespace ringmaster {

struct HttpReply {
  int code = 200;
  std::string content_type = "text/plain; charset=utf-8";
  std::string body;
};

// A small HTTP server for GET of fixed paths: /metrics, /healthz, the status page. A few threads of
// its own call the handlers, which must be thread-safe and must not block. Plain text: it shows
// names and numbers, never data.
class HttpEndpoint {
 public:
  using Handler = std::function<HttpReply()>;

  // `address` is "host:port"; port 0 takes a free one. Errors: InvalidArgument (not an address),
  // Unavailable (cannot listen there).
  static absl::StatusOr<std::unique_ptr<HttpEndpoint>> Start(
      const std::string& address, std::map<std::string, Handler> handlers);

  // Waits for the handlers that run.
  ~HttpEndpoint();
  HttpEndpoint(const HttpEndpoint&) = delete;
  HttpEndpoint& operator=(const HttpEndpoint&) = delete;

  // "host:port" with the real port.
  const std::string& address() const { return address_; }

 private:
  explicit HttpEndpoint(std::map<std::string, Handler> handlers) : handlers_(std::move(handlers)) {}

  const std::map<std::string, Handler> handlers_;
  mg_context* server_ = nullptr;
  std::string host_;
  int port_ = 0;
  std::string address_;
};

}  // namespace ringmaster
