// The kernels over lists of tiles for CPU tensors, a tile and a span at a time, with sums in fp64;
// what is stored, and what a tensor core would multiply, is rounded as the GPU's is. Linked into a
// test, they make the operator take its tiles.
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "attention/kernels/rest.h"
#include "attention/kernels/tile_list.h"

namespace ringmaster::attention {
namespace {

using at::Tensor;
using kernels::KeyTile;
using kernels::Tile;
using kernels::TileKeys;
using kernels::TileRows;

// As tensor maps want it, and all rows finite.
void CheckOperand(const Tensor& x) {
  bool fits = x.element_size() == 2 && x.stride(3) == 1 &&
              reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0;
  for (int i = 0; i < 3; ++i) fits = fits && x.stride(i) > 0 && x.stride(i) % 8 == 0;
  TORCH_CHECK(fits, "not an operand: strides ", x.strides());
  TORCH_CHECK(x.isfinite().all().item<bool>(), "rows that are not finite");
}

// Rows of an operand or its gradient under its views; a pool is the view after the last step's.
class Rows {
 public:
  // The first token of `own` is `begin`.
  Rows(const Tensor& own, at::IntArrayRef steps, const Tensor& pool = {}, int64_t begin = 0)
      : own_(own.to(at::kDouble)), steps_(steps.vec()), begin_(begin) {
    if (pool.defined()) pool_ = pool.to(at::kDouble);
  }

  // The token of a tile's first row.
  int64_t First(const TileRows& rows) const {
    return IsPool(rows) ? rows.first : rows.residue + rows.first * Step(rows);
  }
  int64_t Step(const TileRows& rows) const { return IsPool(rows) ? 1 : steps_[rows.view]; }
  // [count, head_dim], where they lie.
  Tensor At(int64_t batch, const TileRows& rows, int64_t count) const {
    const Tensor& x = IsPool(rows) ? pool_ : own_;
    const int64_t first = First(rows) - (IsPool(rows) ? 0 : begin_);
    const int64_t end = first + (count - 1) * Step(rows) + 1;
    TORCH_CHECK(first >= 0 && end <= x.size(1) && rows.head < x.size(2), "a row beyond the tensor");
    return x[batch].select(1, rows.head).slice(0, first, end, Step(rows));
  }
  // The same of one number a row, [batch, tokens, heads].
  Tensor OfEach(const Tensor& numbers, int64_t batch, const TileRows& rows, int64_t count) const {
    const int64_t first = First(rows);
    return numbers[batch]
        .select(1, rows.head)
        .slice(0, first, first + (count - 1) * Step(rows) + 1, Step(rows));
  }
  void StoreTo(const Tensor& own, const Tensor& pool = {}) const {
    own.copy_(own_);
    if (pool.defined()) pool.copy_(pool_);
  }

 private:
  bool IsPool(const TileRows& rows) const {
    return rows.view == static_cast<int32_t>(steps_.size());
  }

  Tensor own_, pool_;
  std::vector<int64_t> steps_;
  int64_t begin_;
};

template <typename T>
at::ArrayRef<T> List(const Tensor& list) {
  return {static_cast<const T*>(list.const_data_ptr()), list.numel() / sizeof(T)};
}

// As tensor cores want what they multiply.
Tensor Rounded(const Tensor& x, const Tensor& like) {
  return x.to(like.scalar_type()).to(at::kDouble);
}

// [queries, keys]: which of a span's keys each query of a tile does not see.
Tensor Hidden(int64_t queries, int64_t keys, int64_t step, int64_t diagonal) {
  return at::arange(keys).unsqueeze(0) > (at::arange(queries) * step + diagonal).unsqueeze(1);
}

template <typename F>
void WithElementOf(const Tensor& x, const F& f) {
  kernels::WithElement(
      x.scalar_type() == at::kHalf ? kernels::ElementType::kFp16 : kernels::ElementType::kBf16, f);
}

// A result of one row, rounded, and what that leaves over if anybody wants it.
void StoreWhole(const Tensor& result, const Tensor& out, const Tensor& rest) {
  out.copy_(result);
  const Tensor value = result.to(at::kFloat);
  const auto* rounded = static_cast<const uint16_t*>(out.const_data_ptr());
  WithElementOf(out, [&](auto element) {
    for (int64_t i = 0; i < rest.numel(); ++i) {
      rest.mutable_data_ptr<int8_t>()[i] =
          kernels::RestOf<decltype(element)>(value.const_data_ptr<float>()[i], rounded[i]);
    }
  });
}

struct PartOfTile {
  Tensor out, lse;
};

// The part of queries with these scores; those that see nothing get zeros and lse -inf.
PartOfTile Attend(const Tensor& scores, const Tensor& values, const Tensor& like) {
  const Tensor most = scores.amax(1, /*keepdim=*/true).nan_to_num(0, 0, 0);
  const Tensor p = (scores - most).exp();
  const Tensor sum = p.sum(1, /*keepdim=*/true);
  return {Rounded(p, like).matmul(values) / sum.clamp_min(1e-300), (most + sum.log()).squeeze(1)};
}

// Rows of one place, of which those that saw nothing count nothing.
PartOfTile Merge(const Tensor& outs, const Tensor& lses) {
  const Tensor weights = lses.softmax(0).nan_to_num(0);
  return {weights.unsqueeze(1).mul(outs).masked_fill(weights.unsqueeze(1) == 0, 0).sum(0),
          lses.logsumexp(0)};
}

std::string WhyNotHost(const Tensor&) { return ""; }

void ForwardHost(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& pool_k,
                 const Tensor& pool_v, at::IntArrayRef steps, double scale, const Tensor& tiles,
                 const Tensor& keys, const Tensor& slots, const Tensor& merge_begin,
                 const Tensor& out, const Tensor& lse, const Tensor& rest, const Tensor& part_outs,
                 const Tensor& part_lses) {
  const auto places = List<uint32_t>(slots.view(at::kByte));
  const auto begins = List<uint32_t>(merge_begin.view(at::kByte));
  for (const Tensor& x : {q, k, v, pool_k, pool_v}) CheckOperand(x);
  const Rows queries(q, steps), all_keys(k, steps, pool_k), values(v, steps, pool_v);
  for (int64_t batch = 0; batch < q.size(0); ++batch) {
    for (const Tile& tile : List<Tile>(tiles)) {
      std::vector<Tensor> scores, seen;
      for (const TileKeys& span :
           List<TileKeys>(keys).slice(tile.keys_begin, tile.keys_end - tile.keys_begin)) {
        const Tensor rows = queries.At(batch, tile.rows, tile.count);
        scores.push_back(rows.matmul(all_keys.At(batch, span.rows, span.count).t())
                             .mul(scale)
                             .masked_fill(Hidden(tile.count, span.count, span.step, span.diagonal),
                                          -std::numeric_limits<double>::infinity()));
        seen.push_back(values.At(batch, span.rows, span.count));
      }
      const PartOfTile part = Attend(at::cat(scores, 1), at::cat(seen), q);
      for (int32_t j = 0; j < tile.count; ++j) {
        const int64_t token = queries.First(tile.rows) + j * queries.Step(tile.rows);
        const uint32_t slot = places.empty() ? kernels::kWhole : places[tile.first_row + j];
        const Tensor rest_of_row = rest.numel() > 0 ? rest[batch][token][tile.rows.head] : rest;
        if (slot != kernels::kWhole) {
          part_outs[batch][slot].copy_(part.out[j]);
          part_lses[batch][slot].copy_(part.lse[j]);
          continue;
        }
        const int64_t place = token * q.size(2) + tile.rows.head;
        const int64_t begin = begins.empty() ? 0 : begins[place];
        const int64_t end = begins.empty() ? 0 : begins[place + 1];
        const PartOfTile whole =
            Merge(at::cat({part.out[j].unsqueeze(0), part_outs[batch].slice(0, begin, end)}),
                  at::cat({part.lse[j].unsqueeze(0), part_lses[batch].slice(0, begin, end)}));
        StoreWhole(whole.out, out[batch][token][tile.rows.head], rest_of_row);
        lse[batch][token][tile.rows.head].copy_(whole.lse);
      }
    }
  }
}

void MixHost(const Tensor& part_outs, const Tensor& part_lses, const Tensor& places,
             const Tensor& begin, const Tensor& out, const Tensor& lse, const Tensor& rest) {
  const auto mixed = List<uint32_t>(places.view(at::kByte));
  const auto begins = List<uint32_t>(begin.view(at::kByte));
  for (int64_t batch = 0; batch < out.size(0); ++batch) {
    for (size_t i = 0; i < mixed.size(); ++i) {
      const PartOfTile whole = Merge(part_outs[batch].slice(0, begins[i], begins[i + 1]),
                                     part_lses[batch].slice(0, begins[i], begins[i + 1]));
      const auto at = [&](const Tensor& x) {
        return x.numel() > 0 ? x.flatten(1, 2)[batch][mixed[i]] : x;
      };
      StoreWhole(whole.out, at(out), at(rest));
      at(lse).copy_(whole.lse);
    }
  }
}

void StartsHost(const Tensor& dout, const Tensor& out, const Tensor& rest, const Tensor& lse,
                double scale, const Tensor& starts) {
  const Tensor whole = at::zeros(out.sizes(), at::kFloat);
  const auto* rounded = static_cast<const uint16_t*>(out.const_data_ptr());
  WithElementOf(out, [&](auto element) {
    for (int64_t i = 0; i < out.numel(); ++i) {
      whole.mutable_data_ptr<float>()[i] =
          kernels::WithRest<decltype(element)>(rounded[i], rest.const_data_ptr<int8_t>()[i]);
    }
  });
  const Tensor of_heads = starts.flatten(2, 3).narrow(2, 0, dout.size(2));
  of_heads.select(3, 0).copy_((-lse / scale).masked_fill(lse.isinf(), -INFINITY));
  of_heads.select(3, 1).copy_(-(dout.to(at::kDouble) * whole.to(at::kDouble)).sum(-1));
}

// P and dS of some queries and keys, FlashAttention-2, section 3.1.2.
struct Pairs {
  std::pair<Tensor, Tensor> Of(int64_t batch, const TileRows& query_rows, int64_t query_count,
                               const TileRows& key_rows, int64_t key_count,
                               const Tensor& hidden) const {
    const auto products = [&](const Rows& a, const Rows& b) {
      return a.At(batch, query_rows, query_count).matmul(b.At(batch, key_rows, key_count).t());
    };
    const auto numbers = [&](const Tensor& x) {
      return queries.OfEach(x, batch, query_rows, query_count).to(at::kDouble).unsqueeze(1);
    };
    const Tensor start = numbers(starts.select(3, 0));
    const Tensor p = ((products(queries, keys) + start) * scale)
                         .exp()
                         .masked_fill(hidden.logical_or(start.isinf()), 0);
    const Tensor ds = p * (products(douts, values) + numbers(starts.select(3, 1)));
    return {Rounded(p, like), Rounded(ds.masked_fill(p == 0, 0), like) * scale};
  }

  Rows queries, keys, values, douts;
  Tensor starts, like;  // starts: [B, T, H, 2]
  double scale;
};

void BackwardHost(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& pool_k,
                  const Tensor& pool_v, at::IntArrayRef steps, double scale, const Tensor& dout,
                  const Tensor& starts, const Tensor& tiles, const Tensor& keys,
                  const Tensor& key_tiles, const Tensor& queries, bool deterministic,
                  int64_t key_gradients, const Tensor& key_sums, int64_t begin, const Tensor& dq,
                  const Tensor& dk, const Tensor& dv, const Tensor& pool_dk, const Tensor& pool_dv,
                  const Tensor& finished_dk, const Tensor& finished_dv) {
  TORCH_CHECK(deterministic, "these kernels make dq by tiles of queries");
  for (const Tensor& x : {q, k, v, dout, pool_k, pool_v}) CheckOperand(x);
  const Pairs pairs{Rows(q, steps),
                    Rows(k, steps, pool_k),
                    Rows(v, steps, pool_v),
                    Rows(dout, steps),
                    starts.flatten(2, 3),
                    q,
                    scale};
  const bool finish = key_gradients == static_cast<int64_t>(kernels::KeyGradients::kFinish);
  const bool store = key_gradients == static_cast<int64_t>(kernels::KeyGradients::kStore);
  const Rows dqs(dq, steps, {}, begin);
  const Rows dks = finish ? Rows(finished_dk, steps, pool_dk) : Rows(dk, steps, pool_dk, begin);
  const Rows dvs = finish ? Rows(finished_dv, steps, pool_dv) : Rows(dv, steps, pool_dv, begin);
  const Rows dk_sums(dk, steps, {}, begin), dv_sums(dv, steps, {}, begin);
  for (int64_t batch = 0; batch < q.size(0); ++batch) {
    for (const Tile& tile : List<Tile>(tiles)) {
      for (const TileKeys& span :
           List<TileKeys>(keys).slice(tile.keys_begin, tile.keys_end - tile.keys_begin)) {
        const auto [p, ds] = pairs.Of(batch, tile.rows, tile.count, span.rows, span.count,
                                      Hidden(tile.count, span.count, span.step, span.diagonal));
        dqs.At(batch, tile.rows, tile.count)
            .add_(ds.matmul(pairs.keys.At(batch, span.rows, span.count)));
      }
    }
    for (const KeyTile& tile : List<KeyTile>(key_tiles)) {
      const Tensor dk_rows = dks.At(batch, tile.rows, tile.count);
      const Tensor dv_rows = dvs.At(batch, tile.rows, tile.count);
      if (store || finish) {
        dk_rows.zero_();
        dv_rows.zero_();
      }
      // Calls f(sums, what is finished) for dk and dv of the keys that have sums beside.
      const auto for_each_of = [&](uint8_t which, const auto& f) {
        for (int32_t j = 0; finish && key_sums.numel() > 0 && j < tile.count; ++j) {
          const int64_t token = dks.First(tile.rows) + j * dks.Step(tile.rows);
          const uint8_t beside = key_sums[token * k.size(2) + tile.rows.head].item<uint8_t>();
          if ((beside & which) == 0) continue;
          f(dk_sums.At(batch, tile.rows, tile.count)[j], dk_rows[j]);
          f(dv_sums.At(batch, tile.rows, tile.count)[j], dv_rows[j]);
        }
      };
      for_each_of(kernels::kSumsBefore,
                  [](const Tensor& sums, const Tensor& finished) { finished.add_(sums); });
      for (const TileKeys& span : List<TileKeys>(queries).slice(
               tile.queries_begin, tile.queries_end - tile.queries_begin)) {
        const auto [p, ds] = pairs.Of(batch, span.rows, span.count, tile.rows, tile.count,
                                      Hidden(span.count, tile.count, 1, span.diagonal));
        dk_rows.add_(ds.t().matmul(pairs.queries.At(batch, span.rows, span.count)));
        dv_rows.add_(p.t().matmul(pairs.douts.At(batch, span.rows, span.count)));
      }
      for_each_of(kernels::kSumsAfter,
                  [](const Tensor& sums, const Tensor& finished) { sums.copy_(finished); });
    }
  }
  dqs.StoreTo(dq);
  if (finish) {
    dk_sums.StoreTo(dk);
    dv_sums.StoreTo(dv);
  }
  dks.StoreTo(finish ? finished_dk : dk, pool_dk);
  dvs.StoreTo(finish ? finished_dv : dv, pool_dv);
}

void PackRowsHost(const Tensor& k, const Tensor& v, const Tensor& places, const Tensor& message) {
  const auto list = List<uint32_t>(places.view(at::kByte));
  for (size_t i = 0; i < list.size(); ++i) {
    message[i][0].copy_(k.select(1, list[i] / k.size(2)).select(1, list[i] % k.size(2)));
    message[i][1].copy_(v.select(1, list[i] / k.size(2)).select(1, list[i] % k.size(2)));
  }
}

void AddRowsHost(const Tensor& places, const Tensor& begin, const Tensor& rows, const Tensor& kept,
                 const Tensor& returned, const Tensor& dk_sums, const Tensor& dv_sums,
                 const std::optional<Tensor>& dk, const std::optional<Tensor>& dv) {
  const auto list = List<uint32_t>(places.view(at::kByte));
  const auto begins = List<uint32_t>(begin.view(at::kByte));
  const auto numbers = List<uint32_t>(rows.view(at::kByte));
  for (size_t i = 0; i < list.size(); ++i) {
    for (const int which : {0, 1}) {
      const auto at_place = [&](const Tensor& x) {
        return x.select(1, list[i] / x.size(2)).select(1, list[i] % x.size(2));
      };
      const Tensor sums = at_place(which == 0 ? dk_sums : dv_sums);
      Tensor total = sums.clone();
      for (uint32_t j = begins[i]; j < begins[i + 1]; ++j) {
        const int64_t of_returned = int64_t{numbers[j]} - kept.size(0);
        total += of_returned < 0 ? kept[numbers[j]][which] : returned[of_returned][which];
      }
      const std::optional<Tensor>& rounded = which == 0 ? dk : dv;
      (rounded.has_value() ? at_place(*rounded) : sums).copy_(total);
    }
  }
}

TORCH_LIBRARY_IMPL(ringmaster, CPU, library) {
  library.impl("tile_why_not", WhyNotHost);
  library.impl("tile_forward", ForwardHost);
  library.impl("tile_mix", MixHost);
  library.impl("tile_starts", StartsHost);
  library.impl("tile_backward", BackwardHost);
  library.impl("tile_pack_rows", PackRowsHost);
  library.impl("tile_add_rows", AddRowsHost);
}

}  // namespace
}  // namespace ringmaster::attention
