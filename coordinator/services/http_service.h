#pragma once

#include <atomic>

#include "base/http/http_endpoint.h"
#include "coordinator/services/call.h"
#include "coordinator/services/page_source.h"

namespace ringmaster::coordinator {

// What the coordinator answers by HTTP: /healthz and /readyz to everybody, all else to whom a
// viewer's token allows it, where tokens are asked for. Refusals are written down. Thread-safe.
class HttpService {
 public:
  explicit HttpService(const ServiceContext& services) : services_(services), pages_(services) {}

  HttpReply Answer(const HttpRequest& request) const;

  // /readyz says no from now on.
  void Drain() { draining_ = true; }

 private:
  HttpReply Healthz() const;
  HttpReply Readyz() const;

  const ServiceContext services_;
  const PageSource pages_;
  std::atomic<bool> draining_ = false;
};

}  // namespace ringmaster::coordinator
