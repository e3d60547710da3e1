#include "worker/comm/collectives.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "ATen/ops/equal.h"
#include "ATen/ops/full.h"
#include "ATen/ops/randint.h"
#include "ATen/ops/randn.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/comm/in_process_exchange.h"
#include "worker/comm/subgroup_exchange.h"

namespace ringmaster::worker {
namespace {

using Ranks = std::vector<std::unique_ptr<Communicator>>;

void OnEveryRank(Ranks& ranks, const std::function<void(int, Communicator&)>& body) {
  std::vector<std::thread> threads;
  for (int rank = 0; rank < static_cast<int>(ranks.size()); ++rank) {
    threads.emplace_back([&, rank] { body(rank, *ranks[rank]); });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
}

bool SameBits(const at::Tensor& a, const at::Tensor& b) {
  // memcmp must not see the null pointer of an empty tensor.
  return a.nbytes() == b.nbytes() &&
         (a.nbytes() == 0 || std::memcmp(a.data_ptr(), b.data_ptr(), a.nbytes()) == 0);
}

struct SumCase {
  int ranks;
  int64_t elements;
  size_t chunk_bytes;
  at::ScalarType dtype;
};

class AllReduceSumTest : public testing::TestWithParam<SumCase> {};

// The slow and obvious version: add the ranks' tensors one after the other, in rank order.
TEST_P(AllReduceSumTest, EqualsTheSumInRankOrderBitForBit) {
  const SumCase& c = GetParam();
  std::vector<at::Tensor> inputs;
  for (int rank = 0; rank < c.ranks; ++rank) {
    inputs.push_back(
        c.dtype == at::kLong
            ? at::randint(-1000, 1000, {c.elements}, at::kLong)
            : at::randn({c.elements}, at::kDouble).mul(std::pow(10.0, rank)).to(c.dtype));
  }
  at::Tensor expected = inputs[0].clone();
  for (int rank = 1; rank < c.ranks; ++rank) {
    expected.add_(inputs[rank]);
  }
  Ranks ranks = ConnectInProcess(c.ranks);
  OnEveryRank(ranks, [&](int rank, Communicator& communicator) {
    const absl::Status status = AllReduceSum(communicator.world(), inputs[rank], c.chunk_bytes);
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(SameBits(inputs[rank], expected)) << "rank " << rank;
  });
}

std::vector<SumCase> SumCases() {
  std::vector<SumCase> cases;
  for (const int ranks : {1, 2, 3, 4, 5, 8}) {
    for (const int64_t elements : {0, 1, 7, 64, 1000, 4099}) {
      for (const size_t chunk : {size_t{1}, size_t{1024}, kCollectiveChunkBytes}) {
        for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16, at::kLong}) {
          cases.push_back({ranks, elements, chunk, dtype});
        }
      }
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Shapes, AllReduceSumTest, testing::ValuesIn(SumCases()));

TEST(AllReduceSum, KeepsTheShapeAndRefusesStridedTensors) {
  Ranks ranks = ConnectInProcess(2);
  OnEveryRank(ranks, [](int rank, Communicator& communicator) {
    const at::Tensor square = at::full({3, 5}, rank + 1.0, at::kFloat);
    EXPECT_TRUE(AllReduceSum(communicator.world(), square).ok());
    EXPECT_TRUE(at::equal(square, at::full({3, 5}, 3.0, at::kFloat)));
    EXPECT_EQ(AllReduceSum(communicator.world(), square.t()).code(),
              absl::StatusCode::kInvalidArgument);
  });
}

TEST(AllReduceSum, SendsTwiceTheOthersShareOfTheTensor) {
  Ranks ranks = ConnectInProcess(4);
  OnEveryRank(ranks, [](int, Communicator& communicator) {
    const at::Tensor tensor = at::full({4 * 1024}, 1.0, at::kFloat);
    EXPECT_TRUE(AllReduceSum(communicator.world(), tensor).ok());
    EXPECT_EQ(communicator.world().sent_bytes(), 2 * 3 * tensor.nbytes() / 4);
  });
}

TEST(AllReduceSum, OfALostRankFailsOnEveryRank) {
  Ranks ranks = ConnectInProcess(3);
  OnEveryRank(ranks, [](int rank, Communicator& communicator) {
    if (rank == 1) {
      communicator.Abort("this rank goes");
      return;
    }
    const at::Tensor tensor = at::full({1 << 20}, 1.0, at::kFloat);
    EXPECT_EQ(AllReduceSum(communicator.world(), tensor).code(), absl::StatusCode::kUnavailable);
  });
}

TEST(Broadcast, ReachesTheReceiversAndNobodyElse) {
  Ranks ranks = ConnectInProcess(4);
  OnEveryRank(ranks, [](int rank, Communicator& communicator) {
    const at::Tensor tensor = at::full({1001}, static_cast<double>(rank), at::kDouble);
    const absl::Status status = Broadcast(communicator.world(), tensor, 2, {0, 2, 3});
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(at::equal(tensor, at::full({1001}, rank == 1 ? 1.0 : 2.0, at::kDouble)));
  });
}

// Passes everything on and notes the largest message.
class Gauge final : public attention::GroupedExchange {
 public:
  explicit Gauge(attention::GroupedExchange& exchange) : exchange_(exchange) {}
  int rank() const override { return exchange_.rank(); }
  int size() const override { return exchange_.size(); }
  absl::StatusOr<attention::Ticket> Start(absl::Span<const attention::SendBuffer> sends,
                                          absl::Span<const attention::ReceiveBuffer> receives,
                                          attention::StreamHandle producer) override {
    for (const auto& send : sends) {
      largest_ = std::max(largest_, send.bytes);
    }
    for (const auto& receive : receives) {
      largest_ = std::max(largest_, receive.bytes);
    }
    return exchange_.Start(sends, receives, producer);
  }
  absl::Status Wait(attention::Ticket ticket, attention::StreamHandle consumer) override {
    return exchange_.Wait(ticket, consumer);
  }
  void Abort(const std::string& reason) override { exchange_.Abort(reason); }
  uint64_t sent_bytes() const override { return exchange_.sent_bytes(); }
  size_t largest() const { return largest_; }

 private:
  attention::GroupedExchange& exchange_;
  size_t largest_ = 0;
};

// One hop deadline is for one group: a tensor of any size must not travel as one.
TEST(Broadcast, TravelsInChunks) {
  for (const int64_t elements : {0, 1, 16, 17, 1000}) {
    Ranks ranks = ConnectInProcess(3);
    OnEveryRank(ranks, [elements](int rank, Communicator& communicator) {
      Gauge gauge(communicator.world());
      const at::Tensor tensor = at::full({elements}, static_cast<double>(rank), at::kDouble);
      const absl::Status status = Broadcast(gauge, tensor, 1, {0, 2}, /*chunk_bytes=*/128);
      EXPECT_TRUE(status.ok()) << status;
      EXPECT_TRUE(at::equal(tensor, at::full({elements}, 1.0, at::kDouble))) << "rank " << rank;
      EXPECT_LE(gauge.largest(), 128);
    });
  }
}

TEST(AllGather, ReturnsEveryRanksValueInRankOrder) {
  struct Vote {
    int64_t tokens;
    double loss;
  };
  for (const int size : {1, 2, 5}) {
    Ranks ranks = ConnectInProcess(size);
    OnEveryRank(ranks, [&](int rank, Communicator& communicator) {
      const auto votes = AllGather(communicator, Vote{.tokens = rank, .loss = rank / 4.0});
      ASSERT_TRUE(votes.ok()) << votes.status();
      ASSERT_EQ(votes->size(), size);
      for (int other = 0; other < size; ++other) {
        EXPECT_EQ((*votes)[other].tokens, other);
        EXPECT_EQ((*votes)[other].loss, other / 4.0);
      }
    });
  }
}

TEST(Subgroups, TwoRingsSumApartAndThenTheWorldTogether) {
  Ranks ranks = ConnectInProcess(5);
  OnEveryRank(ranks, [](int rank, Communicator& communicator) {
    const int first = rank < 2 ? 0 : 2;
    SubgroupExchange ring(communicator.world(), first, rank < 2 ? 2 : 3);
    EXPECT_EQ(ring.rank(), rank - first);
    const at::Tensor tensor = at::full({100}, 1.0 + rank, at::kDouble);
    EXPECT_TRUE(AllReduceSum(ring, tensor).ok());
    EXPECT_TRUE(at::equal(tensor, at::full({100}, rank < 2 ? 3.0 : 12.0, at::kDouble)));
    EXPECT_GT(ring.sent_bytes(), 0);
    EXPECT_TRUE(AllReduceSum(communicator.world(), tensor).ok());
    EXPECT_TRUE(at::equal(tensor, at::full({100}, 2 * 3.0 + 3 * 12.0, at::kDouble)));
    EXPECT_LT(ring.sent_bytes(), communicator.world().sent_bytes());
    // A peer outside of the view is an error, not another rank.
    const char byte = 0;
    EXPECT_EQ(
        ring.Start({{.peer = ring.size(), .data = &byte, .bytes = 1}}, {}, nullptr).status().code(),
        absl::StatusCode::kInvalidArgument);
  });
}

}  // namespace
}  // namespace ringmaster::worker
