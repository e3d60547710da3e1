#include "tests/worker/comm/collective_scenarios.h"

#include <cstring>
#include <string>

#include "ATen/CPUGeneratorImpl.h"
#include "ATen/core/Generator.h"
#include "ATen/ops/full.h"
#include "ATen/ops/randn.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "worker/comm/collectives.h"

namespace ringmaster::worker {
namespace {

at::Device DeviceOf(const Communicator& ring) {
  return ring.cuda_device() < 0
             ? at::Device(at::kCPU)
             : at::Device(at::kCUDA, static_cast<at::DeviceIndex>(ring.cuda_device()));
}

// The same on every rank.
at::Tensor Input(int rank, int64_t elements, at::ScalarType dtype) {
  at::Generator generator = at::detail::createCPUGenerator(1000 + rank);
  return at::randn({elements}, generator, at::kDouble).mul(rank + 0.3).to(dtype);
}

bool SameBits(const at::Tensor& a, const at::Tensor& b) {
  return a.nbytes() == b.nbytes() && std::memcmp(a.data_ptr(), b.data_ptr(), a.nbytes()) == 0;
}

absl::Status SumsInRankOrder(Rank& rank) {
  ASSIGN_OR_RETURN(const auto ring, rank.Form(1, absl::Seconds(40)));
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16}) {
    for (const int64_t elements : {1, 1000, 300001}) {
      at::Tensor expected = Input(0, elements, dtype);
      for (int other = 1; other < rank.size(); ++other) {
        expected.add_(Input(other, elements, dtype));
      }
      // Filled on the device's stream just before: the exchange must wait for that.
      const at::Tensor sum = Input(rank.rank(), elements, dtype).to(DeviceOf(*ring));
      RETURN_IF_ERROR(AllReduceSum(ring->world(), sum, size_t{1} << 18));
      RETURN_IF_ERROR(ring->Settle());
      CHECK_OR_RETURN(SameBits(sum.cpu(), expected), elements, " elements of ",
                      std::string(c10::toString(dtype)));
    }
  }
  return ring->Close();
}

absl::Status BroadcastAndGather(Rank& rank) {
  ASSIGN_OR_RETURN(const auto ring, rank.Form(1, absl::Seconds(40)));
  const at::Tensor tensor =
      at::full({12345}, rank.rank() + 0.5, at::TensorOptions(at::kFloat).device(DeviceOf(*ring)));
  RETURN_IF_ERROR(Broadcast(ring->world(), tensor, 1, {2}));
  for (int round = 0; round < 20; ++round) {
    ASSIGN_OR_RETURN(const auto values, AllGather(*ring, int64_t{100 * round + rank.rank()}));
    for (int other = 0; other < rank.size(); ++other) {
      CHECK_OR_RETURN(values[other] == 100 * round + other, values[other]);
    }
  }
  const double expected = rank.rank() == 0 ? 0.5 : 1.5;
  CHECK_OR_RETURN(SameBits(tensor.cpu(), at::full({12345}, expected, at::kFloat)));
  return ring->Close();
}

}  // namespace

std::vector<Scenario> CollectiveScenarios() {
  return {
      {"SumsInRankOrder", 3, SumsInRankOrder},
      {"BroadcastAndGather", 3, BroadcastAndGather},
  };
}

}  // namespace ringmaster::worker
