#include "tests/attention/disordered_exchange.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <set>

#include "base/status_macros.h"

namespace ringmaster::attention {
namespace {

constexpr int kNoise = 0xff;  // not a number in any floating type

}  // namespace

absl::StatusOr<Ticket> DisorderedExchange::Start(absl::Span<const SendBuffer> sends,
                                                 absl::Span<const ReceiveBuffer> receives,
                                                 StreamHandle /*producer*/) {
  Group group{.id = next_id_++, .sends = {sends.begin(), sends.end()}};
  for (const ReceiveBuffer& to : receives) {
    if (to.bytes > 0) std::memset(to.data, kNoise, to.bytes);
    group.arrivals.push_back({to, std::vector<std::byte>(to.bytes)});
  }
  groups_.push_back(std::move(group));
  const Ticket ticket{groups_.back().id};
  if (random_() % 2 == 0) RETURN_IF_ERROR(BeginUpTo(ticket.id));
  return ticket;
}

absl::Status DisorderedExchange::Wait(Ticket ticket, StreamHandle /*consumer*/) {
  RETURN_IF_ERROR(BeginUpTo(ticket.id));
  const auto group = std::ranges::find(groups_, ticket.id, &Group::id);
  std::shuffle(group->tickets.begin(), group->tickets.end(), random_);
  for (const Ticket& of_peer : group->tickets) {
    RETURN_IF_ERROR(beneath_->Wait(of_peer, nullptr));
  }
  std::shuffle(group->arrivals.begin(), group->arrivals.end(), random_);
  for (const Arrival& arrival : group->arrivals) {
    if (arrival.to.bytes > 0) {
      std::memcpy(arrival.to.data, arrival.bytes.data(), arrival.to.bytes);
    }
  }
  groups_.erase(group);
  return absl::OkStatus();
}

std::vector<int> DisorderedExchange::PeersInAnyOrder(const Group& group) {
  std::set<int> peers;
  for (const SendBuffer& send : group.sends) peers.insert(send.peer);
  for (const Arrival& arrival : group.arrivals) peers.insert(arrival.to.peer);
  std::vector<int> order(peers.begin(), peers.end());
  std::shuffle(order.begin(), order.end(), random_);
  return order;
}

absl::Status DisorderedExchange::BeginUpTo(uint64_t id) {
  for (Group& group : groups_) {
    if (group.id <= id && !group.begun) RETURN_IF_ERROR(Begin(&group));
  }
  return absl::OkStatus();
}

absl::Status DisorderedExchange::Begin(Group* group) {
  group->begun = true;
  for (const int peer : PeersInAnyOrder(*group)) {
    std::vector<SendBuffer> sends;
    std::ranges::copy_if(group->sends, std::back_inserter(sends),
                         [peer](const SendBuffer& send) { return send.peer == peer; });
    std::vector<ReceiveBuffer> receives;
    for (Arrival& arrival : group->arrivals) {
      if (arrival.to.peer == peer) {
        receives.push_back({peer, arrival.bytes.data(), arrival.bytes.size()});
      }
    }
    ASSIGN_OR_RETURN(const Ticket ticket, beneath_->Start(sends, receives, nullptr));
    group->tickets.push_back(ticket);
  }
  return absl::OkStatus();
}

}  // namespace ringmaster::attention
