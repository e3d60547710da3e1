// Dense attention out of batched matrix products, a block of queries at a time.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <algorithm>
#include <limits>

#include "attention/stock/dense_attention.h"

namespace ringmaster::attention {
namespace {

// Elements of one block's scores; four such blocks live at once in backward, and with dropout a
// dozen.
constexpr int64_t kBlockElements = int64_t{1} << 24;
constexpr int64_t kDropoutBlockElements = kBlockElements / 4;

// A [groups, M, D] view; groups run over the batch as well.
at::Tensor Flat(const at::Tensor& x) { return x.flatten(0, 1); }

struct Blocking {
  Blocking(const at::Tensor& q, const at::Tensor& k, bool drops)
      : groups(q.size(0)), queries(q.size(1)), keys(k.size(1)) {
    const int64_t elements = drops ? kDropoutBlockElements : kBlockElements;
    query_step = std::clamp<int64_t>(elements / keys, 1, queries);
    group_step = std::clamp<int64_t>(elements / (keys * query_step), 1, groups);
  }

  // Calls f(first group, groups, first query, queries, visible keys).
  template <typename F>
  void ForEach(bool causal, const F& f) const {
    for (int64_t group = 0; group < groups; group += group_step) {
      for (int64_t query = 0; query < queries; query += query_step) {
        const int64_t count = std::min(query_step, queries - query);
        f(group, std::min(group_step, groups - group), query, count,
          causal ? keys - queries + query + count : keys);
      }
    }
  }

  int64_t groups, queries, keys, query_step, group_step;
};

at::Tensor Block(const at::Tensor& x, int64_t group, int64_t groups, int64_t row, int64_t rows) {
  return x.narrow(0, group, groups).narrow(1, row, rows);
}

// Scaled scores of a block, -inf at keys behind the query: the last key is the last query's own.
at::Tensor Scores(const at::Tensor& q, const at::Tensor& k, bool causal, double scale) {
  at::Tensor scores = at::bmm(q, k.transpose(1, 2)).mul_(scale);
  if (causal) {
    const at::Tensor hidden = at::ones({q.size(1), k.size(1)}, q.options().dtype(at::kBool))
                                  .triu(k.size(1) - q.size(1) + 1);
    scores.masked_fill_(hidden, -std::numeric_limits<double>::infinity());
  }
  return scores;
}

}  // namespace

DenseOutput BlockedForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           bool causal, double scale, const DropoutMask* dropout) {
  const at::Tensor queries = Flat(q), keys = Flat(k), values = Flat(v);
  at::Tensor out = at::empty_like(queries);
  at::Tensor lse = at::empty({queries.size(0), queries.size(1)}, q.options());
  Blocking(queries, keys, dropout != nullptr)
      .ForEach(
          causal, [&](int64_t group, int64_t groups, int64_t query, int64_t rows, int64_t visible) {
            const at::Tensor scores = Scores(Block(queries, group, groups, query, rows),
                                             Block(keys, group, groups, 0, visible), causal, scale);
            // Not from the rounded logarithm: what is multiplied with values adds up to one.
            const at::Tensor p = scores.softmax(-1);
            if (dropout != nullptr) {
              p.mul_(dropout->Factors(group, groups, query, rows, visible, p.scalar_type()));
            }
            Block(out, group, groups, query, rows)
                .copy_(at::bmm(p, Block(values, group, groups, 0, visible)));
            Block(lse, group, groups, query, rows).copy_(scores.logsumexp(-1));
          });
  return {out.view(q.sizes()), lse.view({q.size(0), q.size(1), q.size(2)})};
}

DenseGradients BlockedBackward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k,
                               const at::Tensor& v, const at::Tensor& out, const at::Tensor& lse,
                               bool causal, double scale, const DropoutMask* dropout,
                               const at::Tensor& alone) {
  const at::Tensor queries = Flat(q), keys = Flat(k), values = Flat(v);
  const at::Tensor gradients = Flat(dout), sums = Flat(lse);
  const at::Tensor marked = alone.defined() ? Flat(alone) : alone;
  const at::Tensor delta = (gradients * Flat(out)).sum(-1, true);
  at::Tensor dq = at::empty_like(queries), dk = at::zeros_like(keys), dv = at::zeros_like(values);
  Blocking(queries, keys, dropout != nullptr)
      .ForEach(causal,
               [&](int64_t group, int64_t groups, int64_t query, int64_t rows, int64_t visible) {
                 const auto rows_of = [&](const at::Tensor& x) {
                   return Block(x, group, groups, query, rows);
                 };
                 const auto keys_of = [&](const at::Tensor& x) {
                   return Block(x, group, groups, 0, visible);
                 };
                 const at::Tensor p = Scores(rows_of(queries), keys_of(keys), causal, scale)
                                          .sub_(rows_of(sums).unsqueeze(-1))
                                          .exp_();
                 const at::Tensor ds = at::bmm(rows_of(gradients), keys_of(values).transpose(1, 2));
                 at::Tensor taken = p;  // what values were multiplied with
                 if (dropout != nullptr) {
                   const at::Tensor factors =
                       dropout->Factors(group, groups, query, rows, visible, p.scalar_type());
                   ds.mul_(factors);
                   taken = p * factors;
                 }
                 ds.sub_(rows_of(delta)).mul_(p).mul_(scale);
                 // A key that has all of the weight: its slope and delta are one number.
                 ds.masked_fill_(p.eq(1), 0);
                 if (marked.defined()) ds.masked_fill_(rows_of(marked).unsqueeze(-1), 0);
                 rows_of(dq).copy_(at::bmm(ds, keys_of(keys)));
                 keys_of(dk).add_(at::bmm(ds.transpose(1, 2), rows_of(queries)));
                 keys_of(dv).add_(at::bmm(taken.transpose(1, 2), rows_of(gradients)));
               });
  return {dq.view(q.sizes()), dk.view(k.sizes()), dv.view(v.sizes())};
}

}  // namespace ringmaster::attention
