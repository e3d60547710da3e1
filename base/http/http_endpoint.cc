#include "base/http/http_endpoint.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstring>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/http/http_stream.h"
#include "base/status_macros.h"
#include "base/steady_now.h"

namespace ringmaster {
namespace {

constexpr size_t kHeadBytesMax = 16 << 10;
// For the handshake and the request together.
constexpr absl::Duration kReadTime = absl::Seconds(5);
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

std::string PeerName(const sockaddr_storage& address) {
  char text[INET6_ADDRSTRLEN] = {};
  if (address.ss_family == AF_INET) {
    const auto& four = reinterpret_cast<const sockaddr_in&>(address);
    inet_ntop(AF_INET, &four.sin_addr, text, sizeof(text));
    return absl::StrCat("ipv4:", text, ":", ntohs(four.sin_port));
  }
  const auto& six = reinterpret_cast<const sockaddr_in6&>(address);
  inet_ntop(AF_INET6, &six.sin6_addr, text, sizeof(text));
  return absl::StrCat("ipv6:[", text, "]:", ntohs(six.sin6_port));
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
  if (bind(listener, address.ai_addr, address.ai_addrlen) == 0 && listen(listener, 128) == 0) {
    return listener;
  }
  close(listener);
  return -1;
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

absl::StatusOr<std::unique_ptr<HttpEndpoint>> HttpEndpoint::Start(const std::string& address,
                                                                  Handler handler,
                                                                  std::unique_ptr<ServerTls> tls) {
  auto endpoint =
      std::unique_ptr<HttpEndpoint>(new HttpEndpoint(std::move(handler), std::move(tls)));
  RETURN_IF_ERROR(endpoint->Listen(address));
  for (int i = 0; i < kThreads; ++i) {
    endpoint->threads_.emplace_back([server = endpoint.get()] { server->Run(); });
  }
  return endpoint;
}

HttpEndpoint::~HttpEndpoint() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    for (HttpStream* stream : streams_) stream->Interrupt();
  }
  // Whoever waits in accept() returns.
  if (listener_ >= 0) shutdown(listener_, SHUT_RDWR);
  for (std::thread& thread : threads_) thread.join();
  if (listener_ >= 0) close(listener_);
}

bool HttpEndpoint::Stopping() const {
  const std::lock_guard lock(mutex_);
  return stopping_;
}

void HttpEndpoint::Run() {
  // OpenSSL writes to clients that are gone.
  sigset_t pipe;
  sigemptyset(&pipe);
  sigaddset(&pipe, SIGPIPE);
  pthread_sigmask(SIG_BLOCK, &pipe, nullptr);
  while (!Stopping()) {
    sockaddr_storage peer = {};
    socklen_t size = sizeof(peer);
    const int socket =
        accept4(listener_, reinterpret_cast<sockaddr*>(&peer), &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (socket < 0) {
      // Out of file descriptors, say: that takes a while to end.
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      continue;
    }
    HttpStream stream(socket, tls_ == nullptr ? nullptr : tls_->Context());
    std::list<HttpStream*>::iterator place;
    {
      const std::lock_guard lock(mutex_);
      place = streams_.insert(streams_.end(), &stream);
      if (stopping_) stream.Interrupt();
      if (streams_.size() == kThreads) streams_.front()->Interrupt();
    }
    Serve(stream, PeerName(peer));
    const std::lock_guard lock(mutex_);
    streams_.erase(place);
  }
}

void HttpEndpoint::Serve(HttpStream& stream, const std::string& peer) const {
  const absl::Time deadline = SteadyNow() + kReadTime;
  if (!stream.Start(deadline)) return;
  std::string text;
  size_t end = std::string::npos;
  while ((end = text.find("\r\n\r\n")) == std::string::npos && text.size() <= kHeadBytesMax) {
    if (!stream.Read(text, deadline)) return;
  }
  HttpReply reply;
  absl::StatusOr<HttpRequest> request = absl::InvalidArgumentError("the request is too large");
  if (end == std::string::npos) {
    reply = {.code = 431, .body = "at most 16 KiB of headers\n"};
  } else if (request = ParseHttpRequest(text.substr(0, end)); !request.ok()) {
    reply = {.code = 400, .body = absl::StrCat(request.status().message(), "\n")};
  } else if (request->method != "GET" && request->method != "HEAD") {
    reply = {.code = 405, .body = "only GET\n", .headers = {{"Allow", "GET, HEAD"}}};
  } else {
    request->peer = peer;
    reply = handler_(*request);
  }
  const bool head_alone = request.ok() && request->method == "HEAD";
  if (stream.Write(absl::StrCat(HeadOf(reply), head_alone ? "" : reply.body),
                   SteadyNow() + kWriteTime)) {
    stream.Finish(SteadyNow() + kFinishTime);
  }
}

}  // namespace ringmaster
