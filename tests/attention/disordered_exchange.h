#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <random>
#include <vector>

#include "attention/exchange/exchange.h"

namespace ringmaster::attention {

// What a transport may do and the in-process one never does: a group's messages travel peer by
// peer, in any order; some groups are not begun before they are waited for, so that sends are read
// late, others at once; and what arrives is put into its buffers, which hold noise until then, last
// of all and in any order. Of host memory. Thread-compatible; borrows the exchange beneath.
class DisorderedExchange : public GroupedExchange {
 public:
  // The same seed gives the same disorder.
  DisorderedExchange(GroupedExchange* beneath, uint64_t seed) : beneath_(beneath), random_(seed) {}

  int rank() const override { return beneath_->rank(); }
  int size() const override { return beneath_->size(); }
  absl::StatusOr<Ticket> Start(absl::Span<const SendBuffer> sends,
                               absl::Span<const ReceiveBuffer> receives,
                               StreamHandle producer) override;
  absl::Status Wait(Ticket ticket, StreamHandle consumer) override;
  void Abort(const std::string& reason) override { beneath_->Abort(reason); }
  uint64_t sent_bytes() const override { return beneath_->sent_bytes(); }

 private:
  struct Arrival {
    ReceiveBuffer to;
    std::vector<std::byte> bytes;
  };
  struct Group {
    uint64_t id;
    std::vector<SendBuffer> sends;
    std::vector<Arrival> arrivals;
    std::vector<Ticket> tickets;  // one of each peer, once begun
    bool begun = false;
  };

  std::vector<int> PeersInAnyOrder(const Group& group);
  // Of the groups not begun yet, in their order: a pair's messages keep it.
  absl::Status BeginUpTo(uint64_t id);
  absl::Status Begin(Group* group);

  GroupedExchange* beneath_;
  std::mt19937_64 random_;
  uint64_t next_id_ = 1;
  std::list<Group> groups_;  // not waited for
};

}  // namespace ringmaster::attention
