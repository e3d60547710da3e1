#include "worker/comm/ucx_communicator.h"

#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "worker/comm/accused_ranks.h"
#include "worker/comm/group_ledger.h"
#include "worker/comm/prove_ring.h"
#include "worker/comm/ucx_address.h"
#include "worker/comm/ucx_endpoints.h"
#include "worker/comm/ucx_worker.h"

namespace ringmaster::worker {

namespace {

// Callers write into the ledger and post to the executor thread; it alone touches UCX. It ends
// after the first failure (Close and Abort count as one), when everything is torn down and the
// worker is destroyed: only then are the callers' buffers released.
class UcxCommunicator final : public Communicator, private attention::GroupedExchange {
 public:
  UcxCommunicator(const CommunicatorOptions& options, std::unique_ptr<UcxWorker> worker)
      : options_(options),
        worker_(std::move(worker)),
        ledger_(options_, [this] { worker_->Post([this] { endpoints_.TearDown(); }); }),
        endpoints_(options_, ledger_, *worker_) {}

  ~UcxCommunicator() override {
    if (executor_.joinable()) {
      Abort("the communicator was destroyed");
      executor_.join();
    }
  }

  absl::Status Listen() {
    ASSIGN_OR_RETURN(const int port, endpoints_.Listen());
    std::random_device random;
    const uint64_t nonce = static_cast<uint64_t>(random()) << 32 | random();
    address_ = UcxAddress{.generation = options_.generation,
                          .rank = options_.rank,
                          .nonce = nonce,
                          .host = options_.host,
                          .port = port}
                   .ToString();
    executor_ = std::thread([this] { Execute(); });
    return absl::OkStatus();
  }

  const std::string& address() const override { return address_; }
  int cuda_device() const override { return -1; }

  absl::Status Connect(absl::Span<const std::string> addresses, absl::Duration deadline) override {
    absl::StatusOr<std::vector<UcxAddress>> peers = Parse(addresses);
    if (!peers.ok()) {
      ledger_.Fail(peers.status());
      return ledger_.status();
    }
    worker_->Post([this, peers = *std::move(peers)] { endpoints_.Connect(peers); });
    ledger_.UseDeadline(deadline);
    if (absl::Status proved = ProveRing(*this, options_, addresses); !proved.ok()) {
      ledger_.Fail(proved);
    }
    worker_->Post([this] { endpoints_.StopListening(); });
    ledger_.UseDeadline(options_.hop_deadline);
    ledger_.ForgetSent();
    return ledger_.status();
  }

  attention::GroupedExchange& world() override { return *this; }
  absl::Status Settle() override { return ledger_.AwaitAll(); }

  absl::Status Close() override {
    RETURN_IF_ERROR(ledger_.AwaitAll());
    RETURN_IF_ERROR(ExchangeFarewells());
    ledger_.Fail(absl::FailedPreconditionError(absl::StrCat(ledger_.who(), " is closed")));
    return ledger_.AwaitReleased(options_.hop_deadline);
  }

  void Abort(const std::string& reason) override {
    ledger_.Fail(absl::AbortedError(absl::StrCat(ledger_.who(), ": ", reason)));
  }

  absl::Status AwaitReleased(absl::Duration deadline) override {
    return ledger_.AwaitReleased(deadline);
  }

 private:
  int rank() const override { return options_.rank; }
  int size() const override { return options_.world_size; }
  uint64_t sent_bytes() const override { return ledger_.sent_bytes(); }

  absl::StatusOr<attention::Ticket> Start(absl::Span<const attention::SendBuffer> sends,
                                          absl::Span<const attention::ReceiveBuffer> receives,
                                          attention::StreamHandle) override {
    return StartGroup(sends, receives, /*farewell=*/false);
  }

  absl::Status Wait(attention::Ticket ticket, attention::StreamHandle) override {
    return ledger_.Await(ticket.id);
  }

  absl::StatusOr<attention::Ticket> StartGroup(absl::Span<const attention::SendBuffer> sends,
                                               absl::Span<const attention::ReceiveBuffer> receives,
                                               bool farewell) {
    ASSIGN_OR_RETURN(const uint64_t group, ledger_.Open(sends, receives));
    worker_->Post(
        [this, group, farewell,
         sends = std::vector<attention::SendBuffer>(sends.begin(), sends.end()),
         receives = std::vector<attention::ReceiveBuffer>(receives.begin(), receives.end())] {
          endpoints_.Exchange(group, sends, receives, farewell);
        });
    return attention::Ticket{group};
  }

  absl::Status ExchangeFarewells() {
    const char farewell = 0;
    std::vector<char> heard(options_.world_size);
    std::vector<attention::SendBuffer> sends;
    std::vector<attention::ReceiveBuffer> receives;
    for (int peer = 0; peer < options_.world_size; ++peer) {
      if (peer != options_.rank) {
        sends.push_back({.peer = peer, .data = &farewell, .bytes = 1});
        receives.push_back({.peer = peer, .data = &heard[peer], .bytes = 1});
      }
    }
    ASSIGN_OR_RETURN(const attention::Ticket ticket,
                     StartGroup(sends, receives, /*farewell=*/true));
    return ledger_.Await(ticket.id);
  }

  absl::StatusOr<std::vector<UcxAddress>> Parse(absl::Span<const std::string> texts) const {
    if (static_cast<int>(texts.size()) != options_.world_size || texts[options_.rank] != address_) {
      return absl::InvalidArgumentError(absl::StrCat(ledger_.who(), ": ", texts.size(),
                                                     " addresses for ", options_.world_size,
                                                     " ranks, or not this rank's own among them"));
    }
    std::vector<UcxAddress> addresses;
    std::vector<int> unlike;
    for (int rank = 0; rank < options_.world_size; ++rank) {
      ASSIGN_OR_RETURN(UcxAddress address, UcxAddress::Parse(texts[rank]));
      if (address.generation != options_.generation || address.rank != rank) {
        return absl::FailedPreconditionError(absl::StrCat(ledger_.who(), ": the address of rank ",
                                                          rank, " is that of rank ", address.rank,
                                                          " of generation ", address.generation));
      }
      if (IsLoopback(address.host) != IsLoopback(options_.host)) unlike.push_back(rank);
      addresses.push_back(std::move(address));
    }
    if (unlike.empty()) return addresses;
    return Accuse(absl::InvalidArgumentError(
                      absl::StrCat(ledger_.who(), ": rank ", unlike[0], " is reached at ",
                                   addresses[unlike[0]].host, " and this one at ", options_.host,
                                   ", but loopback leads to no other; give --advertise-host")),
                  unlike);
  }

  void Execute() {
    worker_->Run([this] { return endpoints_.TornDown(); }, endpoints_.closing());
    worker_->Shut();
    ledger_.Released();
  }

  const CommunicatorOptions options_;
  std::string address_;
  const std::unique_ptr<UcxWorker> worker_;
  GroupLedger ledger_;
  UcxEndpoints endpoints_;
  std::thread executor_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> OpenUcxCommunicator(
    const CommunicatorOptions& options) {
  ASSIGN_OR_RETURN(std::unique_ptr<UcxWorker> worker,
                   UcxWorker::Create(UcxEndpoints::ClientId(options, options.rank), options.host));
  auto communicator = std::make_unique<UcxCommunicator>(options, std::move(worker));
  RETURN_IF_ERROR(communicator->Listen());
  return communicator;
}

}  // namespace ringmaster::worker
