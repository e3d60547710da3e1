#include "attention/exchange/far_rows.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <vector>

#include "attention/parts/rows.h"

namespace ringmaster::attention {
namespace {

constexpr int kKeys = 0, kValues = 1;  // second dimension of pools and messages

// A consecutive part of a pool or send buffer: [B, rows, D].
at::Tensor MessageRows(const at::Tensor& buffer, int64_t begin, int64_t rows, int which) {
  return buffer.narrow(0, begin, rows).select(1, which).transpose(0, 1);
}

// Calls f(rows, [B, rows, D] of keys, the same of values) for each row set of a message that lies
// in `buffer`.
template <typename F>
void ForEachSet(const PlacedParts::Message& message, const at::Tensor& buffer, const F& f) {
  int64_t at = message.message->begin;
  for (const PlacedRows& rows : message.local) {
    f(rows, MessageRows(buffer, at, rows.set().rows(), kKeys),
      MessageRows(buffer, at, rows.set().rows(), kValues));
    at += rows.set().rows();
  }
}

std::vector<Slice> Slices(const std::vector<RankParts::Message>& messages) {
  std::vector<Slice> slices;
  for (const RankParts::Message& message : messages) {
    slices.push_back({message.peer, message.begin, message.rows});
  }
  return slices;
}

at::Tensor EmptyRows(int64_t rows, const at::Tensor& k) {
  return at::empty({rows, 2, k.size(0), k.size(3)}, k.options());
}

// What goes out; what is kept is put into the pool.
at::Tensor Pack(const PlacedParts& parts, const at::Tensor& k, const at::Tensor& v,
                const at::Tensor& pool) {
  const at::Tensor outgoing = EmptyRows(parts.parts().outgoing_rows, k);
  const auto pack = [&](const PlacedRows& rows, const at::Tensor& keys, const at::Tensor& values) {
    PackRows(k, rows, keys);
    PackRows(v, rows, values);
  };
  for (const PlacedParts::Message& message : parts.outgoing()) {
    ForEachSet(message, outgoing, pack);
  }
  ForEachSet(parts.kept(), pool, pack);
  return outgoing;
}

}  // namespace

at::Tensor PoolKeys(const at::Tensor& pool) {
  return pool.select(1, kKeys).transpose(0, 1).unsqueeze(2);
}

at::Tensor PoolValues(const at::Tensor& pool) {
  return pool.select(1, kValues).transpose(0, 1).unsqueeze(2);
}

FarRows::FarRows(const PlacedParts& parts, const at::Tensor& k, const at::Tensor& v,
                 GroupedExchange* exchange)
    : pool_(EmptyRows(parts.parts().pool_rows, k)),
      outgoing_(Pack(parts, k, v, pool_)),
      group_(exchange, outgoing_, Slices(parts.parts().outgoing), pool_,
             Slices(parts.parts().incoming)) {}

FarGradients::FarGradients(const PlacedParts& parts, const at::Tensor& owed, at::ScalarType wire,
                           GroupedExchange* exchange)
    : parts_(parts),
      owed_(owed),
      returned_(at::empty({parts.parts().outgoing_rows, 2, owed.size(2), owed.size(3)},
                          owed.options().dtype(wire))),
      group_(exchange, owed.to(wire), Slices(parts.parts().incoming), returned_,
             Slices(parts.parts().outgoing)) {}

void FarGradients::AddTo(const at::Tensor& dk, const at::Tensor& dv) {
  const auto add = [&](const PlacedRows& rows, const at::Tensor& keys, const at::Tensor& values) {
    AddRows(keys.unsqueeze(1), rows, dk);
    AddRows(values.unsqueeze(1), rows, dv);
  };
  ForEachSet(parts_.kept(), owed_, add);
  if (parts_.outgoing().empty()) {
    return;
  }
  group_.Wait();
  const at::Tensor received = returned_.to(owed_.scalar_type());
  for (const PlacedParts::Message& message : parts_.outgoing()) {
    ForEachSet(message, received, add);
  }
}

void FarGradients::Round(const at::Tensor& dk_sums, const at::Tensor& dv_sums, const at::Tensor& dk,
                         const at::Tensor& dv) const {
  const auto round = [&](const PlacedParts::Message& message) {
    for (const PlacedRows& rows : message.local) {
      RoundRows(dk_sums, rows, dk);
      RoundRows(dv_sums, rows, dv);
    }
  };
  round(parts_.kept());
  std::for_each(parts_.outgoing().begin(), parts_.outgoing().end(), round);
}

}  // namespace ringmaster::attention
