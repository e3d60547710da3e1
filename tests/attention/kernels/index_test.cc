// The arithmetic that kernels do on rows and on what rounding leaves over, on the host.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "attention/kernels/rest.h"
#include "attention/kernels/tile_list.h"

namespace ringmaster::attention::kernels {
namespace {

// Whether `find` finds every token from the first of the sums on, for all small steps.
template <typename Find>
bool FindsRows(const Find& find) {
  for (int32_t step = 1; step <= 7; ++step) {
    for (int32_t begin = 0; begin < 40; ++begin) {
      for (int32_t token = begin; token < 60; ++token) {
        const TileRows rows = {.residue = token % step, .first = token / step};
        const RowOfSums in = find(rows, begin / step, begin % step, step);
        const bool exists = in.residue >= 0 && in.residue < step && in.row >= 0;
        if (!exists || in.residue + in.row * step != token - begin) return false;
      }
    }
  }
  return true;
}

TEST(IndexTest, RowsAreFoundInSumsThatBeginElsewhere) { EXPECT_TRUE(FindsRows(RowInSums)); }

// The test above sees what may go wrong.
TEST(IndexTest, WrongRowsAreNoticed) {
  EXPECT_FALSE(FindsRows([](const TileRows& rows, int32_t, int32_t, int64_t) {
    return RowOfSums{rows.residue, rows.first};
  }));
  EXPECT_FALSE(FindsRows([](const TileRows& rows, int32_t row, int32_t residue, int64_t) {
    return RowOfSums{rows.residue - residue, rows.first - row};
  }));
  EXPECT_FALSE(FindsRows([](const TileRows& rows, int32_t row, int32_t residue, int64_t step) {
    const int32_t in = rows.residue - residue;
    return RowOfSums{in < 0 ? in + static_cast<int32_t>(step) : in, rows.first - row};
  }));
}

uint16_t NearestBf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  bits += 0x7FFF + (bits >> 16 & 1);
  return static_cast<uint16_t>(bits >> 16);
}

TEST(IndexTest, ANumberIsItsRoundedOneAndTheRest) {
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal;
  double worst = 0;
  for (int i = 0; i < 100000; ++i) {
    const float value = normal(random) * std::exp2(static_cast<float>(i % 60 - 30));
    const uint16_t rounded = NearestBf16(value);
    const float again = WithRest(rounded, RestOf(value, rounded));
    worst = std::max(worst, std::abs(double{again} - value) / std::abs(value));
    ASSERT_EQ(NearestBf16(again), rounded) << value;
  }
  EXPECT_LE(worst, std::exp2(-15));
  // Halfway between two, zeros, and next to a power of two, below which numbers lie closer.
  for (const float value : {1.00390625f, 1.01171875f, -1.00390625f, 0.0f, -0.0f,
                            std::nextafter(2.0f, 0.0f), std::nextafter(-2.0f, 0.0f)}) {
    const uint16_t rounded = NearestBf16(value);
    EXPECT_NEAR(WithRest(rounded, RestOf(value, rounded)), value, std::abs(value) * 0x1p-15);
  }
  const float infinite = std::numeric_limits<float>::infinity();
  EXPECT_EQ(WithRest(NearestBf16(infinite), RestOf(infinite, NearestBf16(infinite))), infinite);
}

}  // namespace
}  // namespace ringmaster::attention::kernels
