// The arithmetic that kernels do on rows and on what rounding leaves over, on the host.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <type_traits>

#include "attention/kernels/rest.h"
#include "attention/kernels/tile_list.h"
#include "tests/attention/kernels/elements.h"

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

template <typename T>
class ElementTest : public testing::Test {
 protected:
  static constexpr ElementType kType =
      std::is_same_v<T, Fp16> ? ElementType::kFp16 : ElementType::kBf16;
  static uint16_t Nearest(float value) { return ToElement(kType, value); }
  static float Float(uint16_t bits) { return FromElement(kType, bits); }
  static float Again(float value) {
    const uint16_t rounded = Nearest(value);
    return WithRest<T>(rounded, RestOf<T>(value, rounded));
  }
};
using Elements = testing::Types<Bf16, Fp16>;
TYPED_TEST_SUITE(ElementTest, Elements);

TYPED_TEST(ElementTest, EveryNumberIsKnown) {
  for (int bits = 0; bits < 1 << 16; ++bits) {
    const auto element = static_cast<uint16_t>(bits);
    const float want = this->Float(element), got = TypeParam::Float(TypeParam::Extend(element));
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(got)) << bits;
    } else {
      ASSERT_EQ(BitsOf(got), BitsOf(want)) << bits;
    }
    // Whatever the rest is, the whole rounds to the number.
    for (int rest = -127; rest <= 127 && std::isfinite(want); ++rest) {
      const float whole = WithRest<TypeParam>(element, static_cast<int8_t>(rest));
      if (want != 0 || rest > 0) {
        ASSERT_EQ(this->Nearest(whole), element) << bits << " " << rest;
      }
    }
  }
}

// Between each two neighbours: all that rounds to one is there again, to within a 256th of their
// distance.
TYPED_TEST(ElementTest, ANumberIsItsRoundedOneAndTheRest) {
  constexpr int kSteps = 23;
  for (int bits = 0; bits + 1 < 1 << 16; ++bits) {
    const double from = this->Float(static_cast<uint16_t>(bits));
    const double distance = this->Float(static_cast<uint16_t>(bits + 1)) - from;
    for (int i = 0; i <= kSteps && std::isfinite(distance); ++i) {
      const auto value = static_cast<float>(from + distance * i / kSteps);
      ASSERT_NEAR(this->Again(value), value, std::abs(distance) / 256) << bits << " " << i;
    }
    // Halfway.
    if (const auto value = static_cast<float>(from + distance / 2); std::isfinite(value)) {
      ASSERT_NEAR(this->Again(value), value, std::abs(distance) / 256) << bits;
      ASSERT_EQ(this->Nearest(this->Again(value)), this->Nearest(value)) << bits;
    }
  }
}

// A diverged run must not look finite.
TYPED_TEST(ElementTest, WhatIsNotFiniteStaysSo) {
  const float infinite = std::numeric_limits<float>::infinity();
  for (const float value : {infinite, -infinite, static_cast<float>(NAN)}) {
    EXPECT_FALSE(std::isfinite(this->Again(value)));
  }
  // Also what is finite until it is rounded.
  for (const float value : {65530.0F, -65530.0F, std::numeric_limits<float>::max()}) {
    EXPECT_EQ(std::isfinite(this->Again(value)), std::isfinite(this->Float(this->Nearest(value))));
  }
}

}  // namespace
}  // namespace ringmaster::attention::kernels
