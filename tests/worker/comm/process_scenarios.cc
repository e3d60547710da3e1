#include "tests/worker/comm/process_scenarios.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "attention/exchange/exchange.h"
#include "base/status_macros.h"
#include "worker/comm/accused_ranks.h"

namespace ringmaster::worker {
namespace {

// A message of so many bytes to `to`, one from `from`.
absl::Status Exchange(const Rank& rank, Communicator& ring, int to, int from, size_t bytes) {
  Buffer out(rank, bytes);
  Buffer in(rank, bytes);
  ASSIGN_OR_RETURN(
      const attention::Ticket ticket,
      ring.world().Start({{to, out.data(), bytes}}, {{from, in.data(), bytes}}, nullptr));
  RETURN_IF_ERROR(ring.world().Wait(ticket, nullptr));
  return ring.Settle();
}

absl::Status ExpectEnd(const absl::Status& status, absl::StatusCode code, Communicator& ring) {
  const absl::Status released = ring.AwaitReleased(absl::Seconds(20));
  CHECK_OR_RETURN(status.code() == code, status.ToString());
  return released;
}

// Rank 1's process stands still with its connections open and goes on when all is over: bytes that
// it does not take hold nobody up, and it finds the ring gone.
absl::Status StoppedPeer(Rank& rank) {
  const bool stops = rank.last();
  ASSIGN_OR_RETURN(auto ring, rank.Form(1, stops ? absl::Seconds(40) : absl::Milliseconds(400)));
  int pid = 0;
  if (stops) {
    rank.Put("pid", absl::StrCat(getpid()));
    raise(SIGSTOP);
  } else {
    CHECK_OR_RETURN(absl::SimpleAtoi(rank.Get("pid"), &pid));
  }
  const absl::Status status = Exchange(rank, *ring, rank.next(), rank.previous(), 16 << 20);
  const absl::Status end = ExpectEnd(
      status, stops ? absl::StatusCode::kUnavailable : absl::StatusCode::kDeadlineExceeded, *ring);
  if (!stops) {
    kill(pid, SIGCONT);
  }
  return end;
}

// Whether something takes a connection and the bytes at this port of loopback.
bool Takes(int port, const std::string& bytes) {
  const int dial = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(static_cast<uint16_t>(port))};
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const bool taken = connect(dial, reinterpret_cast<const sockaddr*>(&to), sizeof(to)) == 0 &&
                     send(dial, bytes.data(), bytes.size(), MSG_NOSIGNAL) > 0;
  close(dial);
  return taken;
}

// A port scanner comes by while the ring works.
absl::Status Stranger(Rank& rank) {
  ASSIGN_OR_RETURN(auto ring, rank.Form(1, absl::Seconds(40)));
  const std::string& address = ring->address();
  int port = 0;
  CHECK_OR_RETURN(absl::SimpleAtoi(address.substr(address.rfind('/') + 1), &port), address);
  RETURN_IF_ERROR(Exchange(rank, *ring, rank.next(), rank.previous(), 1000));
  for (const std::string& bytes :
       {std::string("GET / HTTP/1.0\r\n\r\n"), std::string(4096, '\0'), std::string(64, '\xff')}) {
    CHECK_OR_RETURN(!Takes(port, bytes), "rank ", rank.rank(), " still listens");
  }
  rank.Swap("scanned", "x");
  RETURN_IF_ERROR(Exchange(rank, *ring, rank.next(), rank.previous(), 70000));
  return ring->Close();
}

// At how many ports this process listens: of loopback, and others.
std::pair<int, int> Listeners() {
  std::pair<int, int> count;
  for (int fd = 0; fd < 4096; ++fd) {
    int listens = 0;
    socklen_t size = sizeof(listens);
    sockaddr_storage own = {};
    socklen_t length = sizeof(own);
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) == 0 && listens != 0 &&
        getsockname(fd, reinterpret_cast<sockaddr*>(&own), &length) == 0 &&
        own.ss_family != AF_UNIX) {
      const auto* v4 = reinterpret_cast<const sockaddr_in*>(&own);
      const bool loopback =
          own.ss_family == AF_INET && ntohl(v4->sin_addr.s_addr) == INADDR_LOOPBACK;
      ++(loopback ? count.first : count.second);
    }
  }
  return count;
}

// A ring on loopback takes connections from nowhere else: not at UCX's own ports either.
absl::Status LoopbackOnly(Rank& rank) {
  ASSIGN_OR_RETURN(auto ring, rank.Form(1, absl::Seconds(40)));
  RETURN_IF_ERROR(Exchange(rank, *ring, rank.next(), rank.previous(), 70000));
  const auto [loopback, others] = Listeners();
  CHECK_OR_RETURN(loopback > 0 && others == 0, loopback, " of loopback and ", others, " others");
  rank.Swap("looked", "x");
  return ring->Close();
}

absl::Status LoopbackBesideOtherHosts(Rank& rank) {
  ASSIGN_OR_RETURN(auto ring,
                   rank.Open({.generation = 1, .rank = rank.rank(), .world_size = rank.size()}));
  std::vector<std::string> addresses = rank.Swap("address", ring->address());
  std::vector<int> others;
  for (int other = 0; other < rank.size(); ++other) {
    if (other == rank.rank()) continue;
    others.push_back(other);
    addresses[other] = absl::StrReplaceAll(addresses[other], {{"127.0.0.1", "192.0.2.1"}});
  }
  const absl::Status status = ring->Connect(addresses, absl::Seconds(20));
  CHECK_OR_RETURN(absl::StrContains(status.message(), "--advertise-host"), status.ToString());
  CHECK_OR_RETURN(AccusedRanks(status) == others, status.ToString());
  return ExpectEnd(status, absl::StatusCode::kInvalidArgument, *ring);
}

// Open files and threads of this process.
absl::StatusOr<std::pair<int, int>> Holdings() {
  std::error_code error;
  const auto entries = [&error](const char* folder) {
    int count = 0;
    for (std::filesystem::directory_iterator entry(folder, error);
         !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
      ++count;
    }
    return count;
  };
  const std::pair holdings(entries("/proc/self/fd"), entries("/proc/self/task"));
  CHECK_OR_RETURN(!error, error.message());
  return holdings;
}

// A process lives through generations that end well and others that do not, and keeps nothing of
// them.
absl::Status ManyGenerations(Rank& rank) {
  std::pair<int, int> before;
  for (int generation = 1; generation <= 60; ++generation) {
    ASSIGN_OR_RETURN(auto ring, rank.Form(generation, absl::Seconds(40)));
    RETURN_IF_ERROR(Exchange(rank, *ring, rank.next(), rank.previous(), 70000));
    rank.Swap(absl::StrCat("through/", generation), "x");
    Buffer never(rank, 1 << 20);
    if (generation % 2 == 0) {
      RETURN_IF_ERROR(ring->Close());
    } else {
      // A peer may be gone already.
      ring->world()
          .Start({}, {{rank.previous(), never.data(), never.bytes()}}, nullptr)
          .IgnoreError();
      ring->Abort("the coordinator says so");
    }
    RETURN_IF_ERROR(ring->AwaitReleased(absl::Seconds(20)));
    ring.reset();
    if (generation == 10) {
      ASSIGN_OR_RETURN(before, Holdings());
    }
  }
  ASSIGN_OR_RETURN(const auto after, Holdings());
  CHECK_OR_RETURN(after == before, before.first, " files and ", before.second, " threads became ",
                  after.first, " and ", after.second);
  return absl::OkStatus();
}

}  // namespace

std::vector<Scenario> ProcessScenarios() {
  return {
      {"Stranger", 3, Stranger, {"ucx"}},
      {"LoopbackOnly", 3, LoopbackOnly, {"ucx"}},
      {"LoopbackBesideOtherHosts", 3, LoopbackBesideOtherHosts, {"ucx"}},
      {"StoppedPeer", 2, StoppedPeer, {"ucx"}},
      {"ManyGenerations", 3, ManyGenerations, {"ucx"}},
  };
}

}  // namespace ringmaster::worker
