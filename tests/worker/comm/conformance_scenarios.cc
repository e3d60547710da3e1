#include "tests/worker/comm/conformance_scenarios.h"

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "attention/exchange.h"
#include "base/status_macros.h"
#include "worker/comm/accused_rank.h"

namespace ringmaster::worker {
namespace {

using attention::ReceiveBuffer;
using attention::SendBuffer;
using attention::Ticket;
using Content = std::vector<unsigned char>;

// A deadline that nothing is meant to reach, and one that is meant to pass.
constexpr absl::Duration kLong = absl::Seconds(40);
constexpr absl::Duration kShort = absl::Milliseconds(400);

// Content that tells messages apart.
Content Pattern(int from, int to, int sequence, size_t bytes) {
  Content content(bytes);
  uint32_t state = static_cast<uint32_t>(from * 1000003 + to * 10007 + sequence * 101 + 1);
  for (unsigned char& byte : content) {
    state = state * 1664525 + 1013904223;
    byte = static_cast<unsigned char>(state >> 24);
  }
  return content;
}

// Messages of a group with their memory.
class Group {
 public:
  explicit Group(const Rank& rank) : rank_(rank) {}

  void Send(int peer, int sequence, size_t bytes) {
    Buffer& buffer = buffers_.emplace_back(rank_, bytes);
    buffer.Write(Pattern(rank_.rank(), peer, sequence, bytes));
    sends_.push_back({.peer = peer, .data = buffer.data(), .bytes = bytes});
  }
  void Receive(int peer, int sequence, size_t bytes) {
    Buffer& buffer = buffers_.emplace_back(rank_, bytes);
    receives_.push_back({.peer = peer, .data = buffer.data(), .bytes = bytes});
    expected_.push_back({buffer, Pattern(peer, rank_.rank(), sequence, bytes)});
  }
  absl::Status Start(Communicator& ring) {
    ASSIGN_OR_RETURN(ticket_, ring.world().Start(sends_, receives_, nullptr));
    return absl::OkStatus();
  }
  absl::Status Wait(Communicator& ring) { return ring.world().Wait(ticket_, nullptr); }
  absl::Status Check() const {
    for (size_t index = 0; index < expected_.size(); ++index) {
      const auto& [buffer, content] = expected_[index];
      CHECK_OR_RETURN(buffer.Read() == content, "message ", index, " of ", content.size(),
                      " bytes is not what was sent");
    }
    return absl::OkStatus();
  }
  // All of it; a device transport knows the outcome only after Settle.
  absl::Status Run(Communicator& ring) {
    RETURN_IF_ERROR(Start(ring));
    RETURN_IF_ERROR(Wait(ring));
    RETURN_IF_ERROR(ring.Settle());
    return Check();
  }

 private:
  struct Expected {
    Buffer buffer;
    Content content;
  };
  const Rank& rank_;
  std::vector<Buffer> buffers_;
  std::vector<SendBuffer> sends_;
  std::vector<ReceiveBuffer> receives_;
  std::vector<Expected> expected_;
  Ticket ticket_;
};

absl::Status AroundTheRing(Rank& rank, Communicator& ring, int sequence, size_t bytes) {
  Group group(rank);
  if (rank.size() > 1) {
    group.Send(rank.next(), sequence, bytes);
    group.Receive(rank.previous(), sequence, bytes);
  }
  return group.Run(ring);
}

absl::Status ExpectCode(const absl::Status& status, absl::StatusCode code) {
  CHECK_OR_RETURN(status.code() == code, "expected ", absl::StatusCodeToString(code), ", got ",
                  status.ToString());
  return absl::OkStatus();
}

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

// All later calls tell the first error; the rank's memory is its own again.
absl::Status ExpectUseless(Communicator& ring, absl::StatusCode code) {
  RETURN_IF_ERROR(ExpectCode(ring.world().Start({}, {}, nullptr).status(), code));
  RETURN_IF_ERROR(ExpectCode(ring.Settle(), code));
  ring.Abort("again");
  RETURN_IF_ERROR(ExpectCode(ring.Settle(), code));
  RETURN_IF_ERROR(ExpectCode(ring.Close(), code));
  return ring.AwaitReleased(absl::Seconds(30));
}

// Of two ranks, the survivor knows who did it; of more, one may see another survivor give up first.
// NCCL does not tell.
absl::Status ExpectAccusesLast(const Rank& rank, const absl::Status& status) {
  if (rank.size() == 2 && rank.transport() != "nccl") {
    CHECK_OR_RETURN(AccusedRank(status) == 1, status.ToString());
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
  status.Update(ring->Settle());
  rank.Put(absl::StrCat("told/", rank.rank()));
  if (rank.size() > 2 && absl::IsUnavailable(status)) {
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(ExpectCode(status, absl::StatusCode::kDeadlineExceeded));
  RETURN_IF_ERROR(ExpectAccusesLast(rank, status));
  return ExpectUseless(*ring, absl::StatusCode::kDeadlineExceeded);
}

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

std::vector<Scenario> ConformanceScenarios() {
  const std::vector<std::string> host = {"in-process", "ucx"};
  return {
      {"EverySizeOfTwo", 2, EverySize},
      {"EverySizeOfThree", 3, EverySize},
      {"OrderOfAPair", 3, OrderOfAPair},
      {"InterleavedPairs", 3, InterleavedPairs},
      {"OneRank", 1, OneRank},
      {"ImpossibleMessages", 2, ImpossibleMessages},
      {"CloseLosesNothing", 3, CloseLosesNothing},
      {"KilledPeerOfTwo", 2, KilledPeer},
      {"KilledPeerOfFour", 4, KilledPeer},
      {"KilledWhileWaiting", 3, KilledWhileWaiting},
      {"Reform", 3, Reform},
      {"StalledPeerOfTwo", 2, StalledPeer},
      {"StalledPeerOfThree", 3, StalledPeer},
      {"LateJoiner", 2, LateJoiner},
      {"MissingJoinerOfTwo", 2, MissingJoiner},
      {"MissingJoinerOfThree", 3, MissingJoiner},
      {"WrongGeneration", 2, WrongGeneration},
      {"Impostor", 3, Impostor, {"ucx"}},
      {"DisagreeingSizes", 2, DisagreeingSizes, host},
      {"AbortWhileWaiting", 3, AbortWhileWaiting},
      {"AbortAtAnyMoment", 2, AbortAtAnyMoment},
      {"AbortInFullSwing", 3, AbortInFullSwing},
  };
}

}  // namespace ringmaster::worker
