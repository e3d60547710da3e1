#pragma once

#include <atomic>

#include "base/http/http_endpoint.h"
#include "coordinator/services/call.h"
#include "coordinator/services/page_source.h"

namespace ringmaster::coordinator {

// What the coordinator answers by HTTP: /healthz and /readyz to everybody, all else to whom a
// viewer's token allows it, where tokens are asked for. What a token, or the lack of one, does not
// allow is written down. Thread-safe.
class HttpService {
 public:
  // `local_names_only`: pages are for who asks for them by a name of loopback. Without tokens a
  // browser would show them to any site whose name leads there (DNS rebinding).
  HttpService(const ServiceContext& services, bool local_names_only)
      : services_(services), pages_(services), local_names_only_(local_names_only) {}

  HttpReply Answer(const HttpRequest& request) const;

  // /readyz says no from now on.
  void Drain() { draining_ = true; }

 private:
  HttpReply Healthz() const;
  HttpReply Readyz() const;

  const ServiceContext services_;
  const PageSource pages_;
  const bool local_names_only_;
  std::atomic<bool> draining_ = false;
};

}  // namespace ringmaster::coordinator
