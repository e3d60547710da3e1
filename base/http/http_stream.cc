#include "base/http/http_stream.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/steady_now.h"

namespace ringmaster {
namespace {

constexpr size_t kBlockBytes = 4096;
// Of what comes after the request.
constexpr size_t kDroppedBytesMax = 1 << 16;

}  // namespace

HttpStream::HttpStream(int socket) : socket_(socket), tls_(nullptr, SSL_free) {}

HttpStream::~HttpStream() { close(socket_); }

void HttpStream::Interrupt() { shutdown(socket_, SHUT_RDWR); }

bool HttpStream::WaitFor(short events, absl::Time deadline) {
  const int64_t left = absl::ToInt64Milliseconds(deadline - SteadyNow());
  if (left <= 0) return false;
  pollfd poll_for = {.fd = socket_, .events = events, .revents = 0};
  const int ready = poll(&poll_for, 1, static_cast<int>(std::min<int64_t>(left, 60'000)));
  return ready > 0 || (ready < 0 && errno == EINTR);
}

bool HttpStream::ShallTryAgain(ssize_t result, short events, absl::Time deadline) {
  if (tls_ == nullptr) {
    return result < 0 && (errno == EAGAIN || errno == EINTR) && WaitFor(events, deadline);
  }
  const int error = SSL_get_error(tls_.get(), static_cast<int>(result));
  // Each of them may wait for the other direction.
  if (error == SSL_ERROR_WANT_READ) return WaitFor(POLLIN, deadline);
  return error == SSL_ERROR_WANT_WRITE && WaitFor(POLLOUT, deadline);
}

bool HttpStream::Start(std::shared_ptr<SSL_CTX> context, absl::Time deadline) {
  if (context == nullptr) return true;
  context_ = std::move(context);
  tls_.reset(SSL_new(context_.get()));
  if (tls_ == nullptr || SSL_set_fd(tls_.get(), socket_) != 1) return false;
  for (;;) {
    // What another call has left would be taken for this one's error.
    ERR_clear_error();
    const int done = SSL_accept(tls_.get());
    if (done == 1) return true;
    if (!ShallTryAgain(done, POLLIN, deadline)) return false;
  }
}

bool HttpStream::Read(std::string& text, absl::Time deadline) {
  // Who sends without a pause is never waited for.
  while (SteadyNow() < deadline) {
    char block[kBlockBytes];
    ERR_clear_error();
    const ssize_t count = tls_ == nullptr ? recv(socket_, block, sizeof(block), 0)
                                          : SSL_read(tls_.get(), block, sizeof(block));
    if (count > 0) {
      text.append(block, count);
      return true;
    }
    if (!ShallTryAgain(count, POLLIN, deadline)) return false;
  }
  return false;
}

bool HttpStream::Write(absl::string_view text, absl::Time deadline) {
  while (!text.empty()) {
    ERR_clear_error();
    const ssize_t count = tls_ == nullptr
                              ? send(socket_, text.data(), text.size(), MSG_NOSIGNAL)
                              : SSL_write(tls_.get(), text.data(), static_cast<int>(text.size()));
    if (count > 0) {
      text.remove_prefix(count);
    } else if (!ShallTryAgain(count, POLLOUT, deadline)) {
      return false;
    }
  }
  return true;
}

void HttpStream::Finish(absl::Time deadline) {
  ERR_clear_error();
  if (tls_ != nullptr) SSL_shutdown(tls_.get());
  shutdown(socket_, SHUT_WR);
  char block[kBlockBytes];
  for (size_t count = 0; count < kDroppedBytesMax && WaitFor(POLLIN, deadline);) {
    const ssize_t more = recv(socket_, block, sizeof(block), 0);
    if (more == 0 || (more < 0 && errno != EAGAIN && errno != EINTR)) return;
    count += std::max<ssize_t>(more, 0);
  }
}

}  // namespace ringmaster
