#pragma once

#include "absl/status/status.h"
#include "ringmaster/v1/worker_service.pb.h"

namespace ringmaster::coordinator {

// Where one Session call's directives go. Called on the loop's thread; must not block, and of the
// loop it may call CloseStream() only.
class DirectiveSink {
 public:
  virtual ~DirectiveSink() = default;
  virtual void Send(v1::Directive directive) = 0;
  // After what was sent before.
  virtual void Close(const absl::Status& status) = 0;
};

}  // namespace ringmaster::coordinator
