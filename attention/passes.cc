#include "attention/passes.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "attention/group_in_flight.h"

namespace ringmaster::attention {
namespace {

constexpr int kKeys = 0, kValues = 1;  // second dimension of pools and messages

// Type of the dK and dV partials between ranks.
at::ScalarType WireType(at::ScalarType dtype) {
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

// Kernels and loops read rows as they lie, if only the elements of a row are neighbours.
at::Tensor WithUnitRows(const at::Tensor& x) {
  return x.stride(-1) == 1 || x.size(-1) == 1 ? x : x.contiguous();
}

// Rows of a pool as a tensor of one head: [B, rows, 1, D].
at::Tensor PoolRows(const at::Tensor& pool, int which) {
  return pool.select(1, which).transpose(0, 1).unsqueeze(2);
}

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

at::ScalarType PartType(const Call& call, const Part& part, const at::Tensor& q) {
  return call.accumulate == at::kDouble
             ? at::kDouble
             : ComputeType({q.device().type(), q.scalar_type(), part.queries.groups(),
                            part.keys.rows_per_group, q.size(3)});
}

// Forward of one rank: local parts while the exchange runs, then the far ones, merged in this
// order.
class ForwardPass {
 public:
  ForwardPass(const Call& call, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v)
      : call_(call),
        parts_(*call.parts),
        q_(WithUnitRows(q)),
        k_(WithUnitRows(k)),
        v_(WithUnitRows(v)) {}

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
      *saved = {q_, k_, v_, std::move(outs_), lse, std::move(pool_)};
    }
    return {rounded, lse.to(WireType(q_.scalar_type()))};
  }

 private:
  void Compute() {
    const int64_t batch = q_.size(0), size = q_.size(3);
    pool_ = at::empty({parts_.parts().pool_rows, 2, batch, size}, k_.options());
    const at::Tensor outgoing =
        at::empty({parts_.parts().outgoing_rows, 2, batch, size}, k_.options());
    const auto pack = [this](const PlacedRows& rows, const at::Tensor& keys,
                             const at::Tensor& values) {
      PackRows(k_, rows, keys);
      PackRows(v_, rows, values);
    };
    for (const PlacedParts::Message& message : parts_.outgoing()) {
      ForEachSet(message, outgoing, pack);
    }
    ForEachSet(parts_.kept(), pool_, pack);
    GroupInFlight group(call_.exchange, outgoing, Slices(parts_.parts().outgoing), pool_,
                        Slices(parts_.parts().incoming));
    for (const PlacedParts::Dense& dense : parts_.local()) {
      Add(dense, k_, v_);
    }
    group.Wait();
    for (const PlacedParts::Dense& dense : parts_.far()) {
      Add(dense, PoolRows(pool_, kKeys), PoolRows(pool_, kValues));
    }
  }

  void Add(const PlacedParts::Dense& dense, const at::Tensor& keys, const at::Tensor& values) {
    const Part& part = *dense.part;
    const at::ScalarType type = PartType(call_, part, q_);
    half_kernels_ |= type == at::kHalf || type == at::kBFloat16;
    const DenseOutput output =
        DenseForward(GatherRows(q_, dense.queries, type), GatherRows(keys, dense.keys, type),
                     GatherRows(values, dense.keys, type), part.causal, call_.scale);
    const size_t softmax = outs_.size() == 1 ? 0 : part.branch;
    MergeRows(output.out, output.lse, dense.queries, outs_[softmax], sums_[softmax]);
  }

  // The branches' own softmaxes mixed by their denominators.
  std::pair<at::Tensor, at::Tensor> Mixed() const {
    if (outs_.size() == 1) {
      return {outs_[0], sums_[0]};
    }
    const at::Tensor lse = at::stack(sums_).logsumexp(0);
    at::Tensor out = at::zeros_like(outs_[0]);
    for (size_t i = 0; i < outs_.size(); ++i) {
      const at::Tensor weight = at::where(sums_[i].isneginf(), 0.0, (sums_[i] - lse).exp());
      out.addcmul_(outs_[i], weight.unsqueeze(-1));
    }
    return {out, lse};
  }

  const Call& call_;
  const PlacedParts& parts_;
  const at::Tensor q_, k_, v_;
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
        sums_(saved.lse.clone()) {}

  DenseGradients Run() {
    const auto options = saved_.q.options().dtype(call_.accumulate);
    dq_ = at::zeros(saved_.q.sizes(), options);
    dk_ = at::zeros(saved_.k.sizes(), options);
    dv_ = at::zeros(saved_.k.sizes(), options);
    if (saved_.pool.defined()) {
      GiveAlone(options);
      Compute(options);
    }
    const at::ScalarType dtype = saved_.q.scalar_type();
    return {dq_.to(dtype), dk_.to(dtype), dv_.to(dtype)};
  }

 private:
  // A query that sees only its own key has v for its output whatever q and k are: all of dout goes
  // to v. In the parts dq and dk would be a difference of two equal numbers, and so their rounding;
  // an infinite denominator takes the query out of them.
  void GiveAlone(const at::TensorOptions& options) {
    const PlacedRows& alone = parts_.alone();
    const int64_t rows = alone.set().rows();
    if (rows > 0) {
      AddRows(GatherRows(dout_, alone, call_.accumulate), parts_.alone_keys(), dv_);
      AddRows(
          at::full({dout_.size(0), 1, rows, 1}, std::numeric_limits<double>::infinity(), options),
          alone, sums_.unsqueeze(-1));
    }
  }

  void Compute(const at::TensorOptions& options) {
    const at::Tensor owed = at::zeros(saved_.pool.sizes(), options);
    for (const PlacedParts::Dense& dense : parts_.far()) {
      Add(dense, PoolRows(saved_.pool, kKeys), PoolRows(saved_.pool, kValues),
          PoolRows(owed, kKeys), PoolRows(owed, kValues));
    }
    const at::Tensor returned =
        at::empty({parts_.parts().outgoing_rows, 2, owed.size(2), owed.size(3)},
                  options.dtype(WireType(saved_.q.scalar_type())));
    GroupInFlight group(call_.exchange, owed.to(returned.scalar_type()),
                        Slices(parts_.parts().incoming), returned, Slices(parts_.parts().outgoing));
    for (const PlacedParts::Dense& dense : parts_.local()) {
      Add(dense, saved_.k, saved_.v, dk_, dv_);
    }
    const auto add = [this](const PlacedRows& rows, const at::Tensor& keys,
                            const at::Tensor& values) {
      AddRows(keys.unsqueeze(1), rows, dk_);
      AddRows(values.unsqueeze(1), rows, dv_);
    };
    ForEachSet(parts_.kept(), owed, add);
    group.Wait();
    const at::Tensor received = returned.to(call_.accumulate);
    for (const PlacedParts::Message& message : parts_.outgoing()) {
      ForEachSet(message, received, add);
    }
  }

  void Add(const PlacedParts::Dense& dense, const at::Tensor& keys, const at::Tensor& values,
           const at::Tensor& dkeys, const at::Tensor& dvalues) {
    const Part& part = *dense.part;
    const at::ScalarType type = PartType(call_, part, saved_.q);
    const at::Tensor& out = saved_.outs[saved_.outs.size() == 1 ? 0 : part.branch];
    const DenseGradients gradients =
        DenseBackward(GatherRows(dout_, dense.queries, type),
                      GatherRows(saved_.q, dense.queries, type), GatherRows(keys, dense.keys, type),
                      GatherRows(values, dense.keys, type), GatherRows(out, dense.queries, type),
                      GatherSums(sums_, dense.queries), part.causal, call_.scale);
    AddRows(gradients.dq, dense.queries, dq_);
    AddRows(gradients.dk, dense.keys, dkeys);
    AddRows(gradients.dv, dense.keys, dvalues);
  }

  const Call& call_;
  const PlacedParts& parts_;
  const Saved& saved_;
  const at::Tensor dout_;
  const at::Tensor sums_;  // the log denominators
  at::Tensor dq_, dk_, dv_;
};

std::string Sizes(const at::Tensor& x) { return c10::str(x.sizes()); }

void CheckTensors(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  TORCH_CHECK_VALUE(q.defined() && k.defined() && v.defined(), "q, k and v must all be given");
  TORCH_CHECK_VALUE(q.dim() == 4 && k.dim() == 4 && v.dim() == 4,
                    "q, k and v must be [B, N, H, D]; they have ", q.dim(), ", ", k.dim(), " and ",
                    v.dim(), " dimensions");
  TORCH_CHECK_VALUE(q.scalar_type() == k.scalar_type() && q.scalar_type() == v.scalar_type(),
                    "q, k and v must have one dtype; they have ", q.scalar_type(), ", ",
                    k.scalar_type(), " and ", v.scalar_type());
  TORCH_CHECK_VALUE(at::isFloatingType(q.scalar_type()) && q.element_size() >= 2,
                    "q, k and v must be fp64, fp32, bf16 or fp16; they are ", q.scalar_type());
  TORCH_CHECK_VALUE(q.device() == k.device() && q.device() == v.device(),
                    "q, k and v must be on one device; they are on ", q.device(), ", ", k.device(),
                    " and ", v.device());
  TORCH_CHECK_VALUE(k.sizes() == v.sizes(), "k and v must have one shape; they have ", Sizes(k),
                    " and ", Sizes(v));
  TORCH_CHECK_VALUE(q.size(0) == k.size(0) && q.size(1) == k.size(1) && q.size(3) == k.size(3),
                    "q ", Sizes(q), " and k ", Sizes(k),
                    " must agree in all but the number of heads");
  TORCH_CHECK_VALUE(q.size(2) >= 1 && q.size(3) >= 1, "q ", Sizes(q),
                    " has no head or no head dimension");
  TORCH_CHECK_VALUE(k.size(2) >= 1 && q.size(2) % k.size(2) == 0, "the ", q.size(2),
                    " query heads are not a multiple of the ", k.size(2), " key/value heads");
}

}  // namespace

Call MakeCall(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
              const DilatedAttentionOptions& options, const ShardMap& map,
              GroupedExchange* exchange) {
  CheckTensors(q, k, v);
  const absl::Status valid = options.Validate();
  TORCH_CHECK_VALUE(valid.ok(), valid.message());
  const int size = exchange == nullptr ? 1 : exchange->size();
  const int rank = exchange == nullptr ? 0 : exchange->rank();
  TORCH_CHECK_VALUE(size == map.ranks(), "the shard map has ", map.ranks(), " ranks, the exchange ",
                    size);
  TORCH_CHECK_VALUE(q.size(1) == map.LocalTokens(rank), "q has ", q.size(1),
                    " tokens, the shard map gives rank ", rank, " ", map.LocalTokens(rank));
  return {.parts = FindParts(options, map, rank, static_cast<int>(q.size(2)),
                             static_cast<int>(k.size(2)), q.device()),
          .exchange = exchange,
          .scale = options.scale.value_or(1 / std::sqrt(static_cast<double>(q.size(3)))),
          .mix_gradient = options.mix_gradient,
          .branches = static_cast<int>(options.branches.size()),
          .accumulate = map.tokens() <= kMaxShortTokens ? at::kDouble : WireType(q.scalar_type())};
}

AttentionOutput Forward(const Call& call, const at::Tensor& q, const at::Tensor& k,
                        const at::Tensor& v, Saved* saved) {
  at::NoGradGuard no_grad;
  return ForwardPass(call, q, k, v).Run(saved);
}

DenseGradients Backward(const Call& call, const Saved& saved, const at::Tensor& dout) {
  at::NoGradGuard no_grad;
  return BackwardPass(call, saved, dout).Run();
}

}  // namespace ringmaster::attention
