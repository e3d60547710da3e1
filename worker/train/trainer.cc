#include "worker/train/trainer.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/plan/layout.h"
#include "attention/plan/plan.h"
#include "base/status_macros.h"
#include "models/longnet.h"
#include "spdlog/spdlog.h"
#include "worker/comm/accused_ranks.h"
#include "worker/comm/collectives.h"
#include "worker/comm/subgroup_exchange.h"
#include "worker/torch_status.h"
#include "worker/train/optimizer.h"

namespace ringmaster::worker {
namespace {

// What each rank tells all others before an update.
struct Vote {
  int64_t step = 0;
  uint64_t data_fingerprint = 0;
  double loss_sum = 0;
  double grad_norm = 0;
  uint64_t exchanged_bytes = 0;
  uint64_t planned_bytes = 0;
  Stop stop = Stop::kNone;
};

struct TokenBatch {
  at::Tensor tokens;  // [B, n] int64, on the device
  at::Tensor labels;
};

absl::string_view PhaseName(models::Phase phase) {
  switch (phase) {
    case models::Phase::kEmbedding:
      return "embedding";
    case models::Phase::kForward:
      return "forward";
    case models::Phase::kLoss:
      return "loss";
    case models::Phase::kBackward:
      return "backward";
  }
  return "";
}

// The codes that only transports use; what torch throws gets others.
bool IsCommunication(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) ||
         absl::IsAborted(status) || absl::IsFailedPrecondition(status);
}

}  // namespace

struct Trainer::Implementation {
  Implementation(const JobConfig& job, TrainingState* training_state, const Ring& ring,
                 SequenceSource sequences)
      : config(job),
        state(*training_state),
        communicator(*ring.communicator),
        rank(communicator.world().rank()),
        replica(rank / job.ring_size),
        ring_exchange(communicator.world(), replica * job.ring_size, job.ring_size),
        source(std::move(sequences)),
        fault_point(ring.fault, rank, ring.generation) {}

  absl::Status Prepare();
  absl::Status Step(Stop stop, StepResult* result);
  absl::Status Validation(double* loss);

  absl::StatusOr<TokenBatch> ReadBatch(absl::Span<const int64_t> offsets) const;
  absl::Status ComputeGradients(double* loss_sum);
  void Reach(absl::string_view phase, int64_t layer);
  absl::Status Judge(absl::Span<const Vote> votes, StepResult* result);
  std::vector<int> UnlikeThis(absl::Span<const Vote> votes) const;
  // Fails with a fault that all ranks see alike.
  absl::Status Agreed(StepFault::Kind kind, bool deterministic, absl::Status status);
  StepFault Describe(absl::Status status) const;

  const JobConfig config;
  TrainingState& state;
  Communicator& communicator;
  const int rank;
  const int replica;
  SubgroupExchange ring_exchange;
  const SequenceSource source;
  const FaultPoint fault_point;

  models::SequenceShard shard{attention::ShardMap::Contiguous(0, 1, 1)};
  uint64_t planned_bytes = 0;  // of this rank
  at::Tensor gradients;
  std::vector<at::Tensor> gradient_views;

  // Where the current call stands, and what all ranks agreed is wrong with it.
  std::string where;
  bool agreed = false;
  StepFault::Kind agreed_kind = StepFault::Kind::kException;
  bool agreed_deterministic = false;
};

absl::Status Trainer::Implementation::Prepare() {
  const int ring_rank = rank % config.ring_size;
  const at::Tensor& compute = state.compute_parameters()[0];
  const bool fp64 = compute.scalar_type() == at::kDouble;
  const attention::MessageShape shape = {config.micro_sequences, config.model.head_dim(),
                                         static_cast<int64_t>(compute.element_size()),
                                         fp64 ? 8 : 4};
  ASSIGN_OR_RETURN(attention::AttentionPattern pattern,
                   state.model().Pattern(config.sequence_length));
  const attention::RingCall call{.pattern = std::move(pattern),
                                 .tokens = config.sequence_length,
                                 .ranks = config.ring_size,
                                 .heads = static_cast<int>(config.model.heads),
                                 .kv_heads = static_cast<int>(config.model.kv_heads),
                                 .shape = shape};
  ASSIGN_OR_RETURN(const attention::Layouts layouts,
                   ChooseLayout(call, attention::RatesOf(!compute.is_cpu(), shape.element_bytes,
                                                         config.threads)));
  if (rank == 0) {
    for (const std::string& line : layouts.Explain()) SPDLOG_INFO("layout of the ring, {}", line);
  }
  ASSIGN_OR_RETURN(const attention::AttentionPlan plan, PlanOf(call, layouts.chosen()));
  const int64_t rounds = config.global_sequences / (config.micro_sequences * config.replicas);
  const uint64_t forwards = config.activation_checkpointing ? 2 : 1;
  planned_bytes = (forwards * plan.SentBytesForward(ring_rank, shape) +
                   plan.SentBytesBackward(ring_rank, shape)) *
                  config.model.layers * rounds;
  return CatchTorch("preparing the training step", [&] {
    at::set_num_threads(config.threads);
    shard = state.model().Place(layouts.map(), ring_rank, &ring_exchange, compute.options(),
                                layouts.strategy());
    gradients = at::zeros_like(state.parameters());
    gradient_views = state.layout().Views(gradients);
    return absl::OkStatus();
  });
}

void Trainer::Implementation::Reach(absl::string_view phase, int64_t layer) {
  where = layer >= 0 ? absl::StrCat("step.", phase, ".layer", layer) : absl::StrCat("step.", phase);
  if (fault_point.Reach(state.step(), std::string_view(phase.data(), phase.size()), layer)) {
    gradients.fill_(std::numeric_limits<double>::quiet_NaN());
  }
}

absl::StatusOr<TokenBatch> Trainer::Implementation::ReadBatch(
    absl::Span<const int64_t> offsets) const {
  const auto batch = static_cast<int64_t>(offsets.size());
  const int64_t local = shard.map.LocalTokens(shard.rank);
  const at::Tensor both = at::empty({2, batch, local}, at::kLong);
  auto* tokens = both.mutable_data_ptr<int64_t>();
  for (const int64_t offset : offsets) {
    ASSIGN_OR_RETURN(const ShardBytes bytes, source.Read(offset, shard.map.Ranges(shard.rank)));
    std::copy(bytes.labels.begin(), bytes.labels.end(), tokens + batch * local);
    tokens = std::copy(bytes.tokens.begin(), bytes.tokens.end(), tokens);
  }
  const at::Tensor placed = both.to(gradients.device());
  return TokenBatch{placed.select(0, 0), placed.select(0, 1)};
}

absl::Status Trainer::Implementation::ComputeGradients(double* loss_sum) {
  models::LongNet::PassOptions options;
  options.recompute = config.activation_checkpointing;
  options.dropout = config.dropout;
  options.attention_dropout = config.attention_dropout;
  options.hook = [this](models::Phase phase, int64_t layer) { Reach(PhaseName(phase), layer); };
  const double scale = 1 / static_cast<double>(config.tokens_per_step());
  const int64_t per_replica = config.global_sequences / config.replicas;
  gradients.zero_();
  at::Tensor total;
  for (int64_t done = 0; done < per_replica; done += config.micro_sequences) {
    Reach("data", -1);
    std::vector<int64_t> offsets;
    options.dropout_seeds.clear();
    for (int64_t i = 0; i < config.micro_sequences; ++i) {
      const int64_t sequence = replica * per_replica + done + i;
      offsets.push_back(source.TrainingOffset(state.step(), sequence));
      options.dropout_seeds.push_back(models::DropoutSeed(config.seed, state.step(), sequence));
    }
    ASSIGN_OR_RETURN(const TokenBatch batch, ReadBatch(offsets));
    const at::Tensor loss =
        state.model().ForwardBackward(state.compute_parameters(), shard, batch.tokens, batch.labels,
                                      scale, gradient_views, options);
    total = total.defined() ? total.add_(loss) : loss;
  }
  *loss_sum = total.item<double>();
  return absl::OkStatus();
}

absl::Status Trainer::Implementation::Agreed(StepFault::Kind kind, bool deterministic,
                                             absl::Status status) {
  agreed = true;
  agreed_kind = kind;
  agreed_deterministic = deterministic;
  return status;
}

// The ranks that see other files than this one.
std::vector<int> Trainer::Implementation::UnlikeThis(absl::Span<const Vote> votes) const {
  std::vector<int> ranks;
  for (size_t r = 0; r < votes.size(); ++r) {
    if (votes[r].data_fingerprint != source.corpus().fingerprint()) {
      ranks.push_back(static_cast<int>(r));
    }
  }
  return ranks;
}

absl::Status Trainer::Implementation::Judge(absl::Span<const Vote> votes, StepResult* result) {
  double loss_sum = 0;
  const Vote& first = votes[0];
  for (size_t r = 0; r < votes.size(); ++r) {
    const Vote& vote = votes[r];
    if (vote.step != first.step) {
      return absl::FailedPreconditionError(
          absl::StrCat("rank 0 votes on step ", first.step, ", rank ", r, " on step ", vote.step));
    }
    if (vote.data_fingerprint != first.data_fingerprint) {
      return Agreed(StepFault::Kind::kData, true,
                    Accuse(absl::DataLossError(absl::StrCat(
                               "ranks 0 and ", r,
                               " see different files under data.paths; all workers must mount the "
                               "same data")),
                           UnlikeThis(votes)));
    }
    loss_sum += vote.loss_sum;
    result->exchanged_bytes = std::max(result->exchanged_bytes, vote.exchanged_bytes);
    result->planned_bytes = std::max(result->planned_bytes, vote.planned_bytes);
    result->stop = std::max(result->stop, vote.stop);
  }
  result->loss = loss_sum / static_cast<double>(config.tokens_per_step());
  for (size_t r = 0; r < votes.size(); ++r) {
    if (!std::isfinite(votes[r].grad_norm) || !std::isfinite(result->loss)) {
      return Agreed(
          StepFault::Kind::kNotFinite, true,
          absl::OutOfRangeError(absl::StrCat("step ", first.step, ": loss ", result->loss,
                                             ", gradient norm ", votes[r].grad_norm,
                                             "; a lower optimizer.lr or optimizer.clip_norm, or a "
                                             "longer schedule.warmup_steps, may help")));
    }
    if (votes[r].grad_norm != first.grad_norm) {
      return Agreed(
          StepFault::Kind::kException, false,
          absl::InternalError(absl::StrCat("step ", first.step, ": ranks 0 and ", r,
                                           " hold different sums of "
                                           "gradients, of norm ",
                                           first.grad_norm, " and ", votes[r].grad_norm)));
    }
  }
  return absl::OkStatus();
}

absl::Status Trainer::Implementation::Step(Stop stop, StepResult* result) {
  const at::NoGradGuard no_grad;
  const auto begin = std::chrono::steady_clock::now();
  Vote vote;
  vote.step = state.step();
  vote.data_fingerprint = source.corpus().fingerprint();
  vote.stop = stop;
  const uint64_t sent_before = ring_exchange.sent_bytes();
  RETURN_IF_ERROR(ComputeGradients(&vote.loss_sum));
  vote.exchanged_bytes = ring_exchange.sent_bytes() - sent_before;
  vote.planned_bytes = planned_bytes;
  Reach("reduce", -1);
  RETURN_IF_ERROR(AllReduceSum(communicator.world(), gradients));
  vote.grad_norm = GradientNorm(gradients);
  Reach("vote", -1);
  ASSIGN_OR_RETURN(const std::vector<Vote> votes, AllGather(communicator, vote));
  RETURN_IF_ERROR(Judge(votes, result));

  where = "step.update";
  result->step = vote.step;
  result->grad_norm = vote.grad_norm;
  result->learning_rate = LearningRate(config.optimizer, config.schedule, config.steps, vote.step);
  result->tokens = config.tokens_per_step();
  result->sent_bytes = vote.exchanged_bytes;
  ApplyAdamW(config.optimizer, result->learning_rate, vote.grad_norm, gradients, fault_point,
             state);
  result->seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return absl::OkStatus();
}

absl::Status Trainer::Implementation::Validation(double* loss) {
  at::Tensor total = at::zeros_like(gradients.narrow(0, 0, 1), at::kDouble);
  const int64_t last = config.validation_sequences - 1;
  for (int64_t i = replica; i - replica <= last; i += config.replicas) {
    where = "validation.data";
    // A replica that is one short does the last one too, for nothing: the others would wait for it
    // beyond the hop deadline.
    const int64_t offsets[] = {source.ValidationOffset(std::min(i, last), last + 1)};
    ASSIGN_OR_RETURN(const TokenBatch batch, ReadBatch(offsets));
    where = "validation.forward";
    const at::Tensor sum = state.model().NegativeLogLikelihood(state.compute_parameters(), shard,
                                                               batch.tokens, batch.labels);
    if (i <= last) {
      total.add_(sum);
    }
  }
  where = "validation.reduce";
  ASSIGN_OR_RETURN(const std::vector<double> sums, AllGather(communicator, total.item<double>()));
  double sum = 0;
  for (const double part : sums) {
    sum += part;
  }
  *loss = sum / static_cast<double>(config.validation_sequences * config.sequence_length);
  return absl::OkStatus();
}

StepFault Trainer::Implementation::Describe(absl::Status status) const {
  StepFault fault;
  fault.where = where;
  fault.step = state.step();
  if (agreed) {
    fault.kind = agreed_kind;
    fault.deterministic = agreed_deterministic;
  } else if (absl::IsResourceExhausted(status)) {
    fault.kind = StepFault::Kind::kOutOfMemory;
  } else if (IsCommunication(status)) {
    fault.kind = StepFault::Kind::kCommunication;
  } else if (absl::IsDataLoss(status) || absl::IsOutOfRange(status)) {
    fault.kind = StepFault::Kind::kData;
  }
  fault.status = std::move(status);
  return fault;
}

Trainer::Trainer(std::unique_ptr<Implementation> implementation)
    : implementation_(std::move(implementation)) {}

Trainer::~Trainer() = default;

absl::StatusOr<std::unique_ptr<Trainer>> Trainer::Create(const JobConfig& config,
                                                         TrainingState* state, Ring ring,
                                                         SequenceSource source) {
  if (ring.communicator->world().size() != config.world_size()) {
    return absl::InvalidArgumentError(absl::StrCat("a job of ", config.replicas, " x ",
                                                   config.ring_size, " ranks on a communicator of ",
                                                   ring.communicator->world().size()));
  }
  std::unique_ptr<Trainer> trainer(
      new Trainer(std::make_unique<Implementation>(config, state, ring, std::move(source))));
  RETURN_IF_ERROR(trainer->implementation_->Prepare());
  return trainer;
}

absl::Status Trainer::Finish(absl::Status status) {
  if (!status.ok()) {
    fault_ = implementation_->Describe(status);
    if (!implementation_->agreed) {
      implementation_->communicator.Abort(
          absl::StrCat(fault_.where, ": ", std::string(status.message())));
    }
  }
  return status;
}

void Trainer::RequestStop(Stop stop) {
  Stop before = stop_.load();
  while (before < stop && !stop_.compare_exchange_weak(before, stop)) {
  }
}

absl::StatusOr<StepResult> Trainer::RunStep() {
  StepResult result;
  RETURN_IF_ERROR(Finish(CatchTorch(absl::StrCat("step ", implementation_->state.step()),
                                    [&] { return implementation_->Step(stop_.load(), &result); })));
  return result;
}

absl::StatusOr<double> Trainer::Validate() {
  double loss = 0;
  RETURN_IF_ERROR(
      Finish(CatchTorch(absl::StrCat("validation after step ", implementation_->state.step()),
                        [&] { return implementation_->Validation(&loss); })));
  return loss;
}

bool Trainer::ValidationDue() const {
  const JobConfig& config = implementation_->config;
  const int64_t step = implementation_->state.step();
  return config.validation_interval > 0 && implementation_->source.has_validation() &&
         (step % config.validation_interval == 0 || step == config.steps);
}

}  // namespace ringmaster::worker
