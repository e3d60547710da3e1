#pragma once

#include <sys/types.h>

#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

struct ssl_ctx_st;
struct ssl_st;

namespace ringmaster {

// A client's connection, under TLS or in the clear. Whatever waits for the client ends at a
// deadline of SteadyNow(). Of one thread, but for Interrupt().
class HttpStream {
 public:
  // Owns `socket`, which must not block.
  explicit HttpStream(int socket);
  ~HttpStream();
  HttpStream(const HttpStream&) = delete;
  HttpStream& operator=(const HttpStream&) = delete;

  // These are false when the client is gone or has not done its part in time: nothing more comes
  // of it. Start() is first. `context`: of TLS, null for none.
  bool Start(std::shared_ptr<ssl_ctx_st> context, absl::Time deadline);
  // Appends some of what the client has sent.
  bool Read(std::string& text, absl::Time deadline);
  bool Write(absl::string_view text, absl::Time deadline);
  // Tells the client that this was all, and waits until it has closed: what it may have sent
  // meanwhile would undo the answer on its way.
  void Finish(absl::Time deadline);

  // Whatever waits ends. Thread-safe.
  void Interrupt();

 private:
  // Of a read, write or handshake that returned `result`, which is no success: waits until it may
  // be tried again. `events`: what it waits for in the clear.
  bool ShallTryAgain(ssize_t result, short events, absl::Time deadline);
  bool WaitFor(short events, absl::Time deadline);

  const int socket_;
  // Of `tls_`.
  std::shared_ptr<ssl_ctx_st> context_;
  std::unique_ptr<ssl_st, void (*)(ssl_st*)> tls_;
};

}  // namespace ringmaster
