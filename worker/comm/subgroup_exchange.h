#pragma once

#include <cstdint>
#include <string>

#include "attention/exchange/exchange.h"

namespace ringmaster::worker {

// The ranks [first, first + size) of another exchange as an exchange of their own: a ring inside
// the world. Ranks are renumbered from 0. `parent` is borrowed and must outlive the view; its own
// rank must lie in the range. Groups of the view and of the parent are started in one order, as if
// they were all the parent's. Abort aborts the parent. Thread-safety as the parent's.
class SubgroupExchange final : public attention::GroupedExchange {
 public:
  SubgroupExchange(attention::GroupedExchange& parent, int first, int size);

  int rank() const override { return parent_.rank() - first_; }
  int size() const override { return size_; }
  absl::StatusOr<attention::Ticket> Start(absl::Span<const attention::SendBuffer> sends,
                                          absl::Span<const attention::ReceiveBuffer> receives,
                                          attention::StreamHandle producer) override;
  absl::Status Wait(attention::Ticket ticket, attention::StreamHandle consumer) override;
  void Abort(const std::string& reason) override;
  // Of this view's groups only.
  uint64_t sent_bytes() const override { return sent_bytes_; }

 private:
  attention::GroupedExchange& parent_;
  int first_;
  int size_;
  uint64_t sent_bytes_ = 0;
};

}  // namespace ringmaster::worker
