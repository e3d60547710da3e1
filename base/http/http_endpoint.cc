#include "base/http/http_endpoint.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <optional>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/http/http_stream.h"
#include "base/status_macros.h"
#include "base/steady_now.h"

namespace ringmaster {
namespace {

constexpr size_t kHeadBytesMax = 16 << 10;
constexpr absl::Duration kWriteTime = absl::Seconds(30);
constexpr absl::Duration kFinishTime = absl::Seconds(1);

const char* Meaning(int code) {
  switch (code) {
    case 200:
      return "OK";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 431:
      return "Request Header Fields Too Large";
    case 500:
      return "Internal Server Error";
    case 503:
      return "Service Unavailable";
    default:
      return "Error";
  }
}

std::string HeadOf(const HttpReply& reply) {
  std::string head = absl::StrCat(
      "HTTP/1.1 ", reply.code, " ", Meaning(reply.code), "\r\nContent-Type: ", reply.content_type,
      "\r\nContent-Length: ", reply.body.size(),
      "\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n");
  for (const auto& [name, value] : reply.headers) absl::StrAppend(&head, name, ": ", value, "\r\n");
  return head + "\r\n";
}

// "ipv4:10.1.2.3", and the port.
std::pair<std::string, int> PeerOf(const sockaddr_storage& address) {
  char text[INET6_ADDRSTRLEN] = {};
  if (address.ss_family == AF_INET) {
    const auto& four = reinterpret_cast<const sockaddr_in&>(address);
    inet_ntop(AF_INET, &four.sin_addr, text, sizeof(text));
    return {absl::StrCat("ipv4:", text), ntohs(four.sin_port)};
  }
  const auto& six = reinterpret_cast<const sockaddr_in6&>(address);
  inet_ntop(AF_INET6, &six.sin6_addr, text, sizeof(text));
  return {absl::StrCat("ipv6:[", text, "]"), ntohs(six.sin6_port)};
}

int BoundPort(int socket) {
  sockaddr_storage address = {};
  socklen_t size = sizeof(address);
  getsockname(socket, reinterpret_cast<sockaddr*>(&address), &size);
  return ntohs(address.ss_family == AF_INET
                   ? reinterpret_cast<const sockaddr_in&>(address).sin_port
                   : reinterpret_cast<const sockaddr_in6&>(address).sin6_port);
}

// -1 when it cannot be.
int ListenAt(const addrinfo& address) {
  const int listener = socket(address.ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (listener < 0) return -1;
  const int on = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  // Of the connections too: a body does not wait until its head has arrived.
  setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  if (bind(listener, address.ai_addr, address.ai_addrlen) == 0 && listen(listener, 128) == 0) {
    return listener;
  }
  close(listener);
  return -1;
}

bool IsProbe(const std::string& path) { return path == "/healthz" || path == "/readyz"; }

// What comes until the first empty line, without that; nothing when the client does not send it.
// Too much is an error.
std::optional<absl::StatusOr<std::string>> ReadHead(HttpStream& stream, absl::Time deadline) {
  constexpr absl::string_view kEnd = "\r\n\r\n";
  std::string text;
  while (text.size() <= kHeadBytesMax) {
    // The end may have begun with what was there before.
    const size_t from = text.size() - std::min(text.size(), kEnd.size() - 1);
    if (!stream.Read(text, deadline)) return std::nullopt;
    if (const size_t end = absl::string_view(text).find(kEnd, from); end != absl::string_view::npos) {
      return text.substr(0, end);
    }
  }
  return absl::ResourceExhaustedError("at most 16 KiB of headers");
}

}  // namespace

absl::Status HttpEndpoint::Listen(const std::string& address) {
  const size_t colon = address.rfind(':');
  int port = -1;
  if (colon == std::string::npos || colon == 0 ||
      !absl::SimpleAtoi(address.substr(colon + 1), &port) || port < 0 || port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", address, "\" is not an address: HOST:PORT is, for example 127.0.0.1:0"));
  }
  std::string host = address.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  addrinfo wanted = {};
  wanted.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  wanted.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), absl::StrCat(port).c_str(), &wanted, &found) != 0) {
    return absl::InvalidArgumentError(absl::StrCat("\"", address, "\": there is no such host"));
  }
  for (const addrinfo* at = found; at != nullptr && listener_ < 0; at = at->ai_next) {
    listener_ = ListenAt(*at);
  }
  freeaddrinfo(found);
  if (listener_ < 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen for HTTP at ", address, ": the port is taken, or not ours"));
  }
  address_ = absl::StrCat(address.substr(0, colon), ":", BoundPort(listener_));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<HttpEndpoint>> HttpEndpoint::Start(
    const std::string& address, Handler handler, std::unique_ptr<ServerTls> tls,
    const HttpEndpointOptions& options) {
  auto endpoint =
      std::unique_ptr<HttpEndpoint>(new HttpEndpoint(std::move(handler), std::move(tls), options));
  RETURN_IF_ERROR(endpoint->Listen(address));
  for (size_t i = 0; i < options.threads; ++i) {
    endpoint->threads_.emplace_back([server = endpoint.get()] { server->Run(); });
  }
  return endpoint;
}

HttpEndpoint::~HttpEndpoint() {
  connections_.Stop();
  // Whoever waits in accept() returns.
  if (listener_ >= 0) shutdown(listener_, SHUT_RDWR);
  for (std::thread& thread : threads_) thread.join();
  if (listener_ >= 0) close(listener_);
}

void HttpEndpoint::Run() {
  // OpenSSL writes to clients that are gone.
  sigset_t pipe;
  sigemptyset(&pipe);
  sigaddset(&pipe, SIGPIPE);
  pthread_sigmask(SIG_BLOCK, &pipe, nullptr);
  while (!connections_.Stopping()) {
    sockaddr_storage address = {};
    socklen_t size = sizeof(address);
    const int socket = accept4(listener_, reinterpret_cast<sockaddr*>(&address), &size,
                               SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (socket < 0) {
      // Out of file descriptors, say: that takes a while to end.
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      continue;
    }
    HttpStream stream(socket);
    const auto [host, port] = PeerOf(address);
    HttpConnections::Place place(connections_, stream, host);
    Serve(stream, place, absl::StrCat(host, ":", port));
  }
}

HttpReply HttpEndpoint::Handle(const HttpRequest& request, HttpConnections::Place& place) const {
  if (request.method != "GET" && request.method != "HEAD") {
    return {.code = 405, .body = "only GET\n", .headers = {{"Allow", "GET, HEAD"}}};
  }
  if (!place.Handle(IsProbe(request.path))) {
    return {.code = 503, .body = "too many requests at the same time\n"};
  }
  HttpReply reply = handler_(request);
  if (reply.body.size() <= kBodyBytesMax) return reply;
  return {.code = 500, .body = "the answer would be larger than 8 MiB\n"};
}

void HttpEndpoint::Serve(HttpStream& stream, HttpConnections::Place& place,
                         const std::string& peer) const {
  // This may wait for a disk.
  auto context = tls_ == nullptr ? nullptr : tls_->Context();
  place.Listen();
  const absl::Time deadline = SteadyNow() + read_time_;
  if (!stream.Start(std::move(context), deadline)) return;
  const auto head = ReadHead(stream, deadline);
  if (!head.has_value()) return;
  HttpReply reply;
  bool head_alone = false;
  if (!head->ok()) {
    reply = {.code = 431, .body = absl::StrCat(head->status().message(), "\n")};
  } else if (auto request = ParseHttpRequest(**head); !request.ok()) {
    reply = {.code = 400, .body = absl::StrCat(request.status().message(), "\n")};
  } else {
    request->peer = peer;
    head_alone = request->method == "HEAD";
    reply = Handle(*request, place);
  }
  place.Answer();
  const absl::Time end = SteadyNow() + kWriteTime;
  // One behind the other, as a large body is there once only.
  if (!stream.Write(HeadOf(reply), end)) return;
  if (!head_alone && !stream.Write(reply.body, end)) return;
  place.Listen();
  stream.Finish(SteadyNow() + kFinishTime);
}

}  // namespace ringmaster
