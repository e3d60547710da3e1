#include "models/dropout.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace ringmaster::models {
namespace {

constexpr uint64_t kGolden = 0x9e3779b97f4a7c15u;
constexpr uint64_t kMix[] = {0xbf58476d1ce4e5b9u, 0x94d049bb133111ebu};
// Random bits of which an element's fate is made.
constexpr int kBits = 32;
// Random numbers at once, so that their memory does not grow with the sequence.
constexpr int64_t kChunk = 1 << 22;

// The output function of SplitMix64.
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * kMix[0];
  x = (x ^ (x >> 27)) * kMix[1];
  return x ^ (x >> 31);
}

// x ^= x >> bits of unsigned numbers; torch shifts int64 with their sign.
void FoldDown(at::Tensor& x, int bits) {
  const int64_t unsigned_part = (int64_t{1} << (64 - bits)) - 1;
  x.bitwise_xor_(x.bitwise_right_shift(bits).bitwise_and_(unsigned_part));
}

// Mix of every element, in integer operations that every device does alike.
void MixInPlace(at::Tensor& x) {
  FoldDown(x, 30);
  x.mul_(static_cast<int64_t>(kMix[0]));
  FoldDown(x, 27);
  x.mul_(static_cast<int64_t>(kMix[1]));
  FoldDown(x, 31);
}

}  // namespace

uint64_t DropoutSeed(uint64_t job_seed, int64_t step, int64_t sequence) {
  const uint64_t of_step = Mix(Mix(job_seed + kGolden) + static_cast<uint64_t>(step) * kGolden);
  return Mix(of_step + static_cast<uint64_t>(sequence + 1) * kGolden);
}

Dropout::Dropout(double probability, absl::Span<const uint64_t> seeds, const at::Tensor& positions)
    : probability_(probability) {
  if (probability == 0) {
    return;
  }
  const at::Tensor column = at::empty({static_cast<int64_t>(seeds.size()), 1}, at::kLong);
  std::copy(seeds.begin(), seeds.end(), column.mutable_data_ptr<int64_t>());
  keys_ = positions.mul(static_cast<int64_t>(kGolden)).add(column.to(positions.device()));
  MixInPlace(keys_);
}

// keys [rows] -> bool [rows, channels].
at::Tensor Dropout::Kept(const at::Tensor& keys, int64_t channels) const {
  at::Tensor bits = at::arange(channels, keys.options())
                        .mul_(static_cast<int64_t>(kGolden))
                        .add(keys.unsqueeze(-1));
  MixInPlace(bits);
  const auto dropped = static_cast<int64_t>(std::ldexp(probability_, kBits));
  return bits.bitwise_and_((int64_t{1} << kBits) - 1).ge(dropped);
}

at::Tensor Dropout::Apply(const at::Tensor& x, int64_t place) const {
  if (!keys_.defined()) {
    return x;
  }
  at::Tensor keys =
      keys_.add(static_cast<int64_t>(Mix(kGolden * static_cast<uint64_t>(place + 1)))).view(-1);
  MixInPlace(keys);
  const int64_t channels = x.size(-1);
  const at::Tensor kept = at::empty(x.sizes(), x.options().dtype(at::kBool).requires_grad(false));
  const at::Tensor rows = kept.view({-1, channels});
  const int64_t chunk = std::max<int64_t>(1, kChunk / channels);
  for (int64_t begin = 0; begin < rows.size(0); begin += chunk) {
    const int64_t count = std::min(chunk, rows.size(0) - begin);
    rows.narrow(0, begin, count).copy_(Kept(keys.narrow(0, begin, count), channels));
  }
  return x.mul(kept).mul(1 / (1 - probability_));
}

}  // namespace ringmaster::models
