#include "worker/comm/in_process_exchange.h"

#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/wait_for.h"
#include "spdlog/spdlog.h"
#include "worker/comm/accused_ranks.h"
#include "worker/comm/group_ledger.h"
#include "worker/comm/prove_ring.h"

namespace ringmaster::worker {

namespace {

void CopyHostBytes(void* to, const void* from, size_t bytes, attention::StreamHandle) {
  std::memcpy(to, from, bytes);
}

std::string AddressOf(int64_t generation, int rank) {
  return absl::StrCat("in-process/", generation, "/", rank);
}

// All ranks of one generation. Lock order: this mutex, then a ledger's; a ledger fails only outside
// of this mutex.
class World {
 public:
  World(int size, CopyBytes copy) : copy_(copy), ranks_(size), pairs_(size * size) {}

  int size() const { return static_cast<int>(ranks_.size()); }

  absl::Status Enter(int rank, std::shared_ptr<GroupLedger> ledger) {
    const std::lock_guard lock(mutex_);
    if (ranks_[rank].ledger != nullptr) {
      return absl::FailedPreconditionError(absl::StrCat(ledger->who(), " is open already"));
    }
    ranks_[rank].ledger = std::move(ledger);
    return absl::OkStatus();
  }

  absl::Status Meet(int rank, absl::Duration deadline) {
    return WaitForAll(rank, &Rank::connected, deadline);
  }
  absl::Status Part(int rank, absl::Duration deadline) {
    return WaitForAll(rank, &Rank::closed, deadline);
  }

  void Start(int rank, uint64_t group, absl::Span<const attention::SendBuffer> sends,
             absl::Span<const attention::ReceiveBuffer> receives, attention::StreamHandle stream);

  // The rank is gone: it matches nothing any more, and its peers fail unless all have closed.
  void Leave(int rank);

  void Kill(int rank) {
    if (const auto ledger = LedgerOf(rank); ledger != nullptr) {
      ledger->Fail(absl::UnavailableError(absl::StrCat(ledger->who(), " was killed")));
    }
  }

 private:
  struct Rank {
    std::shared_ptr<GroupLedger> ledger;
    bool connected = false;
    bool closed = false;
    bool gone = false;
    // Copies under way from or to its buffers.
    int copies = 0;
  };
  struct Offer {
    uint64_t group = 0;
    int message = 0;
    const void* from = nullptr;
    void* to = nullptr;
    size_t bytes = 0;
  };
  struct Pair {
    std::deque<Offer> sends;
    std::deque<Offer> receives;
  };
  struct Match {
    int sender = 0;
    int receiver = 0;
    Offer send;
    Offer receive;
  };

  Pair& PairOf(int sender, int receiver) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return pairs_[sender * size() + receiver];
  }
  std::shared_ptr<GroupLedger> LedgerOf(int rank) {
    const std::lock_guard lock(mutex_);
    return ranks_[rank].ledger;
  }
  absl::Status WaitForAll(int rank, bool Rank::*flag, absl::Duration deadline);
  void TakeMatches(int sender, int receiver, std::vector<Match>& matches)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Deliver(const Match& match, attention::StreamHandle stream);

  const CopyBytes copy_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Rank> ranks_ ABSL_GUARDED_BY(mutex_);
  std::vector<Pair> pairs_ ABSL_GUARDED_BY(mutex_);
};

absl::Status World::WaitForAll(int rank, bool Rank::*flag, absl::Duration deadline) {
  std::shared_ptr<GroupLedger> ledger;
  std::string missing;
  {
    std::unique_lock lock(mutex_);
    ledger = ranks_[rank].ledger;
    ranks_[rank].*flag = true;
    changed_.notify_all();
    const auto all = [&] {
      bool here = true;
      for (const Rank& other : ranks_) {
        here = here && other.*flag;
      }
      return here || ranks_[rank].gone;
    };
    if (!WaitFor(changed_, lock, deadline, all)) {
      for (int other = 0; other < size(); ++other) {
        if (!(ranks_[other].*flag)) {
          absl::StrAppend(&missing, missing.empty() ? "" : ", ", other);
        }
      }
    }
  }
  if (!missing.empty()) {
    ledger->Fail(absl::DeadlineExceededError(
        absl::StrCat(ledger->who(), ": waiting for rank ", missing, " exceeded ",
                     absl::FormatDuration(deadline), "; a new ring will form")));
  }
  return ledger->status();
}

void World::Start(int rank, uint64_t group, absl::Span<const attention::SendBuffer> sends,
                  absl::Span<const attention::ReceiveBuffer> receives,
                  attention::StreamHandle stream) {
  std::vector<Match> matches;
  {
    const std::lock_guard lock(mutex_);
    if (ranks_[rank].gone) {
      return;  // its ledger holds the error
    }
    int message = 0;
    for (const attention::SendBuffer& send : sends) {
      if (send.bytes > 0) {
        PairOf(rank, send.peer)
            .sends.push_back(
                {.group = group, .message = message, .from = send.data, .bytes = send.bytes});
        TakeMatches(rank, send.peer, matches);
      }
      ++message;
    }
    for (const attention::ReceiveBuffer& receive : receives) {
      if (receive.bytes > 0) {
        PairOf(receive.peer, rank)
            .receives.push_back(
                {.group = group, .message = message, .to = receive.data, .bytes = receive.bytes});
        TakeMatches(receive.peer, rank, matches);
      }
      ++message;
    }
  }
  for (const Match& match : matches) {
    Deliver(match, stream);
  }
}

void World::TakeMatches(int sender, int receiver, std::vector<Match>& matches) {
  Pair& pair = PairOf(sender, receiver);
  while (!pair.sends.empty() && !pair.receives.empty()) {
    matches.push_back({.sender = sender,
                       .receiver = receiver,
                       .send = pair.sends.front(),
                       .receive = pair.receives.front()});
    pair.sends.pop_front();
    pair.receives.pop_front();
    ++ranks_[sender].copies;
    ++ranks_[receiver].copies;
  }
}

void World::Deliver(const Match& match, attention::StreamHandle stream) {
  const bool agreed = match.send.bytes == match.receive.bytes;
  if (agreed) {
    copy_(match.receive.to, match.send.from, match.send.bytes, stream);
  } else {
    const auto receiver = LedgerOf(match.receiver);
    receiver->Fail(absl::FailedPreconditionError(absl::StrCat(
        receiver->who(), ": rank ", match.sender, " sent ", match.send.bytes, " bytes where ",
        match.receive.bytes, " were expected; the ranks disagree about the plan")));
  }
  const std::lock_guard lock(mutex_);
  for (const auto& [rank, offer] :
       {std::pair(match.sender, &match.send), std::pair(match.receiver, &match.receive)}) {
    Rank& state = ranks_[rank];
    if (agreed) {
      state.ledger->Done(offer->group, offer->message);
    }
    if (--state.copies == 0 && state.gone) {
      state.ledger->Released();
    }
  }
}

void World::Leave(int rank) {
  std::vector<std::shared_ptr<GroupLedger>> peers;
  {
    const std::lock_guard lock(mutex_);
    ranks_[rank].gone = true;
    changed_.notify_all();
    bool all_closed = true;
    for (int other = 0; other < size(); ++other) {
      PairOf(rank, other).sends.clear();
      PairOf(other, rank).receives.clear();
      all_closed = all_closed && ranks_[other].closed;
      if (other != rank && ranks_[other].ledger != nullptr) {
        peers.push_back(ranks_[other].ledger);
      }
    }
    if (all_closed) {
      peers.clear();
    }
    if (ranks_[rank].copies == 0) {
      ranks_[rank].ledger->Released();
    }
  }
  for (const auto& peer : peers) {
    peer->Fail(Accuse(
        absl::UnavailableError(absl::StrCat(peer->who(), ": rank ", rank, " is gone")), {rank}));
  }
}

class InProcessCommunicator final : public Communicator, private attention::GroupedExchange {
 public:
  InProcessCommunicator(const CommunicatorOptions& options, std::shared_ptr<World> world,
                        int cuda_device)
      : options_(options),
        address_(AddressOf(options.generation, options.rank)),
        cuda_device_(cuda_device),
        world_(std::move(world)),
        // Who calls the hook holds the world, directly or through this communicator.
        ledger_(std::make_shared<GroupLedger>(
            options, [world = world_.get(), rank = options.rank] { world->Leave(rank); })) {}

  ~InProcessCommunicator() override {
    if (entered_) {
      Abort("the communicator was destroyed");
      AwaitReleased(absl::InfiniteDuration())
          .IgnoreError();  // only copies of memory are waited for
    }
  }

  absl::Status Enter() {
    RETURN_IF_ERROR(world_->Enter(options_.rank, ledger_));
    entered_ = true;
    return absl::OkStatus();
  }

  const std::string& address() const override { return address_; }
  int cuda_device() const override { return cuda_device_; }

  absl::Status Connect(absl::Span<const std::string> addresses, absl::Duration deadline) override {
    if (absl::Status status = CheckAddresses(addresses); !status.ok()) {
      ledger_->Fail(status);
    }
    RETURN_IF_ERROR(ledger_->status());
    RETURN_IF_ERROR(world_->Meet(options_.rank, deadline));
    if (cuda_device_ < 0) {  // the greeting lies in host memory
      RETURN_IF_ERROR(ProveRing(*this, options_, addresses));
    }
    ledger_->ForgetSent();
    return absl::OkStatus();
  }

  attention::GroupedExchange& world() override { return *this; }
  absl::Status Settle() override { return ledger_->AwaitAll(); }

  absl::Status Close() override {
    RETURN_IF_ERROR(ledger_->AwaitAll());
    RETURN_IF_ERROR(world_->Part(options_.rank, options_.hop_deadline));
    ledger_->Fail(absl::FailedPreconditionError(absl::StrCat(ledger_->who(), " is closed")));
    return absl::OkStatus();
  }

  absl::Status AwaitReleased(absl::Duration deadline) override {
    return ledger_->AwaitReleased(deadline);
  }

  void Abort(const std::string& reason) override {
    ledger_->Fail(absl::AbortedError(absl::StrCat(ledger_->who(), ": ", reason)));
  }

 private:
  int rank() const override { return options_.rank; }
  int size() const override { return options_.world_size; }
  uint64_t sent_bytes() const override { return ledger_->sent_bytes(); }

  absl::StatusOr<attention::Ticket> Start(absl::Span<const attention::SendBuffer> sends,
                                          absl::Span<const attention::ReceiveBuffer> receives,
                                          attention::StreamHandle producer) override {
    ASSIGN_OR_RETURN(const uint64_t group, ledger_->Open(sends, receives));
    world_->Start(options_.rank, group, sends, receives, producer);
    return attention::Ticket{group};
  }

  absl::Status Wait(attention::Ticket ticket, attention::StreamHandle) override {
    return ledger_->Await(ticket.id);
  }

  absl::Status CheckAddresses(absl::Span<const std::string> addresses) const {
    if (static_cast<int>(addresses.size()) != options_.world_size) {
      return absl::InvalidArgumentError(absl::StrCat(ledger_->who(), ": ", addresses.size(),
                                                     " addresses for ", options_.world_size,
                                                     " ranks"));
    }
    for (int peer = 0; peer < options_.world_size; ++peer) {
      if (addresses[peer] != AddressOf(options_.generation, peer)) {
        return absl::FailedPreconditionError(absl::StrCat(
            ledger_->who(), ": rank ", peer, " is of another generation: ", addresses[peer]));
      }
    }
    return absl::OkStatus();
  }

  const CommunicatorOptions options_;
  const std::string address_;
  const int cuda_device_;
  const std::shared_ptr<World> world_;
  const std::shared_ptr<GroupLedger> ledger_;
  bool entered_ = false;
};

}  // namespace

class InProcessHub::Impl {
 public:
  Impl(CopyBytes copy, int cuda_device) : copy_(copy), cuda_device_(cuda_device) {}

  absl::StatusOr<std::unique_ptr<Communicator>> Open(const CommunicatorOptions& options) {
    if (options.world_size < 1 || options.rank < 0 || options.rank >= options.world_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("rank ", options.rank, " of ", options.world_size, " ranks"));
    }
    std::shared_ptr<World> world;
    {
      const std::lock_guard lock(mutex_);
      std::weak_ptr<World>& known = worlds_[options.generation];
      world = known.lock();
      if (world == nullptr) {
        world = std::make_shared<World>(options.world_size, copy_);
        known = world;
      }
    }
    if (world->size() != options.world_size) {
      return absl::FailedPreconditionError(absl::StrCat("generation ", options.generation, " has ",
                                                        world->size(), " ranks, not ",
                                                        options.world_size));
    }
    auto communicator = std::make_unique<InProcessCommunicator>(options, world, cuda_device_);
    RETURN_IF_ERROR(communicator->Enter());
    return communicator;
  }

  void Kill(int64_t generation, int rank) {
    std::shared_ptr<World> world;
    {
      const std::lock_guard lock(mutex_);
      world = worlds_[generation].lock();
    }
    if (world != nullptr && rank >= 0 && rank < world->size()) {
      world->Kill(rank);
    }
  }

 private:
  const CopyBytes copy_;
  const int cuda_device_;
  std::mutex mutex_;
  std::map<int64_t, std::weak_ptr<World>> worlds_ ABSL_GUARDED_BY(mutex_);
};

InProcessHub::InProcessHub() : InProcessHub(CopyHostBytes, -1) {}
InProcessHub::InProcessHub(CopyBytes copy, int cuda_device)
    : impl_(std::make_unique<Impl>(copy, cuda_device)) {}
InProcessHub::~InProcessHub() = default;

absl::StatusOr<std::unique_ptr<Communicator>> InProcessHub::Open(
    const CommunicatorOptions& options) {
  return impl_->Open(options);
}

void InProcessHub::Kill(int64_t generation, int rank) { impl_->Kill(generation, rank); }

std::vector<std::unique_ptr<Communicator>> ConnectInProcess(int size, absl::Duration hop_deadline) {
  return ConnectInProcess(size, hop_deadline, CopyHostBytes, -1);
}

std::vector<std::unique_ptr<Communicator>> ConnectInProcess(int size, absl::Duration hop_deadline,
                                                            CopyBytes copy, int cuda_device) {
  InProcessHub hub(copy, cuda_device);
  std::vector<std::unique_ptr<Communicator>> ranks(size);
  std::vector<std::string> addresses(size);
  for (int rank = 0; rank < size; ++rank) {
    auto opened =
        hub.Open({.generation = 1, .rank = rank, .world_size = size, .hop_deadline = hop_deadline});
    ranks[rank] = std::move(opened).value();
    addresses[rank] = ranks[rank]->address();
  }
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      if (absl::Status status = ranks[rank]->Connect(addresses, absl::Minutes(1)); !status.ok()) {
        SPDLOG_CRITICAL("ranks of one process did not connect: {}", status.ToString());
        std::abort();
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  return ranks;
}

}  // namespace ringmaster::worker
