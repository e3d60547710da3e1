#include "attention/passes.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <optional>
#include <string>
#include <utility>
#include <variant>

#include "attention/head_parallel.h"
#include "attention/stock/stock_passes.h"
#include "attention/tiles/tile_passes.h"

namespace ringmaster::attention {
namespace {

// Type of the dK and dV partials between ranks.
at::ScalarType WireType(at::ScalarType dtype) {
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

at::ScalarType AccumulationType(const at::Tensor& q, int64_t tokens) {
  return tokens <= kMaxShortTokens ? at::kDouble : WireType(q.scalar_type());
}

double ScaleOf(const at::Tensor& q, const AttentionPattern& pattern) {
  return std::visit([](const auto& options) { return options.scale; }, pattern)
      .value_or(1 / std::sqrt(static_cast<double>(q.size(3))));
}

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

// Why a call is not for tiles; empty where it is.
std::string WhyNot(const at::Tensor& q, const AttentionPattern& pattern, double scale,
                   at::ScalarType accumulate, bool dropout) {
  return dropout ? "the kernels know no dropout" : WhyNotTiles(q, pattern, scale, accumulate);
}

void CheckDropout(const at::Tensor& q, const AttentionDropout& dropout) {
  TORCH_CHECK_VALUE(dropout.probability >= 0 && dropout.probability < 1,
                    "probability of dropout is ", dropout.probability,
                    "; it must be at least 0 and below 1");
  TORCH_CHECK_VALUE(!dropout.on() || static_cast<int64_t>(dropout.seeds.size()) == q.size(0),
                    "seeds of dropout are ", dropout.seeds.size(), "; the batch has ", q.size(0),
                    " sequences, of one seed each");
}

// Of the tokens of a whole sequence, without memory.
at::Tensor WholeLike(const at::Tensor& x, int64_t tokens, int64_t heads) {
  return at::empty({1}, x.options()).expand({x.size(0), tokens, heads, x.size(3)});
}

Call MakeCallOfHeads(const at::Tensor& q, const at::Tensor& k, const AttentionPattern& pattern,
                     const ShardMap& map, GroupedExchange* exchange, AttentionDropout dropout) {
  const auto heads = static_cast<int>(q.size(2)), kv_heads = static_cast<int>(k.size(2));
  const auto plan = AttentionPlan::Create(pattern, map, heads, kv_heads, Strategy::kHeads);
  TORCH_CHECK_VALUE(plan.ok(), plan.status().message());
  auto shares = std::make_shared<const HeadShares>(plan->shares());
  const HeadShares::Share own = shares->Of(exchange->rank());
  const int64_t group = shares->group();
  Call call{.exchange = exchange, .shares = std::move(shares), .wire = WireType(q.scalar_type())};
  if (own.count > 0) {
    const at::Tensor queries = WholeLike(q, map.tokens(), own.count * group);
    const at::Tensor keys = WholeLike(k, map.tokens(), own.count);
    const int64_t first = own.first * group;
    dropout.first_head += first;
    call.own_heads = std::make_shared<const Call>(
        MakeCall(queries, keys, keys, HeadsOf(pattern, first, own.count * group, heads), dropout));
  }
  return call;
}

}  // namespace

Call MakeCall(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
              const AttentionPattern& pattern, const AttentionDropout& dropout) {
  return MakeCall(q, k, v, pattern, ShardMap::Contiguous(q.dim() == 4 ? q.size(1) : 0, 1, 1),
                  nullptr, dropout);
}

Call MakeCall(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
              const AttentionPattern& pattern, const ShardMap& map, GroupedExchange* exchange,
              const AttentionDropout& dropout, Strategy strategy) {
  CheckTensors(q, k, v);
  CheckDropout(q, dropout);
  const absl::Status valid = Validate(pattern, map.tokens(), q.size(2));
  TORCH_CHECK_VALUE(valid.ok(), valid.message());
  const int size = exchange == nullptr ? 1 : exchange->size();
  const int rank = exchange == nullptr ? 0 : exchange->rank();
  TORCH_CHECK_VALUE(size == map.ranks(), "the shard map has ", map.ranks(), " ranks, the exchange ",
                    size);
  TORCH_CHECK_VALUE(q.size(1) == map.LocalTokens(rank), "q has ", q.size(1),
                    " tokens, the shard map gives rank ", rank, " ", map.LocalTokens(rank));
  if (strategy == Strategy::kHeads && size > 1) {
    return MakeCallOfHeads(q, k, pattern, map, exchange, dropout);
  }
  const at::ScalarType accumulate = AccumulationType(q, map.tokens());
  const double scale = ScaleOf(q, pattern);
  std::string why_not_tiles = WhyNot(q, pattern, scale, accumulate, dropout.on());
  std::optional<TileShape> tiles;
  if (why_not_tiles.empty()) {
    tiles = TileShapeOf(q, k);
  }
  const auto* dilated = std::get_if<DilatedAttentionOptions>(&pattern);
  return {.parts = FindParts(pattern, map, rank, static_cast<int>(q.size(2)),
                             static_cast<int>(k.size(2)), q.device(), tiles),
          .exchange = exchange,
          .scale = scale,
          .mix_gradient = dilated == nullptr ? MixGradient::kExact : dilated->mix_gradient,
          .branches = Branches(pattern),
          .dropout = dropout,
          .accumulate = accumulate,
          .wire = WireType(q.scalar_type()),
          .why_not_tiles = std::move(why_not_tiles)};
}

std::string DescribeExecutor(const at::Tensor& q, const AttentionPattern& pattern, int64_t tokens,
                             bool dropout) {
  const std::string why_not =
      WhyNot(q, pattern, ScaleOf(q, pattern), AccumulationType(q, tokens), dropout);
  return why_not.empty() ? "kernels over tiles" : "stock operations: " + why_not;
}

AttentionOutput Forward(const Call& call, const at::Tensor& q, const at::Tensor& k,
                        const at::Tensor& v, Saved* saved, const at::Tensor& log_gates) {
  at::NoGradGuard no_grad;
  if (call.shares != nullptr) return HeadParallelForward(call, q, k, v, saved);
  return call.by_tiles() ? TilePassForward(call, q, k, v, saved)
                         : StockForward(call, q, k, v, saved, log_gates);
}

DenseGradients Backward(const Call& call, const Saved& saved, const at::Tensor& dout,
                        at::Tensor* dlog_gates) {
  at::NoGradGuard no_grad;
  if (call.shares != nullptr) return HeadParallelBackward(call, saved, dout);
  return call.by_tiles() ? TilePassBackward(call, saved, dout)
                         : StockBackward(call, saved, dout, dlog_gates);
}

}  // namespace ringmaster::attention
