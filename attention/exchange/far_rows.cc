#include "attention/exchange/far_rows.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <vector>

#include "attention/parts/rows.h"

namespace ringmaster::attention {
namespace {

constexpr int kKeys = 0, kValues = 1;  // second dimension of pools and messages

// Of a pool or send buffer, or part of one: [B, rows, D].
at::Tensor RowsIn(const at::Tensor& buffer, int which) {
  return buffer.select(1, which).transpose(0, 1);
}

// The rank's own rows in a pool.
at::Tensor KeptRows(const PlacedParts& parts, const at::Tensor& pool) {
  const RankParts::Message& kept = parts.parts().kept;
  return pool.narrow(0, kept.begin, kept.rows);
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
  if (parts.tiles() != nullptr) {
    TilePackRows(k, v, parts.tiles()->messages.sent, outgoing);
    TilePackRows(k, v, parts.tiles()->messages.kept, KeptRows(parts, pool));
    return outgoing;
  }
  const auto pack = [&](const PlacedRows& rows, const at::Tensor& buffer) {
    if (buffer.size(0) > 0) {
      PackRows(k, rows, RowsIn(buffer, kKeys));
      PackRows(v, rows, RowsIn(buffer, kValues));
    }
  };
  pack(parts.outgoing(), outgoing);
  pack(parts.kept(), KeptRows(parts, pool));
  return outgoing;
}

}  // namespace

at::Tensor PoolKeys(const at::Tensor& pool) { return RowsIn(pool, kKeys).unsqueeze(2); }

at::Tensor PoolValues(const at::Tensor& pool) { return RowsIn(pool, kValues).unsqueeze(2); }

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

void FarGradients::AddTo(const at::Tensor& dk, const at::Tensor& dv, const FinishedKeys& finished) {
  if (returned_.size(0) > 0) {
    group_.Wait();
  }
  if (parts_.tiles() != nullptr) {
    TileAddRows(parts_.tiles()->messages, KeptRows(parts_, owed_), returned_, dk, dv, finished);
    return;
  }
  const auto add = [&](const PlacedRows& rows, const at::Tensor& gradients) {
    if (gradients.size(0) > 0) {
      AddRows(RowsIn(gradients, kKeys).unsqueeze(1), rows, dk);
      AddRows(RowsIn(gradients, kValues).unsqueeze(1), rows, dv);
    }
  };
  add(parts_.kept(), KeptRows(parts_, owed_));
  add(parts_.outgoing(), returned_.to(owed_.scalar_type()));
}

}  // namespace ringmaster::attention
