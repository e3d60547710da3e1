#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/synchronization/notification.h"
#include "base/status_macros.h"
#include "tests/worker/comm/conformance_scenarios.h"
#include "tests/worker/comm/message_group.h"

namespace ringmaster::worker {
namespace {

// The hop deadline does not run while ranks connect.
absl::Status LateJoiner(Rank& rank) {
  const CommunicatorOptions options = {.generation = 1,
                                       .rank = rank.rank(),
                                       .world_size = rank.size(),
                                       .hop_deadline = absl::Seconds(1)};
  ASSIGN_OR_RETURN(auto ring, rank.Open(options));
  const auto addresses = rank.Swap("address", ring->address());
  if (rank.last()) {
    for (int other = 0; other + 1 < rank.size(); ++other) {
      rank.Get(absl::StrCat("connecting/", other));
    }
    // Lateness is what is tested here.
    absl::Notification().WaitForNotificationWithTimeout(absl::Milliseconds(1500));
  } else {
    rank.Put(absl::StrCat("connecting/", rank.rank()));
  }
  RETURN_IF_ERROR(ring->Connect(addresses, kLong));
  RETURN_IF_ERROR(AroundTheRing(rank, *ring, 0, 1000));
  return ring->Close();
}

absl::Status MissingJoiner(Rank& rank) {
  const CommunicatorOptions options = {
      .generation = 1, .rank = rank.rank(), .world_size = rank.size(), .hop_deadline = kLong};
  ASSIGN_OR_RETURN(auto ring, rank.Open(options));
  const auto addresses = rank.Swap("address", ring->address());
  if (!rank.last()) {
    const absl::Status status = ring->Connect(addresses, kShort);
    rank.Put(absl::StrCat("told/", rank.rank()));
    if (rank.size() > 2 && absl::IsUnavailable(status)) {
      return absl::OkStatus();
    }
    RETURN_IF_ERROR(ExpectCode(status, absl::StatusCode::kDeadlineExceeded));
    return ExpectUseless(*ring, absl::StatusCode::kDeadlineExceeded);
  }
  for (int other = 0; other + 1 < rank.size(); ++other) {
    rank.Get(absl::StrCat("told/", other));
  }
  return absl::OkStatus();
}

absl::Status WrongGeneration(Rank& rank) {
  const CommunicatorOptions options = {.generation = rank.last() ? 8 : 7,
                                       .rank = rank.rank(),
                                       .world_size = rank.size(),
                                       .hop_deadline = kLong};
  ASSIGN_OR_RETURN(auto ring, rank.Open(options));
  const auto addresses = rank.Swap("address", ring->address());
  RETURN_IF_ERROR(
      ExpectCode(ring->Connect(addresses, kLong), absl::StatusCode::kFailedPrecondition));
  return ExpectUseless(*ring, absl::StatusCode::kFailedPrecondition);
}

// A rank of another generation that dials all the same: refused by who listens, whose own ring is
// not disturbed.
absl::Status Impostor(Rank& rank) {
  const int64_t generation = rank.last() ? 8 : 7;
  const CommunicatorOptions options = {.generation = generation,
                                       .rank = rank.last() ? 1 : rank.rank(),
                                       .world_size = 2,
                                       .hop_deadline = kLong};
  ASSIGN_OR_RETURN(auto ring, rank.Open(options));
  auto addresses = rank.Swap("address", ring->address());
  if (rank.last()) {
    const std::string forged =
        absl::StrReplaceAll(addresses[0], {{absl::StrCat("/7/"), absl::StrCat("/8/")}});
    const absl::Status refused = ring->Connect({forged, ring->address()}, kLong);
    rank.Put("refused");
    RETURN_IF_ERROR(ExpectCode(refused, absl::StatusCode::kFailedPrecondition));
    return ExpectUseless(*ring, absl::StatusCode::kFailedPrecondition);
  }
  rank.Get("refused");
  addresses.pop_back();
  RETURN_IF_ERROR(ring->Connect(addresses, kLong));
  return ring->Close();
}

// What recovery does: abandon, and form anew with one rank fewer, several times in one process.
absl::Status Reform(Rank& rank) {
  for (int generation = 1; generation <= 4; ++generation) {
    ASSIGN_OR_RETURN(auto ring, rank.Form(generation, kLong));
    RETURN_IF_ERROR(AroundTheRing(rank, *ring, generation, 100000));
    Group lost(rank);
    lost.Receive(rank.previous(), 0, 1 << 20);
    RETURN_IF_ERROR(lost.Start(*ring));
    // Nobody goes before all are through with the round above.
    rank.Swap(absl::StrCat("through/", generation), "x");
    ring->Abort("the coordinator says so");
    RETURN_IF_ERROR(ring->AwaitReleased(absl::Seconds(30)));
  }
  ASSIGN_OR_RETURN(auto ring, rank.Form(5, kLong));
  RETURN_IF_ERROR(AroundTheRing(rank, *ring, 5, 100000));
  return ring->Close();
}

}  // namespace

std::vector<Scenario> FormingScenarios() {
  return {
      {"LateJoiner", 2, LateJoiner},
      {"MissingJoinerOfTwo", 2, MissingJoiner},
      {"MissingJoinerOfThree", 3, MissingJoiner},
      {"WrongGeneration", 2, WrongGeneration},
      {"Impostor", 3, Impostor, {"ucx"}},
      {"Reform", 3, Reform},
  };
}

}  // namespace ringmaster::worker
