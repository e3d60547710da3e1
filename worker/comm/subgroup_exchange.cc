#include "worker/comm/subgroup_exchange.h"

#include <cstdlib>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "spdlog/spdlog.h"

namespace ringmaster::worker {

SubgroupExchange::SubgroupExchange(attention::GroupedExchange& parent, int first, int size)
    : parent_(parent), first_(first), size_(size) {
  if (size < 1 || first < 0 || first + size > parent.size() || rank() < 0 || rank() >= size) {
    SPDLOG_CRITICAL("rank {} of {} cannot view ranks [{}, {}) as a group", parent.rank(),
                    parent.size(), first, first + size);
    std::abort();
  }
}

absl::StatusOr<attention::Ticket> SubgroupExchange::Start(
    absl::Span<const attention::SendBuffer> sends,
    absl::Span<const attention::ReceiveBuffer> receives, attention::StreamHandle producer) {
  // A peer outside [0, size) must not reach the parent as somebody else's rank.
  const auto shifted = [this](auto messages) {
    for (auto& message : messages) {
      message.peer = message.peer >= 0 && message.peer < size_ ? message.peer + first_ : -1;
    }
    return messages;
  };
  auto ticket = parent_.Start(
      shifted(std::vector<attention::SendBuffer>(sends.begin(), sends.end())),
      shifted(std::vector<attention::ReceiveBuffer>(receives.begin(), receives.end())), producer);
  if (ticket.ok()) {
    for (const attention::SendBuffer& send : sends) {
      sent_bytes_ += send.bytes;
    }
  }
  return ticket;
}

absl::Status SubgroupExchange::Wait(attention::Ticket ticket, attention::StreamHandle consumer) {
  return parent_.Wait(ticket, consumer);
}

void SubgroupExchange::Abort(const std::string& reason) { parent_.Abort(reason); }

}  // namespace ringmaster::worker
