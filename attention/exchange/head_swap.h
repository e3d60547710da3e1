#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "attention/exchange/exchange.h"
#include "attention/plan/head_shares.h"

namespace ringmaster::attention {

// Swaps a rank's tokens of all heads for all tokens of its heads, and back: one grouped exchange
// each, at most one message to each peer, nothing twice. All tensors of a swap have one dtype, that
// of all ranks. Borrows both arguments. Blocks; throws ExchangeError. Lives on one thread.
class HeadSwap {
 public:
  HeadSwap(const HeadShares& shares, GroupedExchange* exchange)
      : shares_(shares), exchange_(exchange), rank_(exchange->rank()) {}

  // `heads` for each key/value head there is: [B, tokens, heads, C].
  struct Rows {
    at::Tensor tensor;
    int64_t heads = 1;
  };

  // From tensors of this rank's tokens to contiguous ones of its heads, tokens in the order of the
  // sequence.
  std::vector<at::Tensor> ToHeads(const std::vector<Rows>& rows) const;
  std::vector<at::Tensor> ToTokens(const std::vector<Rows>& rows) const;

 private:
  // What is exchanged with each rank, range by range.
  using Views = std::vector<std::vector<at::Tensor>>;
  // Of tensors of this rank's tokens, the heads of each rank.
  Views ByHeads(const std::vector<Rows>& rows) const;
  // Of tensors of this rank's heads, the tokens of each rank.
  Views ByTokens(const std::vector<Rows>& rows) const;
  // Sends each rank its views, and copies into the others what comes.
  void Swap(const Views& from, const Views& to, const at::Tensor& like) const;

  const HeadShares& shares_;
  GroupedExchange* const exchange_;
  const int rank_;
};

}  // namespace ringmaster::attention
