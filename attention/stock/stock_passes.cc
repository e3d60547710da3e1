#include "attention/stock/stock_passes.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "attention/cpu/cpu_parts.h"
#include "attention/exchange/far_rows.h"
#include "attention/stock/alone.h"

namespace ringmaster::attention {
namespace {

// Kernels and loops read rows as they lie, if only the elements of a row are neighbours.
at::Tensor WithUnitRows(const at::Tensor& x) {
  return x.stride(-1) == 1 || x.size(-1) == 1 ? x : x.contiguous();
}

at::ScalarType PartType(const Call& call, const Part& part, const at::Tensor& q) {
  return call.accumulate == at::kDouble || call.dropout.on()
             ? call.accumulate
             : ComputeType({.device = q.device().type(),
                            .dtype = q.scalar_type(),
                            .groups = part.queries.groups(),
                            .queries = part.queries.rows_per_group,
                            .keys = part.keys.rows_per_group,
                            .head_dim = q.size(3),
                            .causal = part.causal});
}

// The CPU's own code for a part of this type, or null.
const TileCode* CodeFor(const Call& call, const PlacedParts::Dense& dense, at::ScalarType type,
                        const at::Tensor& q) {
  const bool fits = q.device().is_cpu() && type == call.accumulate && !dense.gates.defined();
  return fits && !call.dropout.on() ? CpuTiles() : nullptr;
}

using Mask = std::optional<DropoutMask>;

DenseOutput Solve(const Call& call, const Part& part, const at::Tensor& q, const at::Tensor& k,
                  const at::Tensor& v, const Mask& mask) {
  return mask.has_value() ? BlockedForward(q, k, v, part.causal, call.scale, &*mask)
                          : DenseForward(q, k, v, part.causal, call.scale);
}

// The groups' gates: [B, groups, 1].
at::Tensor GatesOf(const at::Tensor& log_gates, const PlacedParts::Dense& dense,
                   at::ScalarType type) {
  return log_gates.index_select(1, dense.gates).to(type).unsqueeze(-1);
}

// Forward of one rank: local parts while the exchange runs, then the far ones, merged in this
// order.
class ForwardPass {
 public:
  ForwardPass(const Call& call, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
              const at::Tensor& log_gates)
      : call_(call),
        parts_(*call.parts),
        q_(WithUnitRows(q)),
        k_(WithUnitRows(k)),
        v_(WithUnitRows(v)),
        log_gates_(log_gates),
        masks_(call.dropout, parts_.parts()) {}

  AttentionOutput Run(Saved* saved) {
    const auto options = q_.options().dtype(call_.accumulate);
    const int64_t softmaxes = call_.mix_gradient == MixGradient::kDetached ? call_.branches : 1;
    for (int64_t i = 0; i < softmaxes; ++i) {
      outs_.push_back(at::zeros(q_.sizes(), options));
      sums_.push_back(at::full({q_.size(0), q_.size(1), q_.size(2)},
                               -std::numeric_limits<double>::infinity(), options));
    }
    if (q_.numel() > 0 || k_.numel() > 0) {
      Compute();
    }
    const auto [out, lse] = Mixed();
    const at::Tensor rounded = out.to(q_.scalar_type());
    if (saved != nullptr) {
      // A fused half-precision backward multiplies dout with the output that went downstream.
      if (outs_.size() == 1) {
        outs_[0] = half_kernels_ ? rounded : out;
      }
      *saved = {q_, k_, v_, std::move(outs_), lse, std::move(pool_), log_gates_};
    }
    return {rounded, lse.to(call_.wire)};
  }

 private:
  void Compute() {
    FarRows rows(parts_, k_, v_, call_.exchange);
    for (const PlacedParts::Dense& dense : parts_.local()) {
      Add(dense, k_, v_, /*far=*/false);
    }
    rows.Wait();
    pool_ = rows.pool();
    for (const PlacedParts::Dense& dense : parts_.far()) {
      Add(dense, PoolKeys(pool_), PoolValues(pool_), /*far=*/true);
    }
  }

  void Add(const PlacedParts::Dense& dense, const at::Tensor& keys, const at::Tensor& values,
           bool far) {
    const Part& part = *dense.part;
    const at::ScalarType type = PartType(call_, part, q_);
    half_kernels_ |= type == at::kHalf || type == at::kBFloat16;
    const size_t softmax = outs_.size() == 1 ? 0 : part.branch;
    if (const TileCode* code = CodeFor(call_, dense, type, q_); code != nullptr) {
      ForwardOnCpu(*code, part, call_.scale, q_, keys, values, outs_[softmax], sums_[softmax]);
      return;
    }
    const DenseOutput output =
        Solve(call_, part, GatherRows(q_, dense.queries, type), GatherRows(keys, dense.keys, type),
              GatherRows(values, dense.keys, type), masks_.Of(part, far, q_.device()));
    // Keys that count g times have g times the denominator, and the same output.
    const at::Tensor lse = dense.gates.defined()
                               ? output.lse + GatesOf(log_gates_, dense, output.lse.scalar_type())
                               : output.lse;
    MergeRows(output.out, lse, dense.queries, outs_[softmax], sums_[softmax]);
  }

  // The branches' own softmaxes mixed by their denominators.
  std::pair<at::Tensor, at::Tensor> Mixed() const {
    if (outs_.size() == 1) {
      return {outs_[0], sums_[0]};
    }
    const at::Tensor sums = at::stack(sums_), weights = sums.softmax(0);
    at::Tensor out = at::zeros_like(outs_[0]);
    for (size_t i = 0; i < outs_.size(); ++i) {
      const at::Tensor weight = at::where(sums_[i].isneginf(), 0.0, weights[i]);
      out.addcmul_(outs_[i], weight.unsqueeze(-1));
    }
    return {out, sums.logsumexp(0)};
  }

  const Call& call_;
  const PlacedParts& parts_;
  const at::Tensor q_, k_, v_, log_gates_;
  const DropoutMasks masks_;
  std::vector<at::Tensor> outs_;  // in the accumulation type; one, or one for each branch
  std::vector<at::Tensor> sums_;  // log denominators of each
  at::Tensor pool_;
  bool half_kernels_ = false;
};

// Backward of one rank: far parts first, so that what they owe the peers travels while the local
// ones run.
class BackwardPass {
 public:
  BackwardPass(const Call& call, const Saved& saved, const at::Tensor& dout)
      : call_(call),
        parts_(*call.parts),
        saved_(saved),
        dout_(WithUnitRows(dout)),
        sums_(WithoutAlone(parts_, saved.lse)),
        masks_(call.dropout, parts_.parts()) {}

  DenseGradients Run() {
    const auto options = saved_.q.options().dtype(call_.accumulate);
    dq_ = at::zeros(saved_.q.sizes(), options);
    dk_ = at::zeros(saved_.k.sizes(), options);
    dv_ = at::zeros(saved_.k.sizes(), options);
    if (saved_.log_gates.defined()) {
      dlog_gates_ = at::zeros(saved_.log_gates.sizes(), options);
    }
    if (saved_.pool.defined()) {
      if (!call_.dropout.on()) GiveAlone(parts_, dout_, dv_);
      Compute(options);
    }
    const at::ScalarType dtype = saved_.q.scalar_type();
    return {dq_.to(dtype), dk_.to(dtype), dv_.to(dtype)};
  }

  // After Run(); undefined without gates.
  at::Tensor dlog_gates() const {
    return dlog_gates_.defined() ? dlog_gates_.to(saved_.log_gates.scalar_type()) : dlog_gates_;
  }

 private:
  void Compute(const at::TensorOptions& options) {
    const at::Tensor owed = at::zeros(saved_.pool.sizes(), options);
    for (const PlacedParts::Dense& dense : parts_.far()) {
      Add(dense, PoolKeys(saved_.pool), PoolValues(saved_.pool), PoolKeys(owed), PoolValues(owed),
          /*far=*/true);
    }
    FarGradients gradients(parts_, owed, call_.wire, call_.exchange);
    for (const PlacedParts::Dense& dense : parts_.local()) {
      Add(dense, saved_.k, saved_.v, dk_, dv_, /*far=*/false);
    }
    gradients.AddTo(dk_, dv_);
    gradients.Wait();
  }

  void Add(const PlacedParts::Dense& dense, const at::Tensor& keys, const at::Tensor& values,
           const at::Tensor& dkeys, const at::Tensor& dvalues, bool far) {
    const Part& part = *dense.part;
    const at::ScalarType type = PartType(call_, part, saved_.q);
    const at::Tensor& mixed = saved_.outs[saved_.outs.size() == 1 ? 0 : part.branch];
    if (const TileCode* code = CodeFor(call_, dense, type, saved_.q); code != nullptr) {
      BackwardOnCpu(*code, part, call_.scale,
                    {dout_, saved_.q, keys, values, mixed, sums_, dq_, dkeys, dvalues});
      return;
    }
    const at::Tensor out = GatherRows(mixed, dense.queries, type);
    const at::Tensor dout = GatherRows(dout_, dense.queries, type);
    const at::Tensor q = GatherRows(saved_.q, dense.queries, type);
    const at::Tensor k = GatherRows(keys, dense.keys, type);
    const at::Tensor v = GatherRows(values, dense.keys, type);
    const Mask mask = masks_.Of(part, far, q.device());
    // How much of its own key such a query takes is drawn branch by branch, so that it has a part
    // in the products, for dv.
    at::Tensor sums = GatherSums(mask.has_value() ? saved_.lse : sums_, dense.queries);
    if (dense.gates.defined()) {
      sums.sub_(GatesOf(saved_.log_gates, dense, sums.scalar_type()));
      AddGates(Solve(call_, part, q, k, v, mask), sums, dout, out, dense.gates);
    }
    const DenseGradients gradients =
        mask.has_value() ? BlockedBackward(dout, q, k, v, out, sums, part.causal, call_.scale,
                                           &*mask, GatherSums(sums_, dense.queries).isposinf())
                         : DenseBackward(dout, q, k, v, out, sums, part.causal, call_.scale);
    AddRows(gradients.dq, dense.queries, dq_);
    AddRows(gradients.dk, dense.keys, dkeys);
    AddRows(gradients.dv, dense.keys, dvalues);
  }

  // A gate's gradient is the sum of those of the scores that it is added to: of a query's scores of
  // one part, the part's weight times what its output would change the loss by in place of the
  // whole.
  void AddGates(const DenseOutput& part, const at::Tensor& sums, const at::Tensor& dout,
                const at::Tensor& out, const at::Tensor& gates) {
    const at::ScalarType type = dlog_gates_.scalar_type();
    const at::Tensor weight = (part.lse.to(type) - sums.to(type)).exp_();
    const at::Tensor change = dout.to(type).mul(part.out.to(type) - out.to(type)).sum(-1);
    const at::Tensor sum = weight.mul(change).sum(-1);
    dlog_gates_.scatter_add_(1, gates.expand(sum.sizes()), sum);
  }

  const Call& call_;
  const PlacedParts& parts_;
  const Saved& saved_;
  const at::Tensor dout_;
  const at::Tensor sums_;  // the log denominators, infinite for queries that are alone
  const DropoutMasks masks_;
  at::Tensor dq_, dk_, dv_, dlog_gates_;
};

}  // namespace

AttentionOutput StockForward(const Call& call, const at::Tensor& q, const at::Tensor& k,
                             const at::Tensor& v, Saved* saved, const at::Tensor& log_gates) {
  return ForwardPass(call, q, k, v, log_gates).Run(saved);
}

DenseGradients StockBackward(const Call& call, const Saved& saved, const at::Tensor& dout,
                             at::Tensor* dlog_gates) {
  BackwardPass pass(call, saved, dout);
  const DenseGradients gradients = pass.Run();
  if (dlog_gates != nullptr) {
    *dlog_gates = pass.dlog_gates();
  }
  return gradients;
}

}  // namespace ringmaster::attention
