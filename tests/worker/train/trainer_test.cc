#include "worker/train/trainer.h"

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/plan/layout.h"
#include "attention/plan/plan.h"
#include "coordinator/core/estimate.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/train/resolved_spec.h"
#include "tests/worker/train/training_ranks.h"
#include "worker/comm/accused_ranks.h"

namespace ringmaster::worker {
namespace {

using testing::HasSubstr;

class TrainerTest : public testing::Test {
 protected:
  std::vector<RankRun> Run(const JobConfig& config, const RunOptions& options) const {
    std::vector<RankRun> runs;
    RunRanks(config, path_, options, runs);
    return runs;
  }

  CorpusFiles files_;
  std::string path_ = files_.Write("text", SmallText());
};

JobConfig WithWorld(JobConfig config, int ring_size, int replicas) {
  config.ring_size = ring_size;
  config.replicas = replicas;
  return config;
}

struct World {
  int ring_size;
  int replicas;
};
constexpr World kWorlds[] = {{2, 1}, {4, 1}, {1, 2}, {2, 2}, {4, 2}};

// After one step, exp_avg is (1 - beta1) times the gradient of the whole world.
void ExpectTheGradients(const RankRun& alone, const RankRun& run, const std::string& where) {
  const auto expected = alone.state->NamedTensors();
  const auto found = run.state->NamedTensors();
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    ASSERT_EQ(found[i].name, expected[i].name);
    if (found[i].name.starts_with("optimizer.exp_avg.")) {
      const double scale = expected[i].tensor.abs().max().item<double>();
      EXPECT_LT(found[i].tensor.sub(expected[i].tensor).abs().max().item<double>(),
                1e-11 + 1e-9 * scale)
          << found[i].name << where;
    }
  }
}

TEST_F(TrainerTest, EveryParametersGradientIsThatOfOneRank) {
  JobConfig config = SmallJob();
  config.optimizer.clip_norm = 0;
  config.dropout = 0.2;
  config.attention_dropout = 0.1;
  const std::vector<RankRun> alone = Run(config, {.steps = 1});
  for (const World& world : kWorlds) {
    for (const bool recompute : {false, true}) {
      JobConfig shared = WithWorld(config, world.ring_size, world.replicas);
      shared.activation_checkpointing = recompute;
      const std::vector<RankRun> runs = Run(shared, {.steps = 1});
      EXPECT_EQ(runs[0].steps[0].exchanged_bytes, runs[0].steps[0].planned_bytes);
      uint64_t most = 0;
      for (const RankRun& run : runs) most = std::max(most, run.steps[0].sent_bytes);
      EXPECT_EQ(runs[0].steps[0].exchanged_bytes, most);
      ExpectTheGradients(alone[0], runs.back(),
                         absl::StrCat(", ring ", world.ring_size, ", replicas ", world.replicas));
    }
  }
}

// What four ranks of many heads do when all tokens see all.
TEST_F(TrainerTest, RanksSwapTokensForHeads) {
  JobConfig config = SmallJob();
  config.model.heads = config.model.kv_heads = 8;
  config.model.attention.branches = {{768, 1}};
  config.optimizer.clip_norm = 0;
  const std::vector<RankRun> alone = Run(config, {.steps = 1});
  const attention::MessageShape shape{.head_dim = 2, .element_bytes = 8, .gradient_bytes = 8};
  const attention::RingCall call{config.model.attention, config.sequence_length, 4, 8, 8, shape};
  const attention::Layouts layouts =
      *ChooseLayout(call, attention::RatesOf(false, shape.element_bytes, config.threads));
  ASSERT_EQ(layouts.strategy(), attention::Strategy::kHeads);
  const auto planned = [&](const attention::Layout& layout) {
    const attention::AttentionPlan plan = *PlanOf(call, layout);
    uint64_t most = 0;
    for (int rank = 0; rank < 4; ++rank) {
      most =
          std::max(most, plan.SentBytesForward(rank, shape) + plan.SentBytesBackward(rank, shape));
    }
    return most * config.model.layers * config.global_sequences;
  };
  const std::vector<RankRun> runs = Run(WithWorld(config, 4, 1), {.steps = 1});
  const StepResult& step = runs[0].steps[0];
  EXPECT_EQ(step.planned_bytes, planned(layouts.chosen()));
  for (const attention::Layout& layout : layouts.all) {
    if (layout.strategy == attention::Strategy::kGrouped) {
      EXPECT_NE(step.planned_bytes, planned(layout)) << layout.name;
    }
  }
  EXPECT_EQ(step.exchanged_bytes, step.planned_bytes);
  ExpectTheGradients(alone[0], runs.back(), "");
}

std::vector<JobConfig> BlockSparseJobs() {
  using Kind = attention::BlockPattern::Kind;
  const attention::BlockPattern patterns[] = {
      {.kind = Kind::kLocalWindow, .density = 0.4, .block_size = 64},
      {.kind = Kind::kRandom, .density = 0.5, .heads = 4, .block_size = 64, .seed = 5}};
  std::vector<JobConfig> configs;
  for (const attention::BlockPattern& pattern : patterns) {
    configs.push_back(SmallJob());
    configs.back().model.attention.branches.clear();
    configs.back().model.blocks = pattern;
  }
  return configs;
}

TEST_F(TrainerTest, BlockSparseAttentionHasTheGradientsAndLossesOfOneRank) {
  for (JobConfig config : BlockSparseJobs()) {
    const std::vector<RankRun> alone = Run(config, {.steps = 8});
    EXPECT_LT(alone[0].steps[7].loss, alone[0].steps[0].loss);
    for (const World& world : kWorlds) {
      config.activation_checkpointing = !config.activation_checkpointing;
      const std::vector<RankRun> runs =
          Run(WithWorld(config, world.ring_size, world.replicas), {.steps = 8});
      for (size_t i = 0; i < runs[0].steps.size(); ++i) {
        EXPECT_NEAR(runs[0].steps[i].loss, alone[0].steps[i].loss, 1e-9);
        EXPECT_EQ(runs[0].steps[i].exchanged_bytes, runs[0].steps[i].planned_bytes);
      }
      EXPECT_EQ(runs[0].steps[0].exchanged_bytes > 0, world.ring_size > 1);
    }
  }
}

// The coordinator and the ranks choose by themselves; other tokens, or other rows, are other bytes.
TEST_F(TrainerTest, ExchangesWhatTheEstimateSays) {
  for (const bool swapped : {false, true}) {
    v1::EstimateTrainingJobRequest request;
    v1::TrainingJobSpec& spec = *request.mutable_spec();
    spec = ResolvedSpec();
    spec.mutable_resources()->set_device(v1::CPU);
    spec.mutable_resources()->set_threads(2);
    spec.mutable_parallel()->set_ring_size(4);
    spec.mutable_parallel()->set_replicas(1);
    if (swapped) {
      spec.mutable_model()->set_heads(8);
      spec.mutable_model()->set_kv_heads(8);
      spec.mutable_attention()->mutable_dilation_rates()->Clear();
      spec.mutable_attention()->mutable_segment_lengths()->Clear();
      spec.mutable_attention()->add_segment_lengths(512);
      spec.mutable_attention()->add_dilation_rates(1);
    }
    const auto estimate = coordinator::EstimateJob(request);
    ASSERT_TRUE(estimate.ok()) << estimate.status();
    EXPECT_EQ(estimate->layouts(0).find("chosen: tokens swapped") == 0, swapped);
    const auto config = JobConfigFromSpec(estimate->spec());
    ASSERT_TRUE(config.ok()) << config.status();
    const StepResult step = Run(*config, {.steps = 1})[0].steps[0];
    EXPECT_EQ(static_cast<int64_t>(step.planned_bytes), estimate->exchanged_bytes_per_step());
    EXPECT_EQ(step.exchanged_bytes, step.planned_bytes);
  }
}

TEST_F(TrainerTest, ExchangesWhatTheEstimateSaysOfAMask) {
  for (const char* preset : {"local_window_25", "global_local_25", "random_25"}) {
    v1::EstimateTrainingJobRequest request;
    v1::TrainingJobSpec& spec = *request.mutable_spec();
    spec = ResolvedSpec();
    spec.mutable_resources()->set_device(v1::CPU);
    spec.mutable_parallel()->set_ring_size(3);
    spec.mutable_parallel()->set_replicas(1);
    spec.mutable_data()->set_sequence_length(1000);
    spec.clear_attention();
    v1::BlockSparseSpec& blocks = *spec.mutable_attention()->mutable_block_sparse();
    blocks.set_preset(preset);
    blocks.set_block_size(64);
    blocks.set_per_head(blocks.preset() == "random_25");
    const auto estimate = coordinator::EstimateJob(request);
    ASSERT_TRUE(estimate.ok()) << estimate.status();
    const auto config = JobConfigFromSpec(estimate->spec());
    ASSERT_TRUE(config.ok()) << config.status();
    const StepResult step = Run(*config, {.steps = 1})[0].steps[0];
    EXPECT_GT(step.planned_bytes, 0u);
    EXPECT_EQ(static_cast<int64_t>(step.planned_bytes), estimate->exchanged_bytes_per_step());
    EXPECT_EQ(step.exchanged_bytes, step.planned_bytes);
  }
}

TEST_F(TrainerTest, MicroSequencesKeepTheLoss) {
  JobConfig config = WithWorld(SmallJob(), 2, 1);
  config.dropout = 0.2;
  config.attention_dropout = 0.1;
  const std::vector<RankRun> one = Run(config, {.steps = 5});
  for (const int64_t micro : {2, 4}) {
    JobConfig batched = config;
    batched.micro_sequences = micro;
    const std::vector<RankRun> runs = Run(batched, {.steps = 5});
    EXPECT_NEAR(runs[0].steps[4].loss, one[0].steps[4].loss, 1e-9);
    EXPECT_EQ(runs[0].steps[4].exchanged_bytes, runs[0].steps[4].planned_bytes);
  }
}

TEST_F(TrainerTest, RecomputationGivesTheSameBits) {
  for (const Precision precision : {Precision::kFp64, Precision::kFp32, Precision::kBf16}) {
    JobConfig config = WithWorld(SmallJob(), 2, 1);
    config.precision = precision;
    config.dropout = 0.2;
    config.attention_dropout = 0.1;
    const std::vector<RankRun> kept = Run(config, {.steps = 5});
    config.activation_checkpointing = true;
    const std::vector<RankRun> recomputed = Run(config, {.steps = 5});
    EXPECT_EQ(recomputed[0].state->Digest(), kept[0].state->Digest());
  }
}

TEST_F(TrainerTest, DropoutIsDrawnAnewEachStepAndNotInValidation) {
  JobConfig config = SmallJob();
  // Nothing moves: two steps on the same bytes differ by their dropout alone.
  config.optimizer.lr = 0;
  config.optimizer.weight_decay = 0;
  config.validation_interval = 1;
  const std::vector<RankRun> still = Run(config, {.steps = 2});
  for (double JobConfig::*kind : {&JobConfig::dropout, &JobConfig::attention_dropout}) {
    JobConfig dropping = config;
    dropping.*kind = 0.5;
    const std::vector<RankRun> dropped = Run(dropping, {.steps = 2});
    EXPECT_NE(dropped[0].steps[0].loss, still[0].steps[0].loss);
    EXPECT_EQ(dropped[0].validations, still[0].validations);
    dropping.seed = 2;
    EXPECT_NE(Run(dropping, {.steps = 1})[0].steps[0].loss, dropped[0].steps[0].loss);
  }
}

TEST_F(TrainerTest, AllRanksStopAfterTheStepInWhichOneWasAsked) {
  RunOptions options{.steps = 10};
  options.before_step = [](int rank, Trainer& trainer) {
    if (rank == 1) {
      trainer.RequestStop(Stop::kLeave);
    }
  };
  const std::vector<RankRun> runs = Run(WithWorld(SmallJob(), 2, 1), options);
  for (const RankRun& run : runs) {
    EXPECT_EQ(run.steps.size(), 1u);
    EXPECT_EQ(run.state->step(), 1);
    EXPECT_TRUE(run.state->clean());
    EXPECT_EQ(run.steps[0].stop, Stop::kLeave);
  }
}

// One rank leaves as the job is paused: the checkpoint comes first.
TEST_F(TrainerTest, OfTwoKindsOfStopTheOneWithACheckpointHolds) {
  RunOptions options{.steps = 10};
  options.before_step = [](int rank, Trainer& trainer) {
    trainer.RequestStop(rank == 0 ? Stop::kFinish : Stop::kLeave);
    // Nor does a later one on the same rank undo it.
    trainer.RequestStop(Stop::kLeave);
  };
  for (const RankRun& run : Run(WithWorld(SmallJob(), 2, 1), options)) {
    ASSERT_EQ(run.steps.size(), 1u);
    EXPECT_EQ(run.steps[0].stop, Stop::kFinish);
  }
}

TEST_F(TrainerTest, RanksThatSeeDifferentFilesStopBeforeTheFirstUpdate) {
  const std::string other = files_.Write("other", SmallText() + "x");
  RunOptions options{.steps = 1};
  options.paths = {path_, other};
  const std::vector<RankRun> runs = Run(WithWorld(SmallJob(), 1, 2), options);
  for (int rank = 0; rank < 2; ++rank) {
    const RankRun& run = runs[rank];
    ASSERT_TRUE(run.fault.has_value());
    EXPECT_EQ(run.fault->kind, StepFault::Kind::kData);
    EXPECT_TRUE(run.fault->deterministic);
    EXPECT_THAT(run.fault->status.ToString(), HasSubstr("different files"));
    EXPECT_THAT(AccusedRanks(run.fault->status), testing::ElementsAre(1 - rank));
    EXPECT_EQ(run.state->step(), 0);
  }
}

// The next generation may place the rank where the file is whole.
TEST_F(TrainerTest, AFileThatShrinksOnOneRankIsItsDataErrorAndMayBeTriedAgain) {
  const std::string copy = files_.Write("copy/text", SmallText());
  RunOptions options{.steps = 3};
  options.paths = {path_, copy};
  options.before_step = [this](int rank, Trainer&) {
    if (rank == 1) {
      files_.Write("copy/text", "gone");
    }
  };
  const std::vector<RankRun> runs = Run(WithWorld(SmallJob(), 2, 1), options);
  ASSERT_TRUE(runs[0].fault.has_value());
  EXPECT_EQ(runs[0].fault->kind, StepFault::Kind::kCommunication);
  ASSERT_TRUE(runs[1].fault.has_value());
  EXPECT_EQ(runs[1].fault->kind, StepFault::Kind::kData);
  EXPECT_EQ(runs[1].fault->where, "step.data");
  EXPECT_FALSE(runs[1].fault->deterministic) << "no other rank has seen it";
  EXPECT_THAT(runs[1].fault->status.ToString(), HasSubstr(copy));
}

// The last sum is awaited no longer than a hop; a replica that has a sequence less must not come to
// it a whole sequence early.
TEST_F(TrainerTest, EachReplicaIsAsLongAtAValidation) {
  const JobConfig config = WithWorld(SmallJob(), 2, 2);
  ASSERT_EQ(config.validation_sequences % config.replicas, 1);
  const auto communicators = ConnectInProcess(config.world_size());
  std::vector<std::thread> ranks;
  for (const auto& communicator : communicators) {
    ranks.emplace_back([&] {
      const auto state = TrainingState::Create(config, "cpu");
      ASSERT_TRUE(state.ok()) << state.status();
      const auto trainer =
          Trainer::Create(config, state->get(), {communicator.get()}, OpenSource(config, path_));
      ASSERT_TRUE(trainer.ok()) << trainer.status();
      const absl::Status status = (*trainer)->Validate().status();
      EXPECT_TRUE(status.ok()) << status;
    });
  }
  for (std::thread& rank : ranks) {
    rank.join();
  }
  EXPECT_GT(communicators[0]->world().sent_bytes(), 0u);
  for (int rank = 0; rank < config.ring_size; ++rank) {
    EXPECT_EQ(communicators[rank]->world().sent_bytes(),
              communicators[rank + config.ring_size]->world().sent_bytes());
  }
}

TEST_F(TrainerTest, RefusesACommunicatorOfAnotherSize) {
  const JobConfig config = WithWorld(SmallJob(), 2, 2);
  const auto communicators = ConnectInProcess(2);
  const auto state = TrainingState::Create(config, "cpu");
  const absl::Status status =
      Trainer::Create(config, state->get(), {communicators[0].get()}, OpenSource(config, path_))
          .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace ringmaster::worker
