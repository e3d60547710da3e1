#include "base/http/http_endpoint.h"

#include <chrono>
#include <future>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "civetweb.h"
#include "spdlog/spdlog.h"

namespace ringmaster {
namespace {

// Each connection holds one until its request is there, or for the time-out: a few that say nothing
// must not keep a kubelet's probe from its answer.
constexpr char kThreads[] = "8";

int Send(mg_connection* connection, const HttpReply& reply) {
  const bool head = absl::string_view(mg_get_request_info(connection)->request_method) == "HEAD";
  mg_printf(
      connection,
      "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n"
      "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n",
      reply.code, mg_get_response_code_text(connection, reply.code), reply.content_type.c_str(),
      reply.body.size());
  if (!head) mg_write(connection, reply.body.data(), reply.body.size());
  return reply.code;
}

// Called first for every request; not 0 says that it was answered.
int Answer(mg_connection* connection) {
  const mg_request_info* request = mg_get_request_info(connection);
  const auto& handlers =
      *static_cast<const std::map<std::string, HttpEndpoint::Handler>*>(request->user_data);
  const absl::string_view method = request->request_method;
  if (method != "GET" && method != "HEAD") {
    return Send(connection, {.code = 405, .body = "only GET\n"});
  }
  const auto handler = handlers.find(request->local_uri);
  if (handler == handlers.end()) return Send(connection, {.code = 404, .body = "no such page\n"});
  return Send(connection, handler->second());
}

int LogServerMessage(const mg_connection*, const char* message) {
  SPDLOG_WARN("http: {}", message);
  return 1;
}

}  // namespace

absl::StatusOr<std::unique_ptr<HttpEndpoint>> HttpEndpoint::Start(
    const std::string& address, std::map<std::string, Handler> handlers) {
  const size_t colon = address.rfind(':');
  int port = -1;
  // The server would take a list, and open ports that nobody has looked at.
  if (colon == std::string::npos || absl::StrContains(address, ',') ||
      !absl::SimpleAtoi(address.substr(colon + 1), &port) || port < 0 || port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", address, "\" is not an address: HOST:PORT is, for example 127.0.0.1:0"));
  }
  if (address[0] == '[' && mg_check_feature(MG_FEATURES_IPV6) == 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        address, ": the HTTP server of this distribution takes IPv4 addresses and names only"));
  }
  auto endpoint = std::unique_ptr<HttpEndpoint>(new HttpEndpoint(std::move(handlers)));
  const char* options[] = {"listening_ports",    address.c_str(), "num_threads", kThreads,
                           "request_timeout_ms", "5000",          nullptr};
  mg_callbacks callbacks = {};
  callbacks.log_message = LogServerMessage;
  callbacks.begin_request = Answer;
  auto* user_data = const_cast<std::map<std::string, Handler>*>(&endpoint->handlers_);
  endpoint->server_ = mg_start(&callbacks, user_data, options);
  if (endpoint->server_ == nullptr) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen for HTTP at ", address, ": the port is taken, or not ours"));
  }
  mg_server_port bound = {};
  mg_get_server_ports(endpoint->server_, 1, &bound);
  endpoint->host_ = address.substr(0, colon);
  endpoint->port_ = bound.port;
  endpoint->address_ = absl::StrCat(endpoint->host_, ":", bound.port);
  return endpoint;
}

HttpEndpoint::~HttpEndpoint() {
  if (server_ == nullptr) return;
  std::promise<void> stopped;
  std::thread stopper([&] {
    mg_stop(server_);
    stopped.set_value();
  });
  // The server sees that it is to stop when a connection comes, else only every two seconds.
  const std::future<void> end = stopped.get_future();
  do {
    char error[64];
    mg_connection* const knock = mg_connect_client(host_.c_str(), port_, 0, error, sizeof(error));
    if (knock != nullptr) mg_close_connection(knock);
  } while (end.wait_for(std::chrono::milliseconds(5)) != std::future_status::ready);
  stopper.join();
}

}  // namespace ringmaster
