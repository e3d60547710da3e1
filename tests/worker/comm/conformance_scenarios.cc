#include "tests/worker/comm/conformance_scenarios.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "tests/worker/comm/message_group.h"

namespace ringmaster::worker {
namespace {

absl::Status EverySize(Rank& rank) {
  ASSIGN_OR_RETURN(const auto ring, rank.Form(1, kLong));
  const std::vector<size_t> sizes = {0,  1,    2,    3,     7,         8, 63, 64,
                                     65, 4095, 8192, 65537, (1 << 20), 0, 5,  (4 << 20) + 3};
  uint64_t sent = 0;
  Group all(rank);
  for (size_t index = 0; index < sizes.size(); ++index) {
    const int sequence = static_cast<int>(index);
    RETURN_IF_ERROR(AroundTheRing(rank, *ring, sequence, sizes[index]));
    for (int peer = 0; peer < rank.size(); ++peer) {
      if (peer != rank.rank()) {
        all.Send(peer, sequence, sizes[index]);
        all.Receive(peer, sequence, sizes[index]);
        sent += sizes[index];
      }
    }
    sent += sizes[index];
  }
  RETURN_IF_ERROR(all.Run(*ring));
  CHECK_OR_RETURN(ring->world().sent_bytes() == sent, ring->world().sent_bytes(),
                  " bytes counted, ", sent, " sent");
  return ring->Close();
}

// Many groups in flight, waited for in the opposite order; sizes change which protocol a transport
// takes.
absl::Status OrderOfAPair(Rank& rank) {
  ASSIGN_OR_RETURN(const auto ring, rank.Form(1, kLong));
  std::vector<std::unique_ptr<Group>> groups;
  for (int sequence = 0; sequence < 40; ++sequence) {
    auto& group = groups.emplace_back(std::make_unique<Group>(rank));
    for (int peer = 0; peer < rank.size(); ++peer) {
      if (peer != rank.rank()) {
        const size_t bytes = sequence % 3 == 0 ? 300000 : sequence % 3 == 1 ? 9 : 20000;
        group->Send(peer, 2 * sequence, bytes);
        group->Receive(peer, 2 * sequence, bytes);
        group->Send(peer, 2 * sequence + 1, bytes / 2);
        group->Receive(peer, 2 * sequence + 1, bytes / 2);
      }
    }
    RETURN_IF_ERROR(group->Start(*ring));
  }
  for (auto group = groups.rbegin(); group != groups.rend(); ++group) {
    RETURN_IF_ERROR((*group)->Wait(*ring));
  }
  RETURN_IF_ERROR(ring->Settle());
  for (const auto& group : groups) {
    RETURN_IF_ERROR(group->Check());
  }
  return ring->Close();
}

// Pairs meet in different groups, and one pair's messages do not wait for another's.
absl::Status InterleavedPairs(Rank& rank) {
  ASSIGN_OR_RETURN(const auto ring, rank.Form(1, kLong));
  for (int round = 0; round < 10; ++round) {
    // 0 <-> 1, then 1 <-> 2, then 2 <-> 0.
    std::vector<std::unique_ptr<Group>> groups;
    for (const auto& [low, high] : {std::pair(0, 1), std::pair(1, 2), std::pair(0, 2)}) {
      if (rank.rank() == low || rank.rank() == high) {
        const int peer = rank.rank() == low ? high : low;
        auto& group = groups.emplace_back(std::make_unique<Group>(rank));
        group->Send(peer, round, 1000 * round + 1);
        group->Receive(peer, round, 1000 * round + 1);
        RETURN_IF_ERROR(group->Start(*ring));
      }
    }
    for (const auto& group : groups) {
      RETURN_IF_ERROR(group->Wait(*ring));
    }
    RETURN_IF_ERROR(ring->Settle());
    for (const auto& group : groups) {
      RETURN_IF_ERROR(group->Check());
    }
  }
  return ring->Close();
}

absl::Status OneRank(Rank& rank) {
  ASSIGN_OR_RETURN(const auto ring, rank.Form(1, kLong));
  Group nothing(rank);
  RETURN_IF_ERROR(nothing.Run(*ring));
  CHECK_OR_RETURN(ring->world().rank() == 0 && ring->world().size() == 1);
  CHECK_OR_RETURN(ring->world().sent_bytes() == 0);
  return ring->Close();
}

absl::Status ImpossibleMessages(Rank& rank) {
  ASSIGN_OR_RETURN(const auto ring, rank.Form(1, kLong));
  char byte = 0;
  auto& world = ring->world();
  for (const int peer : {-1, rank.rank(), rank.size()}) {
    RETURN_IF_ERROR(ExpectCode(world.Start({{peer, &byte, 1}}, {}, nullptr).status(),
                               absl::StatusCode::kInvalidArgument));
    RETURN_IF_ERROR(ExpectCode(world.Start({}, {{peer, &byte, 1}}, nullptr).status(),
                               absl::StatusCode::kInvalidArgument));
  }
  // A refused group changes nothing.
  CHECK_OR_RETURN(world.sent_bytes() == 0);
  RETURN_IF_ERROR(AroundTheRing(rank, *ring, 0, 100));
  return ring->Close();
}

// The last message before Close arrives, however late the receiver asks for it.
absl::Status CloseLosesNothing(Rank& rank) {
  for (int generation = 1; generation <= 5; ++generation) {
    ASSIGN_OR_RETURN(const auto ring, rank.Form(generation, kLong));
    RETURN_IF_ERROR(AroundTheRing(rank, *ring, generation, (1 << 20) + generation));
    RETURN_IF_ERROR(ring->Close());
    RETURN_IF_ERROR(ExpectCode(ring->Settle(), absl::StatusCode::kFailedPrecondition));
    RETURN_IF_ERROR(ring->AwaitReleased(absl::Seconds(20)));
  }
  return absl::OkStatus();
}

absl::Status DisagreeingSizes(Rank& rank) {
  for (const bool truncated : {true, false}) {
    ASSIGN_OR_RETURN(auto ring, rank.Form(truncated ? 1 : 2, kLong));
    Group group(rank);
    if (rank.rank() == 0) {
      group.Send(1, 0, truncated ? 1000 : 100);
    } else {
      group.Receive(0, 0, truncated ? 100 : 1000);
    }
    absl::Status status = group.Start(*ring);
    status.Update(group.Wait(*ring));
    if (rank.rank() == 1) {
      RETURN_IF_ERROR(ExpectCode(status, absl::StatusCode::kFailedPrecondition));
    }
    rank.Swap(absl::StrCat("told/", truncated), "x");
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<Scenario> ConformanceScenarios() {
  std::vector<Scenario> all = {
      {"EverySizeOfTwo", 2, EverySize},
      {"EverySizeOfThree", 3, EverySize},
      {"OrderOfAPair", 3, OrderOfAPair},
      {"InterleavedPairs", 3, InterleavedPairs},
      {"OneRank", 1, OneRank},
      {"ImpossibleMessages", 2, ImpossibleMessages},
      {"CloseLosesNothing", 3, CloseLosesNothing},
      {"DisagreeingSizes", 2, DisagreeingSizes, {"in-process", "ucx"}},
  };
  for (const auto& more : {FormingScenarios(), BreakingScenarios()}) {
    all.insert(all.end(), more.begin(), more.end());
  }
  return all;
}

}  // namespace ringmaster::worker
