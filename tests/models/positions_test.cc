#include "models/positions.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>

#include <cmath>
#include <complex>
#include <numeric>
#include <utility>
#include <vector>

#include "attention/dilated_attention.h"
#include "gtest/gtest.h"
#include "tests/models/small_models.h"
#include "torch/csrc/autograd/autograd.h"

namespace ringmaster::models {
namespace {

// The score of a query of ones at `query` and a key of ones at `key`, from the definition:
// the real part of the sum over channels of zeta^(distance / 512) e^(i distance theta).
double Expected(const LongNetConfig& config, int64_t query, int64_t key) {
  const int64_t half = config.head_dim() / 2;
  double sum = 0;
  for (int64_t m = 0; m < half; ++m) {
    const double share = static_cast<double>(m) / half;
    const double angle = static_cast<double>(query - key) * std::pow(10000.0, -share);
    const double zeta = (share + 0.4) / 1.4;
    const double decay = config.positions == Positions::kXpos
                             ? std::pow(zeta, static_cast<double>(query - key) / 512)
                             : 1;
    sum += 2 * decay * std::cos(angle);
  }
  return sum;
}

double Score(const LongNetConfig& config, int64_t query, int64_t key, at::ScalarType dtype) {
  const int64_t positions[] = {query, key};
  const RotaryTables tables = MakeRotaryTables(config, positions, at::TensorOptions(dtype));
  const at::Tensor x = at::ones({1, 2, 1, config.head_dim()}, dtype);
  const at::Tensor q = Rotate(x, tables.query_cos, tables.query_sin).select(1, 0);
  const at::Tensor k = Rotate(x, tables.key_cos, tables.key_sin).select(1, 1);
  return q.mul(k).sum().item<double>();
}

TEST(RotaryTest, ScoresDependOnTheDistanceOnlyAlsoFarOut) {
  const LongNetConfig config = SmallConfig();
  for (const int64_t base : {int64_t{0}, int64_t{1000}, int64_t{1} << 30}) {
    for (const int64_t distance : {0, 1, 7, 500}) {
      EXPECT_NEAR(Score(config, base + distance, base, at::kDouble), Expected(config, distance, 0),
                  base < 10000 ? 1e-10 : 1e-6);
      EXPECT_NEAR(Score(config, base + distance, base, at::kFloat), Expected(config, distance, 0),
                  2e-5);
    }
  }
}

TEST(RotaryTest, XposDecaysWithTheDistanceInEverySegment) {
  LongNetConfig config = SmallConfig();
  config.positions = Positions::kXpos;
  config.attention.branches = {{512, 1}, {kLongestXposSegment, 16}};
  for (const int64_t begin : {int64_t{0}, kLongestXposSegment * 1000}) {
    for (const auto& [query, key] : std::vector<std::pair<int64_t, int64_t>>{
             {5, 5}, {600, 20}, {32767, 32300}, {30000, 20000}}) {
      const double expected = Expected(config, query, key);
      EXPECT_NEAR(Score(config, begin + query, begin + key, at::kFloat), expected,
                  2e-5 + 1e-5 * std::abs(expected));
    }
  }
  EXPECT_LT(std::abs(Score(config, kLongestXposSegment - 1, 0, at::kFloat)), 1e-4);
}

struct Gradients {
  at::Tensor query, key;
};

// Of one head of 64 channels, through attention within one segment.
Gradients GradientsThroughAttention(int64_t segment, const at::Tensor& x, const at::Tensor& dout) {
  LongNetConfig config = SmallConfig();
  config.positions = Positions::kXpos;
  config.dim = 64;
  config.heads = config.kv_heads = 1;
  config.attention.branches = {{segment, 32}};
  EXPECT_TRUE(config.Validate().ok());
  std::vector<int64_t> positions(segment);
  std::iota(positions.begin(), positions.end(), 0);
  const RotaryTables tables = MakeRotaryTables(config, positions, x.options());
  const at::Tensor q = x[0].detach().set_requires_grad(true);
  const at::Tensor k = x[1].detach().set_requires_grad(true);
  const at::Tensor out =
      attention::DilatedAttention(Rotate(q, tables.query_cos, tables.query_sin),
                                  Rotate(k, tables.key_cos, tables.key_sin), x[2], config.attention)
          .out;
  const auto gradients = torch::autograd::grad({out}, {q, k}, {dout});
  return {gradients[0], gradients[1]};
}

// The largest error of a channel beside its size.
double WorstChannel(const at::Tensor& x, const at::Tensor& expected) {
  const auto norm = [](const at::Tensor& y) { return y.pow(2).sum({0, 1, 2}).sqrt(); };
  return norm(x.to(at::kDouble) - expected).div(norm(expected)).max().item<double>();
}

// Of losses that are means over many tokens, where the decay is strongest.
TEST(RotaryTest, XposKeepsSmallGradientsOfTheLongestSegment) {
  at::manual_seed(8);
  const at::Tensor x = at::randn({3, 1, kLongestXposSegment, 1, 64}, at::kDouble);
  const at::Tensor dout = at::randn(x[0].sizes(), at::kDouble) * 1e-8;
  for (const auto& [dtype, bound] : {std::pair{at::kFloat, 1e-5}, {at::kBFloat16, 0.02}}) {
    const at::Tensor rounded = x.to(dtype), gradient = dout.to(dtype);
    const Gradients got = GradientsThroughAttention(kLongestXposSegment, rounded, gradient);
    const Gradients want = GradientsThroughAttention(kLongestXposSegment, rounded.to(at::kDouble),
                                                     gradient.to(at::kDouble));
    EXPECT_LT(WorstChannel(got.query, want.query), bound) << c10::toString(dtype);
    EXPECT_LT(WorstChannel(got.key, want.key), bound) << c10::toString(dtype);
  }
}

TEST(RotaryTest, GradientIsTheTransposeAndBf16RoundsOnce) {
  LongNetConfig config = SmallConfig();
  config.positions = Positions::kXpos;
  config.attention.branches = {{64, 1}};
  const std::vector<int64_t> positions = {0, 3, 17, 63};
  const RotaryTables tables = MakeRotaryTables(config, positions, at::TensorOptions(at::kDouble));
  const at::Tensor x = at::randn({2, 4, 3, 4}, at::kDouble).set_requires_grad(true);
  const at::Tensor y = Rotate(x, tables.query_cos, tables.query_sin);
  const at::Tensor dy = at::randn({2, 4, 3, 4}, at::kDouble);
  const at::Tensor dx = torch::autograd::grad({y}, {x}, {dy})[0];
  const at::Tensor other = at::randn({2, 4, 3, 4}, at::kDouble);
  // <R other, dy> == <other, R^T dy>.
  EXPECT_NEAR(Rotate(other, tables.query_cos, tables.query_sin).mul(dy).sum().item<double>(),
              other.mul(dx).sum().item<double>(), 1e-12);

  const RotaryTables bf16 = MakeRotaryTables(config, positions, at::TensorOptions(at::kBFloat16));
  EXPECT_EQ(bf16.query_cos.scalar_type(), at::kFloat);
  const at::Tensor rounded = x.detach().to(at::kBFloat16);
  const at::Tensor exact = Rotate(rounded.to(at::kFloat), bf16.query_cos, bf16.query_sin);
  EXPECT_TRUE(Rotate(rounded, bf16.query_cos, bf16.query_sin).equal(exact.to(at::kBFloat16)));
}

}  // namespace
}  // namespace ringmaster::models
