#include "coordinator/core/estimate.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "attention/plan/layout.h"
#include "attention/plan/plan.h"
#include "attention/plan/traffic.h"
#include "base/status_macros.h"
#include "coordinator/core/spec.h"
#include "coordinator/core/violations.h"
#include "proto/rpc_status.h"

namespace ringmaster::coordinator {
namespace {

using attention::AttentionPlan;
using attention::MessageShape;

// Exchanges of rings up to this size are planned rank by rank; of larger ones, a sample.
constexpr int kPlannedRanksMax = 64;
// Looks at a peer's keys (attention::SampleRanks) that an estimate may cost: about half a second.
// Beyond, fewer ranks are planned, or none.
constexpr double kLooksMax = 1 << 22;
// Of a mask that an estimate makes: about half a second. Larger ones are not planned.
constexpr double kPlannedMaskBits = 0x1p26;
// Tokens of one piece of the chunked loss.
constexpr int64_t kLossChunkTokens = 4096;
constexpr double kImbalanceWarned = 0.10;

int64_t Saturated(double value) {
  return value >= 9.2e18 ? std::numeric_limits<int64_t>::max() : static_cast<int64_t>(value);
}

struct Widths {
  int64_t compute = 4;   // of an activation
  int64_t master = 4;    // of a parameter, a gradient and each of the optimizer's moments
  int64_t gradient = 4;  // of a dK or dV partial
};

Widths WidthsOf(v1::Precision precision) {
  switch (precision) {
    case v1::BF16:
      return {2, 4, 4};
    case v1::FP64:
      return {8, 8, 8};
    default:
      return {};
  }
}

v1::MemoryEstimate StateMemory(const v1::TrainingJobSpec& spec) {
  const Widths widths = WidthsOf(spec.precision());
  const auto parameters = static_cast<double>(ParameterCount(spec.model()));
  v1::MemoryEstimate memory;
  const auto copy = static_cast<double>(spec.precision() == v1::BF16 ? widths.compute : 0);
  memory.set_parameter_bytes(Saturated(parameters * (static_cast<double>(widths.master) + copy)));
  memory.set_gradient_bytes(Saturated(parameters * static_cast<double>(widths.master)));
  memory.set_optimizer_bytes(Saturated(2 * parameters * static_cast<double>(widths.master)));
  return memory;
}

// Bytes kept for backward by one block and token.
double BlockActivationBytes(const v1::ModelSpec& model, const Widths& widths) {
  const double kv = 2.0 * model.kv_heads() / model.heads();
  // Inputs of both norms and their outputs, query, attention's output, its sub-norm, both
  // residuals.
  const double narrow = (8 + kv) * model.dim();
  const double wide = (model.sub_ln() ? 3.0 : 2.0) * model.ffn_dim();
  return (narrow + wide) * static_cast<double>(widths.compute) + 4.0 * model.heads();
}

double ActivationBytes(const v1::TrainingJobSpec& spec, int64_t local_tokens) {
  const Widths widths = WidthsOf(spec.precision());
  const double tokens =
      static_cast<double>(local_tokens) * static_cast<double>(spec.batch().micro_sequences());
  // Two masks of dropout, a byte a channel.
  const double block = BlockActivationBytes(spec.model(), widths) +
                       (spec.dropout() > 0 ? 2.0 * spec.model().dim() : 0);
  const double input =
      static_cast<double>(spec.model().dim()) * static_cast<double>(widths.compute);
  const double blocks = spec.activation_checkpointing() ? spec.model().layers() * input + block
                                                        : spec.model().layers() * block;
  const double loss =
      std::min(tokens, static_cast<double>(kLossChunkTokens)) * spec.model().vocab_size() * 2 * 4;
  return tokens * (blocks + 2 * input) + loss;
}

// What follows from who holds how many tokens.
void AddShards(const v1::TrainingJobSpec& spec, const attention::ShardMap& map,
               v1::EstimateTrainingJobResponse* estimate) {
  double activations = 0;
  for (int rank = 0; rank < map.ranks(); ++rank) {
    const int64_t local = map.LocalTokens(rank);
    estimate->add_shard_tokens(local);
    activations = std::max(activations, ActivationBytes(spec, local));
  }
  estimate->mutable_memory()->set_activation_bytes(Saturated(activations));
}

// Ranks of which exchanges are estimated; none when the plan of two ranks costs too much.
std::vector<int> PlannedRanks(const AttentionPlan& plan) {
  std::vector<int> ranks = SampleRanks(plan, kPlannedRanksMax, kLooksMax);
  if (static_cast<int>(ranks.size()) < std::min(2, plan.map().ranks())) ranks.clear();
  return ranks;
}

// Multiplications and additions of everything but attention, forward, per token.
double DenseFlopsPerToken(const v1::ModelSpec& model) {
  const double dim = model.dim();
  const double kv_dim = dim * model.kv_heads() / model.heads();
  const double block = 2 * dim * dim + 2 * dim * kv_dim + 2 * dim * model.ffn_dim();
  return 2 * (block * model.layers() + dim * model.vocab_size());
}

struct RankCost {
  double flops = 0;  // forward and backward of one sequence
  int64_t tokens = 0;
};

RankCost CostOf(const v1::TrainingJobSpec& spec, const AttentionPlan& plan, int rank) {
  const MessageShape one{.batch = 1, .head_dim = spec.model().dim() / spec.model().heads()};
  const double attended = plan.ForwardFlops(rank, one) * spec.model().layers();
  const int64_t local = plan.map().LocalTokens(rank);
  return {(1 + attention::kBackwardOverForward) * attended +
              3 * DenseFlopsPerToken(spec.model()) * static_cast<double>(local),
          local};
}

void WarnOfBranches(const v1::TrainingJobSpec& spec, v1::EstimateTrainingJobResponse* estimate) {
  const auto& rates = spec.attention().dilation_rates();
  if (std::find(rates.begin(), rates.end(), 1) == rates.end()) {
    estimate->add_warnings(
        "no branch has dilation rate 1: some heads leave some positions without any key (their "
        "output is 0)");
  }
  for (int i = 0; i < rates.size(); ++i) {
    const int64_t w = spec.attention().segment_lengths(i);
    if (w > spec.data().sequence_length() && i > 0 &&
        spec.attention().segment_lengths(i - 1) >= spec.data().sequence_length()) {
      estimate->add_warnings(absl::StrFormat(
          "branch %d (segment %d) acts like a segment of %d, as an earlier branch does: its keys "
          "count twice",
          i, w, spec.data().sequence_length()));
    }
  }
}

void WarnOfCosts(const v1::TrainingJobSpec& spec, const std::vector<RankCost>& costs,
                 v1::EstimateTrainingJobResponse* estimate) {
  const auto empty = std::count_if(estimate->shard_tokens().begin(), estimate->shard_tokens().end(),
                                   [](int64_t tokens) { return tokens == 0; });
  if (empty > 0) {
    estimate->add_warnings(absl::StrFormat(
        "%d of %d ring ranks hold no token: the sequence has only %d; a smaller ring does the same",
        empty, spec.parallel().ring_size(), spec.data().sequence_length()));
  }
  double most = 0;
  double sum = 0;
  for (const RankCost& cost : costs) {
    most = std::max(most, cost.flops);
    sum += cost.flops;
  }
  const double mean = costs.empty() ? 0 : sum / static_cast<double>(costs.size());
  if (mean > 0 && most / mean - 1 > kImbalanceWarned) {
    estimate->add_warnings(absl::StrFormat(
        "the busiest ring rank computes %.0f %% more than the mean; the others wait for it",
        100 * (most / mean - 1)));
  }
  if (!spec.attention().has_block_sparse()) WarnOfBranches(spec, estimate);
}

}  // namespace

int64_t ParameterCount(const v1::ModelSpec& model) {
  const double dim = model.dim();
  const double ffn = model.ffn_dim();
  const double kv_dim = dim / model.heads() * model.kv_heads();
  double block = 2 * (dim * dim + dim) + 2 * (kv_dim * dim + kv_dim);  // query, output; key, value
  block += ffn * dim + ffn + dim * ffn + dim;
  block += 4 * dim + (model.sub_ln() ? 2 * dim + 2 * ffn : 0);
  const double embeddings = (model.tied_embeddings() ? 1.0 : 2.0) * model.vocab_size() * dim;
  return Saturated(block * model.layers() + 2 * dim + embeddings);
}

int64_t StateBytes(const v1::TrainingJobSpec& spec) {
  const v1::MemoryEstimate memory = StateMemory(spec);
  return Saturated(static_cast<double>(memory.parameter_bytes()) +
                   static_cast<double>(memory.gradient_bytes()) +
                   static_cast<double>(memory.optimizer_bytes()));
}

namespace {

// As the workers do it; as on CPUs unless the job names CUDA, though it may be placed on GPUs then.
absl::StatusOr<AttentionPlan> PlanRing(const v1::TrainingJobSpec& spec, const MessageShape& shape,
                                       v1::EstimateTrainingJobResponse* estimate) {
  ASSIGN_OR_RETURN(attention::AttentionPattern pattern, PatternOf(spec));
  const attention::RingCall call{.pattern = std::move(pattern),
                                 .tokens = spec.data().sequence_length(),
                                 .ranks = spec.parallel().ring_size(),
                                 .heads = spec.model().heads(),
                                 .kv_heads = spec.model().kv_heads(),
                                 .shape = shape};
  ASSIGN_OR_RETURN(
      const attention::Layouts layouts,
      ChooseLayout(call, attention::RatesOf(spec.resources().device() == v1::CUDA,
                                            shape.element_bytes, spec.resources().threads())));
  for (std::string& line : layouts.Explain()) estimate->add_layouts(std::move(line));
  return PlanOf(call, layouts.chosen());
}

// What follows from the plan: operations, and what is exchanged.
void AddPlan(const v1::TrainingJobSpec& spec, const AttentionPlan& plan, const MessageShape& shape,
             v1::EstimateTrainingJobResponse* estimate) {
  const double passes = static_cast<double>(spec.batch().global_sequences()) /
                        static_cast<double>(spec.parallel().replicas()) /
                        static_cast<double>(spec.batch().micro_sequences());
  const double forwards = spec.activation_checkpointing() ? 2 : 1;
  // Layers that keep something for backward at one time.
  const double keeping = spec.activation_checkpointing() ? 1 : spec.model().layers();
  std::vector<RankCost> costs;
  double exchange = 0;
  double sent_most = 0;
  const std::vector<int> planned = PlannedRanks(plan);
  if (planned.empty()) {
    estimate->add_warnings(
        "ring_size x branches x heads is too large to plan: exchange and operations are not "
        "estimated");
  }
  for (const int rank : planned) {
    const attention::RankTraffic traffic = TrafficOf(plan, rank, shape);
    sent_most = std::max(sent_most, (forwards * traffic.sent_forward + traffic.sent_backward) *
                                        spec.model().layers() * passes);
    exchange = std::max(exchange, keeping * traffic.saved + traffic.transient);
  }
  // Of all ranks: together they cost no more to count than the exchange of one.
  for (int rank = 0; !planned.empty() && rank < plan.map().ranks(); ++rank) {
    costs.push_back(CostOf(spec, plan, rank));
  }
  double flops = 0;
  for (const RankCost& cost : costs) flops += cost.flops;
  estimate->set_step_flops(flops * static_cast<double>(spec.batch().global_sequences()));
  estimate->set_exchanged_bytes_per_step(Saturated(sent_most));
  estimate->mutable_memory()->set_exchange_bytes(Saturated(exchange));
  WarnOfCosts(spec, costs, estimate);
}

v1::EstimateTrainingJobResponse Estimate(const v1::TrainingJobSpec& spec) {
  v1::EstimateTrainingJobResponse estimate;
  *estimate.mutable_spec() = spec;
  estimate.set_parameters(ParameterCount(spec.model()));
  *estimate.mutable_memory() = StateMemory(spec);
  v1::MemoryEstimate* memory = estimate.mutable_memory();

  const Widths widths = WidthsOf(spec.precision());
  const int ring = spec.parallel().ring_size();
  const MessageShape shape{.batch = spec.batch().micro_sequences(),
                           .head_dim = spec.model().dim() / spec.model().heads(),
                           .element_bytes = widths.compute,
                           .gradient_bytes = widths.gradient};
  if (MaskBits(spec) > kPlannedMaskBits) {
    AddShards(spec,
              attention::ShardMap::Contiguous(spec.data().sequence_length(), ring,
                                              spec.attention().block_sparse().block_size()),
              &estimate);
    estimate.add_warnings(
        "attention.block_sparse has too many blocks to plan: exchange and operations are not "
        "estimated");
  } else {
    const absl::StatusOr<AttentionPlan> plan = PlanRing(spec, shape, &estimate);
    if (!plan.ok()) {
      estimate.add_warnings(std::string(plan.status().message()));
      return estimate;
    }
    AddShards(spec, plan->map(), &estimate);
    AddPlan(spec, *plan, shape, &estimate);
  }
  const bool reduces = ring * spec.parallel().replicas() > 1;
  estimate.set_gradient_bytes_per_step(reduces ? memory->gradient_bytes() : 0);
  memory->set_total_bytes(Saturated(static_cast<double>(StateBytes(spec)) +
                                    static_cast<double>(memory->activation_bytes()) +
                                    static_cast<double>(memory->exchange_bytes())));
  if (spec.attention().dropout() > 0) {
    estimate.add_warnings(
        "attention.dropout is computed by products of matrices, which take longer than the kernels "
        "that layouts are predicted with");
  }
  if (spec.precision() == v1::PRECISION_UNSPECIFIED) {
    estimate.add_warnings(
        "neither device nor precision is set: figures are for FP32, the CPU's default; GPUs may "
        "share the sequence in another way");
  }
  return estimate;
}

}  // namespace

absl::StatusOr<v1::EstimateTrainingJobResponse> EstimateJob(
    const v1::EstimateTrainingJobRequest& request) {
  if (!request.has_spec()) return InvalidField("spec", "is required");
  v1::TrainingJobSpec spec = request.spec();
  Violations violations("spec");
  ResolveSpec(&spec, &violations);
  RETURN_IF_ERROR(violations.ToStatus());
  return Estimate(spec);
}

}  // namespace ringmaster::coordinator
