#include "worker/train/state_digest.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <vector>

namespace ringmaster::worker {
namespace {

constexpr int64_t kBlock = int64_t{1} << 20;

at::Tensor RandomBits(int64_t floats, uint64_t seed) {
  std::mt19937 random(seed);
  at::Tensor tensor = at::empty({floats}, at::kFloat);
  auto* words = static_cast<uint32_t*>(tensor.mutable_data_ptr());
  for (int64_t i = 0; i < floats; ++i) {
    words[i] = static_cast<uint32_t>(random());  // any bits, NaNs among them
  }
  return tensor;
}

TEST(WordSumsTest, ASumForEachBlock) {
  EXPECT_EQ(WordSums(at::empty({0}, at::kFloat)).size(), 0u);
  EXPECT_EQ(WordSums(RandomBits(1, 1)).size(), 1u);
  EXPECT_EQ(WordSums(RandomBits(kBlock, 1)).size(), 1u);
  EXPECT_EQ(WordSums(RandomBits(kBlock + 1, 1)).size(), 2u);
  EXPECT_EQ(WordSums(at::zeros({kBlock}, at::kDouble)).size(), 2u) << "two words each";
}

TEST(WordSumsTest, EveryBitCountsAndOnlyInItsBlock) {
  const at::Tensor tensor = RandomBits(2 * kBlock + 7, 3);
  auto* words = static_cast<uint32_t*>(tensor.mutable_data_ptr());
  const std::vector<int64_t> base = WordSums(tensor);
  for (const int64_t place : {int64_t{0}, int64_t{17}, kBlock - 1, kBlock, 2 * kBlock + 6}) {
    for (const int bit : {0, 15, 31}) {
      words[place] ^= uint32_t{1} << bit;
      std::vector<int64_t> changed = WordSums(tensor);
      words[place] ^= uint32_t{1} << bit;
      EXPECT_NE(changed[place / kBlock], base[place / kBlock]) << place << " bit " << bit;
      changed[place / kBlock] = base[place / kBlock];
      EXPECT_EQ(changed, base);
    }
  }
  std::swap(words[1], words[2]);
  EXPECT_NE(WordSums(tensor)[0], base[0]) << "the order counts";
}

TEST(StateDigestTest, TellsOrderAndStepApart) {
  const at::Tensor a = RandomBits(100, 1);
  const at::Tensor b = RandomBits(100, 2);
  const uint64_t base = StateDigest({a, b}, 5);
  EXPECT_EQ(StateDigest({a.clone(), b.clone()}, 5), base);
  EXPECT_NE(StateDigest({b, a}, 5), base);
  EXPECT_NE(StateDigest({a, b}, 6), base);
}

}  // namespace
}  // namespace ringmaster::worker
