#include "worker/comm/prove_ring.h"

#include <cstdint>
#include <vector>

#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "worker/comm/ring_hash.h"

namespace ringmaster::worker {

namespace {

struct Greeting {
  int64_t generation = 0;
  int64_t rank = 0;
  // Addresses hold random parts, so equal hashes mean that both belong to one forming of one ring.
  uint64_t ring = 0;
};

}  // namespace

absl::Status ProveRing(attention::GroupedExchange& world, const CommunicatorOptions& options,
                       absl::Span<const std::string> addresses) {
  const Greeting own{
      .generation = options.generation, .rank = options.rank, .ring = RingHash(addresses)};
  std::vector<Greeting> heard(options.world_size);
  std::vector<attention::SendBuffer> sends;
  std::vector<attention::ReceiveBuffer> receives;
  for (int peer = 0; peer < options.world_size; ++peer) {
    if (peer != options.rank) {
      sends.push_back({.peer = peer, .data = &own, .bytes = sizeof(own)});
      receives.push_back({.peer = peer, .data = &heard[peer], .bytes = sizeof(Greeting)});
    }
  }
  ASSIGN_OR_RETURN(const attention::Ticket ticket, world.Start(sends, receives, nullptr));
  RETURN_IF_ERROR(world.Wait(ticket, nullptr));
  for (int peer = 0; peer < options.world_size; ++peer) {
    if (peer != options.rank && (heard[peer].generation != options.generation ||
                                 heard[peer].rank != peer || heard[peer].ring != own.ring)) {
      return absl::FailedPreconditionError(absl::StrFormat(
          "ring generation %d rank %d: who answered as rank %d is rank %d of generation %d%s",
          options.generation, options.rank, peer, heard[peer].rank, heard[peer].generation,
          heard[peer].generation == options.generation ? " with other addresses" : ""));
    }
  }
  return absl::OkStatus();
}

}  // namespace ringmaster::worker
