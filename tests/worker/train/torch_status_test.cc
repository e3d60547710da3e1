#include "worker/torch_status.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <functional>
#include <new>
#include <stdexcept>

#include "attention/dilated_attention.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/comm/accused_ranks.h"

namespace ringmaster::worker {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(CatchTorchTest, EachExceptionHasItsCode) {
  const struct {
    std::function<absl::Status()> body;
    absl::StatusCode code;
  } cases[] = {
      {[]() -> absl::Status { return absl::OkStatus(); }, absl::StatusCode::kOk},
      {[]() -> absl::Status { return absl::DataLossError("m"); }, absl::StatusCode::kDataLoss},
      {[]() -> absl::Status { throw std::bad_alloc(); }, absl::StatusCode::kResourceExhausted},
      {[]() -> absl::Status { throw std::runtime_error("m"); }, absl::StatusCode::kInternal},
      {[]() -> absl::Status { throw attention::ExchangeError(absl::UnavailableError("m")); },
       absl::StatusCode::kUnavailable},
      {[]() -> absl::Status { TORCH_CHECK_WITH(OutOfMemoryError, false, "m"); },
       absl::StatusCode::kResourceExhausted},
      {[]() -> absl::Status { TORCH_CHECK_VALUE(false, "m"); }, absl::StatusCode::kInvalidArgument},
      {[]() -> absl::Status { TORCH_CHECK(false, "m"); }, absl::StatusCode::kInternal},
  };
  for (const auto& [body, code] : cases) {
    const absl::Status status = CatchTorch("trying", body);
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(status.ToString(), Not(HasSubstr("frame #")));
  }
  EXPECT_THAT(CatchTorch("step 7", [&] { return cases[3].body(); }).ToString(),
              HasSubstr("step 7: m"));
}

// What LibTorch itself throws when the machine has no memory.
TEST(CatchTorchTest, RealMemoryExhaustionOnTheCpuIsResourceExhausted) {
  const absl::Status status = CatchTorch("allocating", [] {
    at::empty({int64_t{1} << 50}, at::kByte);
    return absl::OkStatus();
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
}

class FailsInBackward : public torch::autograd::Function<FailsInBackward> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext*, const at::Tensor& x) {
    return x.clone();
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*,
                                                 torch::autograd::variable_list) {
    throw attention::ExchangeError(
        Accuse(absl::DeadlineExceededError("rank 2 did not answer"), {2}));
  }
};

// The engine hands an exception of backward to its caller with its type.
TEST(CatchTorchTest, ALostPeerInBackwardKeepsItsStatus) {
  const absl::Status status = CatchTorch("backward", [] {
    const at::Tensor x = at::ones({3}).set_requires_grad(true);
    torch::autograd::grad({FailsInBackward::apply(x)}, {x}, {at::ones({3})});
    return absl::OkStatus();
  });
  EXPECT_EQ(status, Accuse(absl::DeadlineExceededError("backward: rank 2 did not answer"), {2}));
}

}  // namespace
}  // namespace ringmaster::worker
