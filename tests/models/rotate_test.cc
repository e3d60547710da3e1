// Rotary positions of the types that GPUs compute in, on the device of --device (flags:
// tests/attention/flags.h), against fp64 on the CPU.
#include <ATen/TensorOperators.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <numeric>
#include <vector>

#include "attention/tiles/tile_ops.h"
#include "models/positions.h"
#include "tests/attention/flags.h"
#include "tests/models/small_models.h"

namespace ringmaster::models {
namespace {

attention::CaseFlags g_flags;

// Half a step of the type, and what fp32 adds to it.
void ExpectRounded(const at::Tensor& got, const at::Tensor& want) {
  const double half_step = got.scalar_type() == at::kHalf ? 0x1p-11 : 0x1p-8;
  const at::Tensor error = (got.cpu().to(at::kDouble) - want).abs();
  const at::Tensor bound = want.abs() * (1.001 * half_step) + 2e-6;
  EXPECT_TRUE(error.le(bound).all().item<bool>()) << (error / bound).max();
}

void Check(at::ScalarType dtype, int64_t tokens, int64_t head_dim, const LongNetConfig& config) {
  std::vector<int64_t> positions(tokens);
  std::iota(positions.begin(), positions.end(), 40);
  const RotaryTables exact = MakeRotaryTables(config, positions, at::TensorOptions(at::kDouble));
  const RotaryTables tables =
      MakeRotaryTables(config, positions, at::TensorOptions(g_flags.device).dtype(dtype));
  // Columns of wider rows: not contiguous.
  const auto random = [&] {
    return at::randn({2, tokens, 3, head_dim + 1}, at::kDouble).to(dtype).narrow(3, 0, head_dim);
  };
  const at::Tensor x = random(), dy = random();
  const auto run = [&](const at::Tensor& from, const at::Tensor& gradient,
                       const RotaryTables& with) {
    const at::Tensor leaf = from.detach().set_requires_grad(true);
    const at::Tensor y = Rotate(leaf, with.key_cos, with.key_sin);
    return std::pair(y.detach(), torch::autograd::grad({y}, {leaf}, {gradient})[0]);
  };
  const auto got = run(x.to(g_flags.device), dy.to(g_flags.device), tables);
  const auto want = run(x.to(at::kDouble), dy.to(at::kDouble), exact);
  ExpectRounded(got.first, want.first);
  ExpectRounded(got.second, want.second);
}

TEST(RotateTest, RoundsOnceForwardAndBackward) {
  at::manual_seed(3);
  LongNetConfig config = SmallConfig();
  config.positions = Positions::kXpos;
  config.attention.branches = {{64, 1}};
  if (!g_flags.device.is_cpu()) {
    ASSERT_EQ(attention::WhyNoTileKernels(at::randn({1}, at::TensorOptions(g_flags.device))), "");
  }
  for (const int64_t head_dim : {4, 10, 64}) {
    config.dim = head_dim * config.heads;
    for (const at::ScalarType dtype : {at::kBFloat16, at::kHalf}) {
      for (const int64_t tokens : {0, 1, 37}) {
        SCOPED_TRACE(testing::Message()
                     << dtype << ", " << tokens << " tokens, head_dim " << head_dim);
        Check(dtype, tokens, head_dim, config);
      }
    }
  }
}

}  // namespace
}  // namespace ringmaster::models

int main(int argc, char** argv) {
  return ringmaster::attention::RunTestsOfCases(argc, argv, &ringmaster::models::g_flags);
}
