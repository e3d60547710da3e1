#include "models/dropout.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/ones.h>

#include <cmath>
#include <vector>

#include "gtest/gtest.h"
#include "tests/models/small_models.h"

namespace ringmaster::models {
namespace {

at::Tensor PositionsTo(int64_t count) {
  return at::arange(count, at::TensorOptions().dtype(at::kLong));
}

TEST(DropoutTest, DropsItsShareAndKeepsTheMean) {
  const uint64_t seeds[] = {DropoutSeed(1, 0, 0), DropoutSeed(1, 0, 1)};
  const at::Tensor ones = at::ones({2, 500, 100}, at::kDouble);
  for (const double p : {0.1, 0.5, 0.9}) {
    const at::Tensor out = Dropout(p, seeds, PositionsTo(500)).Apply(ones, 3);
    EXPECT_TRUE(out.eq(0).logical_or(out.eq(1 / (1 - p))).all().item<bool>());
    // Each token, and each channel, drops its share: five standard deviations.
    const at::Tensor dropped = out.eq(0).to(at::kDouble);
    const auto within = [p](const at::Tensor& shares, double of) {
      return shares.sub(p).abs().max().item<double>() < 5 * std::sqrt(p * (1 - p) / of);
    };
    EXPECT_TRUE(within(dropped.mean(at::IntArrayRef{0, 1}), 1000)) << p;
    EXPECT_TRUE(within(dropped.mean(at::IntArrayRef{2}), 100)) << p;
    EXPECT_TRUE(within(dropped.mean(), 100000)) << p;
  }
}

TEST(DropoutTest, EverySeedStepSequencePlaceAndTokenDrawsAnew) {
  const at::Tensor ones = at::ones({1, 40, 64}, at::kDouble);
  const auto drawn = [&](uint64_t seed, int64_t step, int64_t sequence, int64_t place) {
    const uint64_t seeds[] = {DropoutSeed(seed, step, sequence)};
    return Dropout(0.5, seeds, PositionsTo(40)).Apply(ones, place);
  };
  const at::Tensor first = drawn(0, 0, 0, 0);
  EXPECT_TRUE(first.equal(drawn(0, 0, 0, 0)));
  for (const at::Tensor& other :
       {drawn(1, 0, 0, 0), drawn(0, 1, 0, 0), drawn(0, 0, 1, 0), drawn(0, 0, 0, 1)}) {
    EXPECT_NEAR(first.eq(other).to(at::kDouble).mean().item<double>(), 0.5, 0.05);
  }
  EXPECT_NEAR(first[0][0].eq(first[0][1]).to(at::kDouble).mean().item<double>(), 0.5, 0.32);
}

// A token's draw does not know who else is in the batch, nor how many tokens a chunk holds.
TEST(DropoutTest, ATokensDrawIsItsOwn) {
  const uint64_t seeds[] = {DropoutSeed(7, 3, 0), DropoutSeed(7, 3, 1)};
  const int64_t count = 70000;  // with 128 channels: three chunks of 2^22
  const at::Tensor whole =
      Dropout(0.3, seeds, PositionsTo(count)).Apply(at::ones({2, count, 128}), 1);
  const at::Tensor positions = PositionsTo(count).narrow(0, 65000, 50);
  const at::Tensor part = Dropout(0.3, absl::MakeConstSpan(seeds).subspan(1), positions)
                              .Apply(at::ones({1, 50, 128}), 1);
  EXPECT_TRUE(whole.narrow(0, 1, 1).narrow(1, 65000, 50).equal(part));
}

TEST(DropoutTest, OffAndEmptyShardsChangeNothing) {
  const at::Tensor x = at::ones({1, 4, 8});
  const uint64_t seeds[] = {1};
  EXPECT_TRUE(Dropout().Apply(x, 0).is_same(x));
  EXPECT_TRUE(Dropout(0, seeds, PositionsTo(4)).Apply(x, 0).is_same(x));
  EXPECT_EQ(Dropout(0.5, seeds, PositionsTo(0)).Apply(x.narrow(1, 0, 0), 0).numel(), 0);
}

}  // namespace
}  // namespace ringmaster::models
