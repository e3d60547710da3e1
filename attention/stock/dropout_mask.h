#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "attention/dropout.h"
#include "attention/parts/rank_parts.h"

namespace ringmaster::attention {

// Which probabilities of a part are dropped.
class DropoutMask {
 public:
  // `own` and `keys` are the global tokens of the rows that the part's queries and keys are among.
  // REQUIRES: each group's queries are of one head.
  DropoutMask(const AttentionDropout& dropout, const Part& part, const std::vector<int64_t>& own,
              const std::vector<int64_t>& keys, at::Device device);

  // Factors of probabilities, 0 or 1 / (1 - probability): of problems [first, first + groups),
  // numbered batch * groups of the part + group, their queries [query, query + queries) and their
  // first `keys` keys. [groups, queries, keys] of `dtype`, fp32 or fp64.
  at::Tensor Factors(int64_t first, int64_t groups, int64_t query, int64_t queries, int64_t keys,
                     at::ScalarType dtype) const;

 private:
  const double probability_;
  // All int64, on the device: Philox's keys [B * groups], and global tokens [groups, rows].
  const at::Tensor philox_keys_, queries_, keys_;
};

// The masks of a rank's parts.
class DropoutMasks {
 public:
  // Borrows both.
  DropoutMasks(const AttentionDropout& dropout, const RankParts& parts);

  // None if nothing is dropped. `far`: of keys of the pool.
  std::optional<DropoutMask> Of(const Part& part, bool far, at::Device device) const;

 private:
  const AttentionDropout& dropout_;
  std::vector<int64_t> own_, pool_;  // the tokens of rows
};

// Factors as above out of integer operations of LibTorch, for devices other than the CPU without
// our kernels, a thousand times slower than those: Philox keys [G], tokens of queries [G, M] and of
// keys [G, K].
at::Tensor DropoutFactorsOnDevice(double probability, const at::Tensor& philox_keys,
                                  const at::Tensor& queries, const at::Tensor& keys,
                                  at::ScalarType dtype);

}  // namespace ringmaster::attention
