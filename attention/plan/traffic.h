#pragma once

#include "attention/plan/plan.h"

namespace ringmaster::attention {

// What sharing a sequence costs one rank in one call of the operator, in bytes.
struct RankTraffic {
  double sent_forward = 0;
  double sent_backward = 0;
  double received = 0;  // in both passes
  // Memory beside the rank's own tokens and their results: what is kept from the forward to the
  // backward pass, by each layer; and what the backward pass, which needs more than the forward
  // one, holds only while it lasts.
  double saved = 0;
  double transient = 0;
};

// The bytes sent are the plan's.
RankTraffic TrafficOf(const AttentionPlan& plan, int rank, const MessageShape& shape);

}  // namespace ringmaster::attention
