#include "worker/train/state_digest.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>

#include "absl/cleanup/cleanup.h"

namespace ringmaster::worker {
namespace {

constexpr int64_t kBlock = int64_t{1} << 20;

// Odd and without pattern: SplitMix64 of the place.
at::Tensor Multipliers() {
  const at::Tensor values = at::empty({kBlock}, at::kLong);
  auto* out = values.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < kBlock; ++i) {
    uint64_t x = static_cast<uint64_t>(i + 1) * 0x9E3779B97F4A7C15;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
    out[i] = static_cast<int64_t>((x ^ (x >> 31)) | 1);
  }
  return values;
}

std::vector<int64_t> Sums(const at::Tensor& flat, const at::Tensor& multipliers) {
  const at::Tensor words = flat.view(at::kInt);
  const int64_t blocks = (words.numel() + kBlock - 1) / kBlock;
  const at::Tensor sums = at::empty({blocks}, words.options().dtype(at::kLong));
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t count = std::min(kBlock, words.numel() - block * kBlock);
    sums.select(0, block).copy_(words.narrow(0, block * kBlock, count)
                                    .to(at::kLong)
                                    .mul_(multipliers.narrow(0, 0, count))
                                    .sum());
  }
  const at::Tensor host = sums.to(at::kCPU);
  const auto* values = host.const_data_ptr<int64_t>();
  return {values, values + blocks};
}

}  // namespace

std::vector<int64_t> WordSums(const at::Tensor& flat) {
  return Sums(flat, Multipliers().to(flat.device()));
}

uint64_t StateDigest(const std::vector<at::Tensor>& tensors, int64_t step) {
  XXH3_state_t* hash = XXH3_createState();
  const absl::Cleanup free_hash = [hash] { XXH3_freeState(hash); };
  XXH3_64bits_reset(hash);
  at::Tensor multipliers;
  for (const at::Tensor& tensor : tensors) {
    if (tensor.is_cpu()) {
      XXH3_64bits_update(hash, tensor.const_data_ptr(), tensor.nbytes());
    } else {
      if (!multipliers.defined()) {
        multipliers = Multipliers().to(tensor.device());
      }
      const std::vector<int64_t> sums = Sums(tensor, multipliers);
      XXH3_64bits_update(hash, sums.data(), sums.size() * sizeof(sums[0]));
    }
  }
  XXH3_64bits_update(hash, &step, sizeof(step));
  return XXH3_64bits_digest(hash);
}

}  // namespace ringmaster::worker
