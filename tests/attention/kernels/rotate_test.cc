// Rotary positions on the GPU against fp64 on the host.
#include "attention/kernels/rotate.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "tests/attention/kernels/device_array.h"
#include "tests/attention/kernels/elements.h"
#include "tests/attention/kernels/hopper.h"

namespace ringmaster::attention::kernels {
namespace {

struct Shape {
  int64_t batch, tokens;
  int heads, half;
};

void CheckTurn(ElementType type, const Shape& shape, float direction) {
  const int64_t rows = shape.batch * shape.tokens * shape.heads;
  std::mt19937_64 random(shape.half);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> x(rows * 2 * shape.half);
  std::vector<float> cos(shape.tokens * shape.half), sin(cos.size());
  std::generate(x.begin(), x.end(), [&] { return ToElement(type, normal(random)); });
  std::generate(cos.begin(), cos.end(), [&] { return normal(random); });
  std::generate(sin.begin(), sin.end(), [&] { return normal(random); });
  const DeviceArray<uint16_t> on_device(x), out(x.size());
  const DeviceArray<float> all_cos(cos), all_sin(sin);
  ASSERT_EQ(Rotate({.type = type,
                    .batch = shape.batch,
                    .tokens = shape.tokens,
                    .heads = shape.heads,
                    .half = shape.half,
                    .direction = direction,
                    .x = on_device.data(),
                    .cos = all_cos.data(),
                    .sin = all_sin.data(),
                    .out = out.data()},
                   nullptr),
            "");
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  const std::vector<uint16_t> got = out.Host();
  // Half a step of the type, and what fp32 adds to it.
  const double rounding = type == ElementType::kBf16 ? 0x1p-8 : 0x1p-11;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t token = row / shape.heads % shape.tokens;
    for (int64_t m = 0; m < shape.half; ++m) {
      const int64_t low = row * 2 * shape.half + m, high = low + shape.half;
      const double x1 = FromElement(type, x[low]), x2 = FromElement(type, x[high]);
      const double c = cos[token * shape.half + m], s = direction * sin[token * shape.half + m];
      for (const auto& [at, want] : {std::pair{low, x1 * c - x2 * s}, {high, x2 * c + x1 * s}}) {
        const double bound =
            1.001 * rounding * std::abs(want) + 1e-6 * (std::abs(x1) + std::abs(x2));
        ASSERT_NEAR(FromElement(type, got[at]), want, bound) << "row " << row << " column " << m;
      }
    }
  }
}

// Wide loads and narrow ones, more columns than a block has threads, more tokens than blocks.
TEST(RotateTest, TurnsPairsOfColumns) {
  if (const std::string why = WhyNoHopper(); !why.empty()) GTEST_SKIP() << why;
  for (const ElementType type : {ElementType::kBf16, ElementType::kFp16}) {
    for (const Shape& shape : {Shape{2, 37, 3, 32},
                               {1, 5, 40, 64},
                               {3, 7, 2, 5},
                               {1, 3, 1, 1},
                               {1, 70000, 1, 8},
                               {2, 0, 3, 32}}) {
      SCOPED_TRACE(testing::Message() << shape.heads << " heads, half " << shape.half);
      CheckTurn(type, shape, 1);
      CheckTurn(type, shape, -1);
    }
  }
}

}  // namespace
}  // namespace ringmaster::attention::kernels
