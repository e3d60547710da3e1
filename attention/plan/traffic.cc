#include "attention/plan/traffic.h"

namespace ringmaster::attention {
namespace {

RankTraffic OfGrouped(const AttentionPlan& plan, int rank, const MessageShape& shape) {
  double pool = 0, outgoing = 0;
  for (int peer = 0; peer < plan.map().ranks(); ++peer) {
    pool += static_cast<double>(plan.Rows(peer, rank));
    if (peer != rank) outgoing += static_cast<double>(plan.Rows(rank, peer));
  }
  const double incoming = pool - static_cast<double>(plan.Rows(rank, rank));
  // Keys and values of one row.
  const double width = 2.0 * static_cast<double>(shape.batch * shape.head_dim);
  const double element = width * static_cast<double>(shape.element_bytes);
  const double gradient = width * static_cast<double>(shape.gradient_bytes);
  // Rows there, their gradients back; the pool; its gradients, and those that come back.
  return {.sent_forward = outgoing * element,
          .sent_backward = incoming * gradient,
          .received = incoming * element + outgoing * gradient,
          .saved = pool * element,
          .transient = (pool + outgoing) * gradient};
}

RankTraffic OfHeads(const AttentionPlan& plan, int rank, const MessageShape& shape) {
  const HeadShares& shares = plan.shares();
  RankTraffic traffic{.sent_forward = static_cast<double>(plan.SentBytesForward(rank, shape)),
                      .sent_backward = static_cast<double>(plan.SentBytesBackward(rank, shape))};
  for (int peer = 0; peer < plan.map().ranks(); ++peer) {
    traffic.received += static_cast<double>(plan.ForwardBytes(peer, rank, shape) +
                                            plan.BackwardBytes(peer, rank, shape));
  }
  const auto batch = static_cast<double>(shape.batch);
  const double row = batch * static_cast<double>(shape.head_dim * shape.element_bytes);
  const double log_sum = batch * static_cast<double>(shape.gradient_bytes);
  const auto group = static_cast<double>(shares.group());
  // Rows of the whole sequence, of each own key/value head.
  const double own =
      static_cast<double>(plan.map().tokens()) * static_cast<double>(shares.Of(rank).count);
  // Queries, keys and values of the rank's own tokens, or their gradients.
  const double local = static_cast<double>(plan.map().LocalTokens(rank)) *
                       static_cast<double>(plan.heads() + 2 * plan.kv_heads()) * row;
  // Queries, keys, values, outputs and log denominators of own heads, in the place of own tokens'
  // queries, keys and values.
  traffic.saved = own * ((2 * group + 2) * row + group * log_sum) - local;
  // The output's gradient; gradients of the other three, and of what of them leaves and comes.
  traffic.transient = own * (group + 2 * (group + 2)) * row + local;
  return traffic;
}

}  // namespace

RankTraffic TrafficOf(const AttentionPlan& plan, int rank, const MessageShape& shape) {
  return plan.strategy() == Strategy::kHeads ? OfHeads(plan, rank, shape)
                                             : OfGrouped(plan, rank, shape);
}

}  // namespace ringmaster::attention
