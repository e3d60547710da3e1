// What parts and keys get of a query's weight adds up to one, however large the scores are: where
// outputs miss that, gradients, which are differences from them, miss it many times over.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <limits>

#include "attention/parts/device_rows.h"
#include "attention/stock/dense_attention.h"

namespace ringmaster::attention {
namespace {

constexpr double kRoundings = 1e-6;  // of a sum of a few hundred numbers that is one

double MostFromOne(const at::Tensor& x) { return (x - 1).abs().max().item<double>(); }

TEST(SharesTest, OfKeysAddUpToOne) {
  at::manual_seed(1);
  const at::Tensor q = at::randn({1, 2, 200, 16}), k = at::randn({1, 2, 300, 16});
  for (const double scale : {0.25, 10.0, 100.0}) {
    const DenseOutput output =
        BlockedForward(q, k, at::ones_like(k), /*causal=*/true, scale, /*dropout=*/nullptr);
    EXPECT_LE(MostFromOne(output.out), kRoundings) << scale;
  }
}

TEST(SharesTest, OfPartsAddUpToOne) {
  at::manual_seed(2);
  const at::Tensor out = at::zeros({1, 500, 2, 4});
  const at::Tensor lse = at::full({1, 500, 2}, -std::numeric_limits<double>::infinity());
  const at::Tensor index = at::arange(1000);
  const at::Tensor scores = at::randn({1, 1, 1000}) * 300;
  for (int part = 0; part < 4; ++part) {
    MergeOnDevice(at::ones({1, 1, 1000, 4}), scores + at::randn({1, 1, 1000}), index, out, lse);
  }
  EXPECT_LE(MostFromOne(out), kRoundings);
}

}  // namespace
}  // namespace ringmaster::attention
