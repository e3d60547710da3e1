#include <atomic>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "tests/worker/comm/conformance_scenarios.h"
#include "tests/worker/comm/message_group.h"
#include "worker/comm/accused_ranks.h"

namespace ringmaster::worker {
namespace {

// Of two ranks, the survivor knows who did it; of more, one may see another survivor give up first.
// NCCL does not tell.
absl::Status ExpectAccusesLast(const Rank& rank, const absl::Status& status) {
  if (rank.size() == 2 && rank.transport() != "nccl") {
    CHECK_OR_RETURN(AccusedRanks(status) == std::vector<int>{1}, status.ToString());
  }
  return absl::OkStatus();
}

// Groups with the rank that will go, until an error comes.
absl::Status UntilError(Rank& rank, Communicator& ring) {
  for (int round = 0; round < 1000000; ++round) {
    if (absl::Status status = AroundTheRing(rank, ring, round, 200000); !status.ok()) {
      return status;
    }
  }
  return absl::OkStatus();
}

absl::Status KilledPeer(Rank& rank) {
  ASSIGN_OR_RETURN(auto ring, rank.Form(1, kLong));
  if (rank.last()) {
    for (int round = 0; round < 5; ++round) {
      RETURN_IF_ERROR(AroundTheRing(rank, *ring, round, 200000));
    }
    rank.Die(1);
    return absl::OkStatus();
  }
  const absl::Status status = UntilError(rank, *ring);
  rank.Get(absl::StrCat("gone/", rank.size() - 1));
  RETURN_IF_ERROR(ExpectCode(status, absl::StatusCode::kUnavailable));
  return ExpectUseless(*ring, absl::StatusCode::kUnavailable);
}

// The survivor waits and has nothing to send that could fail.
absl::Status KilledWhileWaiting(Rank& rank) {
  ASSIGN_OR_RETURN(auto ring, rank.Form(1, kLong));
  if (rank.last()) {
    for (int other = 0; other + 1 < rank.size(); ++other) {
      rank.Get(absl::StrCat("waiting/", other));
    }
    rank.Die(1);
    return absl::OkStatus();
  }
  Group group(rank);
  group.Receive(rank.size() - 1, 0, 1 << 20);
  RETURN_IF_ERROR(group.Start(*ring));
  rank.Put(absl::StrCat("waiting/", rank.rank()));
  absl::Status status = group.Wait(*ring);
  status.Update(ring->Settle());
  RETURN_IF_ERROR(ExpectCode(status, absl::StatusCode::kUnavailable));
  RETURN_IF_ERROR(ExpectAccusesLast(rank, status));
  return ExpectUseless(*ring, absl::StatusCode::kUnavailable);
}

// The last rank is alive but does nothing. Its neighbours run into the hop deadline; who hears of
// that first is told that a peer is gone.
absl::Status StalledPeer(Rank& rank) {
  ASSIGN_OR_RETURN(auto ring, rank.Form(1, rank.last() ? kLong : kShort));
  if (rank.last()) {
    for (int other = 0; other + 1 < rank.size(); ++other) {
      rank.Get(absl::StrCat("told/", other));
    }
    return absl::OkStatus();
  }
  Group group(rank);
  group.Receive(rank.size() - 1, 0, 1 << 20);
  RETURN_IF_ERROR(group.Start(*ring));
  absl::Status status = group.Wait(*ring);
  if (rank.memory().copy != nullptr) {
    group.AwaitDevice();
  }
  status.Update(ring->Settle());
  rank.Put(absl::StrCat("told/", rank.rank()));
  if (rank.size() > 2 && absl::IsUnavailable(status)) {
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(ExpectCode(status, absl::StatusCode::kDeadlineExceeded));
  RETURN_IF_ERROR(ExpectAccusesLast(rank, status));
  return ExpectUseless(*ring, absl::StatusCode::kDeadlineExceeded);
}

absl::Status AbortWhileWaiting(Rank& rank) {
  ASSIGN_OR_RETURN(auto ring, rank.Form(1, kLong));
  Group group(rank);
  group.Receive(rank.previous(), 0, 1 << 20);
  RETURN_IF_ERROR(group.Start(*ring));
  rank.Swap("waiting", "x");
  std::vector<std::thread> aborters;
  if (rank.rank() == 0) {
    for (int index = 0; index < 3; ++index) {
      aborters.emplace_back([&ring] { ring->Abort("the job was cancelled"); });
    }
  }
  absl::Status status = group.Wait(*ring);
  status.Update(ring->Settle());
  for (std::thread& aborter : aborters) {
    aborter.join();
  }
  const auto code = rank.rank() == 0 ? absl::StatusCode::kAborted : absl::StatusCode::kUnavailable;
  RETURN_IF_ERROR(ExpectCode(status, code));
  if (rank.rank() == 0) {
    CHECK_OR_RETURN(absl::StrContains(status.message(), "the job was cancelled"), status.message());
  }
  return ExpectUseless(*ring, code);
}

absl::Status AbortAtAnyMoment(Rank& rank) {
  const CommunicatorOptions options = {
      .generation = 1, .rank = rank.rank(), .world_size = rank.size(), .hop_deadline = kLong};
  {
    ASSIGN_OR_RETURN(auto unused, rank.Open(options));  // destroyed before it connects
  }
  {
    CommunicatorOptions second = options;
    second.generation = 2;
    ASSIGN_OR_RETURN(auto ring, rank.Open(second));
    const auto addresses = rank.Swap("second", ring->address());
    ring->Abort("before Connect");
    const absl::Status status = ring->Connect(addresses, kLong);
    // The peer aborts as well, and may be first.
    CHECK_OR_RETURN(absl::IsAborted(status) || absl::IsUnavailable(status), status.ToString());
    RETURN_IF_ERROR(ExpectUseless(*ring, status.code()));
    rank.Swap("second done", "x");
  }
  {
    CommunicatorOptions third = options;
    third.generation = 3;
    ASSIGN_OR_RETURN(auto ring, rank.Open(third));
    const auto addresses = rank.Swap("third", ring->address());
    if (!rank.last()) {  // the last rank never comes
      std::thread aborter([&ring] { ring->Abort("while connecting"); });
      const absl::Status status = ring->Connect(addresses, kLong);
      aborter.join();
      CHECK_OR_RETURN(absl::IsAborted(status) || absl::IsUnavailable(status), status.ToString());
    }
    rank.Swap("third-done", "x");
  }
  {
    ASSIGN_OR_RETURN(auto ring, rank.Form(4, kLong));
    RETURN_IF_ERROR(ring->Close());
    ring->Abort("after Close");
    ring->Abort("and again");
  }
  return absl::OkStatus();
}

// Groups are thrown at a ring that another thread takes down: no crash, no hang, one error.
absl::Status AbortInFullSwing(Rank& rank) {
  for (int generation = 1; generation <= 3; ++generation) {
    ASSIGN_OR_RETURN(auto ring, rank.Form(generation, kLong));
    std::atomic<int> rounds = 0;
    std::thread aborter;
    if (rank.rank() == generation % rank.size()) {
      aborter = std::thread([&] {
        while (rounds < 20 * generation) {
          std::this_thread::yield();
        }
        ring->Abort("in full swing");
      });
    }
    absl::Status status;
    while (status.ok()) {
      status = AroundTheRing(rank, *ring, rounds++, 50000);
    }
    if (aborter.joinable()) {
      aborter.join();
    }
    CHECK_OR_RETURN(absl::IsAborted(status) || absl::IsUnavailable(status), status.ToString());
    RETURN_IF_ERROR(ExpectUseless(*ring, status.code()));
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<Scenario> BreakingScenarios() {
  return {
      {"KilledPeerOfTwo", 2, KilledPeer},
      {"KilledPeerOfFour", 4, KilledPeer},
      {"KilledWhileWaiting", 3, KilledWhileWaiting},
      {"StalledPeerOfTwo", 2, StalledPeer},
      {"StalledPeerOfThree", 3, StalledPeer},
      {"AbortWhileWaiting", 3, AbortWhileWaiting},
      {"AbortAtAnyMoment", 2, AbortAtAnyMoment},
      {"AbortInFullSwing", 3, AbortInFullSwing},
  };
}

}  // namespace ringmaster::worker
