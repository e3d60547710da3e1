// A peer that is lost in a pass of attention is an exception of its own, whenever that is.
#include <ATen/Functions.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <string>
#include <thread>
#include <utility>

#include "attention/dilated_attention.h"
#include "attention/exchange/exchange.h"
#include "attention/plan/plan.h"
#include "worker/comm/in_process_exchange.h"

namespace ringmaster::attention {
namespace {

// The first `starts` groups go through; the next finds the peer gone.
class FailingExchange final : public GroupedExchange {
 public:
  FailingExchange(GroupedExchange& exchange, int starts) : exchange_(exchange), left_(starts) {}

  int rank() const override { return exchange_.rank(); }
  int size() const override { return exchange_.size(); }
  absl::StatusOr<Ticket> Start(absl::Span<const SendBuffer> sends,
                               absl::Span<const ReceiveBuffer> receives,
                               StreamHandle producer) override {
    if (--left_ < 0) return absl::UnavailableError("this rank dies");
    return exchange_.Start(sends, receives, producer);
  }
  absl::Status Wait(Ticket ticket, StreamHandle consumer) override {
    return exchange_.Wait(ticket, consumer);
  }
  void Abort(const std::string& reason) override { exchange_.Abort(reason); }
  uint64_t sent_bytes() const override { return exchange_.sent_bytes(); }
  bool failed() const { return left_ < 0; }

 private:
  GroupedExchange& exchange_;
  int left_;
};

// A pass swaps tokens for heads and back: a rank dies between the two, of forward and of backward.
TEST(LostPeerTest, BetweenTheSwapsOfAPassItSurfaces) {
  for (const int starts : {1, 3, 4}) {  // Four are all there are.
    auto ranks = worker::ConnectInProcess(2);
    const auto pass = [](GroupedExchange& exchange) -> absl::Status {
      try {
        const at::Tensor q = at::randn({1, 4, 2, 2}).set_requires_grad(true);
        const at::Tensor out =
            DilatedAttention(q, q, q, {.branches = {{8, 1}}}, ShardMap::Contiguous(8, 2, 1),
                             &exchange, {}, Strategy::kHeads)
                .out;
        torch::autograd::grad({out}, {q}, {at::ones_like(out)});
      } catch (const ExchangeError& error) {
        return error.status();
      }
      return absl::OkStatus();
    };
    bool failed = false;
    std::thread peer([&] {
      FailingExchange exchange(ranks[1]->world(), starts);
      pass(exchange).IgnoreError();
      failed = exchange.failed();
      if (failed) ranks[1].reset();
    });
    const absl::Status status = pass(ranks[0]->world());
    peer.join();
    EXPECT_EQ(failed, starts < 4) << starts;
    EXPECT_EQ(status.code(), starts < 4 ? absl::StatusCode::kUnavailable : absl::StatusCode::kOk)
        << starts << ": " << status;
  }
}

// A rank dies between forward and backward: the other's backward must say so through the autograd
// engine.
TEST(LostPeerTest, ItSurfacesFromForwardAndFromBackward) {
  for (const auto& [in_forward, strategy] :
       {std::pair(true, Strategy::kGrouped), std::pair(false, Strategy::kGrouped),
        std::pair(true, Strategy::kHeads), std::pair(false, Strategy::kHeads)}) {
    auto ranks = worker::ConnectInProcess(2);
    const DilatedAttentionOptions options{.branches = {{8, 1}}};
    const ShardMap map = ShardMap::Contiguous(8, 2, 1);
    const auto local = [] { return at::randn({1, 4, 1, 2}).set_requires_grad(true); };
    std::thread peer(
        [&, fails = in_forward, how = strategy, peer_rank = std::move(ranks[1])]() mutable {
          const at::Tensor q = local();
          if (!fails) DilatedAttention(q, q, q, options, map, &peer_rank->world(), {}, how);
          peer_rank.reset();
        });
    const at::Tensor q = local();
    absl::Status status;
    try {
      if (in_forward) peer.join();
      const at::Tensor out =
          DilatedAttention(q, q, q, options, map, &ranks[0]->world(), {}, strategy).out;
      if (!in_forward) peer.join();
      // Rank 0 owes nothing forward and waits for gradients of what it sent.
      torch::autograd::grad({out}, {q}, {at::ones_like(out)});
    } catch (const ExchangeError& error) {
      status = error.status();
    }
    if (peer.joinable()) peer.join();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  }
}

}  // namespace
}  // namespace ringmaster::attention
