// The kernels over lists of tiles for CPU tensors, one number at a time in fp64; what is stored is
// rounded as the GPU's is. Linked into a test, they make the operator take its tiles.
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
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
      : own_(own.to(at::kDouble).contiguous()), steps_(steps.vec()), begin_(begin) {
    if (pool.defined()) pool_ = pool.to(at::kDouble).contiguous();
  }

  int64_t size() const { return own_.size(3); }
  int64_t Token(const TileRows& rows, int64_t i) const {
    return IsPool(rows) ? rows.first + i : rows.residue + (rows.first + i) * steps_[rows.view];
  }
  double* At(int64_t batch, const TileRows& rows, int64_t i) const {
    const Tensor& x = IsPool(rows) ? pool_ : own_;
    const int64_t token = Token(rows, i) - (IsPool(rows) ? 0 : begin_);
    TORCH_CHECK(token >= 0 && token < x.size(1) && rows.head < x.size(2),
                "a row beyond the tensor");
    return x.data_ptr<double>() + ((batch * x.size(1) + token) * x.size(2) + rows.head) * size();
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

double Dot(const double* a, const double* b, int64_t size) {
  return std::inner_product(a, a + size, b, 0.0);
}

void Add(double factor, const double* from, int64_t size, double* to) {
  for (int64_t d = 0; d < size; ++d) to[d] += factor * from[d];
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
  const Tensor exact = at::zeros({q.size(3)}, at::kDouble);
  double* const numerator = exact.data_ptr<double>();
  for (int64_t batch = 0; batch < q.size(0); ++batch) {
    for (const Tile& tile : List<Tile>(tiles)) {
      for (int32_t j = 0; j < tile.count; ++j) {
        exact.zero_();
        double sum = 0;
        for (const TileKeys& span :
             List<TileKeys>(keys).slice(tile.keys_begin, tile.keys_end - tile.keys_begin)) {
          for (int32_t i = 0; i < span.count && i <= span.step * j + span.diagonal; ++i) {
            const double p =
                std::exp(scale * Dot(queries.At(batch, tile.rows, j),
                                     all_keys.At(batch, span.rows, i), queries.size()));
            Add(p, values.At(batch, span.rows, i), values.size(), numerator);
            sum += p;
          }
        }
        const uint32_t slot = places.empty() ? kernels::kWhole : places[tile.first_row + j];
        const bool whole = slot == kernels::kWhole;
        const int64_t token = queries.Token(tile.rows, j);
        const int64_t place = token * q.size(2) + tile.rows.head;
        for (uint32_t i = begins.empty() ? 0 : begins[place];
             i < (begins.empty() ? 0 : begins[place + 1]); ++i) {
          const double weight = std::exp(part_lses[batch][i].item<double>());
          if (weight > 0) exact.add_(part_outs[batch][i], weight);
          sum += weight;
        }
        const Tensor result = exact / (sum > 0 ? sum : 1);
        if (whole) {
          StoreWhole(result, out[batch][token][tile.rows.head],
                     rest.numel() > 0 ? rest[batch][token][tile.rows.head] : rest);
        } else {
          part_outs[batch][slot].copy_(result);
        }
        (whole ? lse[batch][token][tile.rows.head] : part_lses[batch][slot]) = std::log(sum);
      }
    }
  }
}

void MixHost(const Tensor& part_outs, const Tensor& part_lses, const Tensor& merge_begin,
             const Tensor& out, const Tensor& lse, const Tensor& rest) {
  const auto begins = List<uint32_t>(merge_begin.view(at::kByte));
  const int64_t places = out.size(1) * out.size(2);
  for (int64_t batch = 0; batch < out.size(0); ++batch) {
    for (int64_t place = 0; place < places; ++place) {
      if (begins[place] == begins[place + 1]) continue;
      const Tensor mixed = at::zeros({out.size(3)}, at::kDouble);
      double sum = 0;
      for (uint32_t i = begins[place]; i < begins[place + 1]; ++i) {
        const double weight = std::exp(part_lses[batch][i].item<double>());
        if (weight > 0) mixed.add_(part_outs[batch][i], weight);
        sum += weight;
      }
      const auto at = [&](const Tensor& x) {
        return x.numel() > 0 ? x.view({out.size(0), places, -1})[batch][place] : x;
      };
      StoreWhole(mixed / (sum > 0 ? sum : 1), at(out), at(rest));
      lse.view({out.size(0), places})[batch][place] = std::log(sum);
    }
  }
}

void RowDotsHost(const Tensor& a, const Tensor& b, const Tensor& rest, const Tensor& dots) {
  const Tensor whole = at::zeros(b.sizes(), at::kFloat);
  const auto* rounded = static_cast<const uint16_t*>(b.const_data_ptr());
  WithElementOf(b, [&](auto element) {
    for (int64_t i = 0; i < b.numel(); ++i) {
      whole.mutable_data_ptr<float>()[i] =
          kernels::WithRest<decltype(element)>(rounded[i], rest.const_data_ptr<int8_t>()[i]);
    }
  });
  dots.copy_((a.to(at::kDouble) * whole.to(at::kDouble)).sum(-1));
}

// The products of one pair, FlashAttention-2, section 3.1.2.
struct Pairs {
  std::pair<double, double> Of(int64_t batch, const TileRows& query_rows, int64_t j,
                               const TileRows& key_rows, int64_t i) const {
    const int64_t token = queries.Token(query_rows, j);
    const double lse = lses[batch][token][query_rows.head];
    if (std::isinf(lse)) return {0, 0};
    const double score =
        Dot(queries.At(batch, query_rows, j), keys.At(batch, key_rows, i), queries.size());
    const double dp =
        Dot(douts.At(batch, query_rows, j), values.At(batch, key_rows, i), queries.size());
    const double p = std::exp(scale * score - lse);
    return {p, p * (dp - deltas[batch][token][query_rows.head]) * scale};
  }

  Rows queries, keys, values, douts;
  at::TensorAccessor<float, 3> lses, deltas;
  double scale;
};

void BackwardHost(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& pool_k,
                  const Tensor& pool_v, at::IntArrayRef steps, double scale, const Tensor& dout,
                  const Tensor& lse, const Tensor& delta, const Tensor& tiles, const Tensor& keys,
                  const Tensor& key_tiles, const Tensor& queries, bool deterministic,
                  int64_t key_gradients, const Tensor& summed, int64_t begin, const Tensor& dq,
                  const Tensor& dk, const Tensor& dv, const Tensor& pool_dk, const Tensor& pool_dv,
                  const Tensor& finished_dk, const Tensor& finished_dv) {
  TORCH_CHECK(deterministic, "these kernels make dq by tiles of queries");
  for (const Tensor& x : {q, k, v, dout, pool_k, pool_v}) CheckOperand(x);
  const Pairs pairs{Rows(q, steps),
                    Rows(k, steps, pool_k),
                    Rows(v, steps, pool_v),
                    Rows(dout, steps),
                    lse.accessor<float, 3>(),
                    delta.accessor<float, 3>(),
                    scale};
  const bool finish = key_gradients == static_cast<int64_t>(kernels::KeyGradients::kFinish);
  const bool store = key_gradients == static_cast<int64_t>(kernels::KeyGradients::kStore);
  const Rows dqs(dq, steps, {}, begin);
  const Rows dks = finish ? Rows(finished_dk, steps, pool_dk) : Rows(dk, steps, pool_dk, begin);
  const Rows dvs = finish ? Rows(finished_dv, steps, pool_dv) : Rows(dv, steps, pool_dv, begin);
  const Rows dk_sums(dk, steps, {}, begin), dv_sums(dv, steps, {}, begin);
  const int64_t size = q.size(3);
  for (int64_t batch = 0; batch < q.size(0); ++batch) {
    for (const Tile& tile : List<Tile>(tiles)) {
      for (const TileKeys& span :
           List<TileKeys>(keys).slice(tile.keys_begin, tile.keys_end - tile.keys_begin)) {
        for (int32_t j = 0; j < tile.count; ++j) {
          for (int32_t i = 0; i < span.count && i <= span.step * j + span.diagonal; ++i) {
            Add(pairs.Of(batch, tile.rows, j, span.rows, i).second,
                pairs.keys.At(batch, span.rows, i), size, dqs.At(batch, tile.rows, j));
          }
        }
      }
    }
    for (const KeyTile& tile : List<KeyTile>(key_tiles)) {
      for (int32_t j = 0; (store || finish) && j < tile.count; ++j) {
        std::fill_n(dks.At(batch, tile.rows, j), size, 0);
        std::fill_n(dvs.At(batch, tile.rows, j), size, 0);
        const int64_t place = dks.Token(tile.rows, j) * k.size(2) + tile.rows.head;
        if (finish && summed.numel() > 0 && summed[place].item<int>() != 0) {
          Add(1, dk_sums.At(batch, tile.rows, j), size, dks.At(batch, tile.rows, j));
          Add(1, dv_sums.At(batch, tile.rows, j), size, dvs.At(batch, tile.rows, j));
        }
      }
      for (const TileKeys& span : List<TileKeys>(queries).slice(
               tile.queries_begin, tile.queries_end - tile.queries_begin)) {
        for (int32_t i = 0; i < span.count; ++i) {
          for (int32_t j = 0; j < tile.count && j <= i + span.diagonal; ++j) {
            const auto [p, ds] = pairs.Of(batch, span.rows, i, tile.rows, j);
            Add(ds, pairs.queries.At(batch, span.rows, i), size, dks.At(batch, tile.rows, j));
            Add(p, pairs.douts.At(batch, span.rows, i), size, dvs.At(batch, tile.rows, j));
          }
        }
      }
    }
  }
  dqs.StoreTo(dq);
  dks.StoreTo(finish ? finished_dk : dk, pool_dk);
  dvs.StoreTo(finish ? finished_dv : dv, pool_dv);
}

TORCH_LIBRARY_IMPL(ringmaster, CPU, library) {
  library.impl("tile_why_not", WhyNotHost);
  library.impl("tile_forward", ForwardHost);
  library.impl("tile_mix", MixHost);
  library.impl("tile_row_dots", RowDotsHost);
  library.impl("tile_backward", BackwardHost);
}

}  // namespace
}  // namespace ringmaster::attention
