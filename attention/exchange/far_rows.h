#pragma once

#include <ATen/core/Tensor.h>

#include "attention/exchange/exchange.h"
#include "attention/exchange/group_in_flight.h"
#include "attention/parts/placed_parts.h"
#include "attention/tiles/tile_ops.h"

// What of keys and values travels between ranks: selected rows there, the gradients of the same
// rows back. One thread; throw ExchangeError. No message is in flight when they are gone.
namespace ringmaster::attention {

// Rows of keys, or of values, of a pool as a tensor of one head: [B, rows, 1, D].
at::Tensor PoolKeys(const at::Tensor& pool);
at::Tensor PoolValues(const at::Tensor& pool);

// Packs what the peers need of k and v [B, T, Hkv, D] and starts the exchange. `exchange` may be
// null on a ring of one.
class FarRows {
 public:
  FarRows(const PlacedParts& parts, const at::Tensor& k, const at::Tensor& v,
          GroupedExchange* exchange);

  void Wait() { group_.Wait(); }
  // [rows, 2 (K, V), B, D] of k's dtype, whole after Wait().
  const at::Tensor& pool() const { return pool_; }

 private:
  const at::Tensor pool_, outgoing_;
  GroupInFlight group_;
};

// Starts the way back of `owed`, the gradients of a pool's rows in fp32 or fp64, as `wire`.
class FarGradients {
 public:
  FarGradients(const PlacedParts& parts, const at::Tensor& owed, at::ScalarType wire,
               GroupedExchange* exchange);

  // Adds to dk and dv [B, T, Hkv, D], of the type of `owed`, what is the rank's own; waits for it.
  // With tiles `finished`, of k's shape and type, may be given: the totals of rows that something
  // is added to go there instead, rounded.
  void AddTo(const at::Tensor& dk, const at::Tensor& dv, const FinishedKeys& finished = {});
  // For what goes to others, too. At the end.
  void Wait() { group_.Wait(); }

 private:
  const PlacedParts& parts_;
  const at::Tensor owed_, returned_;
  GroupInFlight group_;
};

}  // namespace ringmaster::attention
