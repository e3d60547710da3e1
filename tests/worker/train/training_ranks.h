#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "tests/worker/data/corpus_files.h"
#include "worker/comm/in_process_exchange.h"
#include "worker/train/job_config.h"
#include "worker/train/trainer.h"
#include "worker/train/training_state.h"

namespace ringmaster::worker {

// Two blocks with GQA over 256 bytes; the last two branches span every ring that these tests form.
// Its sequences are longer than those that attention sums in fp64 whatever the precision.
inline JobConfig SmallJob() {
  JobConfig config;
  config.model.layers = 2;
  config.model.dim = 16;
  config.model.heads = 4;
  config.model.kv_heads = 2;
  config.model.ffn_dim = 32;
  config.model.vocab_size = 256;
  config.model.attention.branches = {{8, 1}, {192, 3}, {768, 4}};
  config.optimizer = {.lr = 3e-3,
                      .beta1 = 0.9,
                      .beta2 = 0.98,
                      .epsilon = 1e-8,
                      .weight_decay = 0.01,
                      .clip_norm = 1};
  config.schedule = {.warmup_steps = 5, .decay = Decay::kCosine, .final_lr_ratio = 0.1};
  config.precision = Precision::kFp64;
  config.steps = 50;
  config.seed = 1;
  config.sequence_length = 301;
  config.validation_fraction = 0.2;
  config.data_seed = 2;
  config.validation_interval = 10;
  config.validation_sequences = 3;
  config.global_sequences = 4;
  return config;
}

// English-like bytes: a fixed sentence with numbers in it.
inline std::string SmallText() {
  std::string text;
  for (int i = 0; text.size() < 24000; ++i) {
    text += "In the year " + std::to_string(i * i % 977) + " the ring of " +
            std::to_string(i % 7 + 2) + " workers began again.\n";
  }
  return text;
}

// What one rank did and holds.
struct RankRun {
  std::unique_ptr<TrainingState> state;
  std::vector<StepResult> steps;
  std::vector<double> validations;
  std::optional<StepFault> fault;
};

struct RunOptions {
  int64_t steps = 0;
  FaultInjection fault;
  int64_t generation = 1;
  absl::Duration hop_deadline = absl::Seconds(30);
  // Of states that are made.
  at::Device device = at::kCPU;
  // Corpus of each rank; the same file for all when empty.
  std::vector<std::string> paths;
  // Called by each rank before every step, on its thread.
  std::function<void(int rank, Trainer& trainer)> before_step;
};

inline SequenceSource OpenSource(const JobConfig& config, const std::string& path) {
  auto corpus = std::make_shared<const ByteCorpus>(*ByteCorpus::Open({{path}}));
  absl::StatusOr<SequenceSource> source =
      SequenceSource::Create(corpus, {.sequence_length = config.sequence_length,
                                      .validation_fraction = config.validation_fraction,
                                      .seed = config.data_seed,
                                      .sequences_per_step = config.global_sequences});
  EXPECT_TRUE(source.ok()) << source.status();
  return *std::move(source);
}

inline void RunRank(const JobConfig& config, const std::string& path, const RunOptions& options,
                    Communicator& communicator, RankRun& run) {
  if (run.state == nullptr) {
    absl::StatusOr<std::unique_ptr<TrainingState>> state =
        TrainingState::Create(config, options.device.str());
    ASSERT_TRUE(state.ok()) << state.status();
    run.state = *std::move(state);
  }
  absl::StatusOr<std::unique_ptr<Trainer>> trainer =
      Trainer::Create(config, run.state.get(), {&communicator, options.generation, options.fault},
                      OpenSource(config, path));
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  for (int64_t i = 0; i < options.steps; ++i) {
    if (options.before_step) {
      options.before_step(communicator.world().rank(), **trainer);
    }
    const absl::StatusOr<StepResult> step = (*trainer)->RunStep();
    if (!step.ok()) {
      run.fault = (*trainer)->fault();
      return;
    }
    run.steps.push_back(*step);
    if ((*trainer)->ValidationDue()) {
      const absl::StatusOr<double> loss = (*trainer)->Validate();
      if (!loss.ok()) {
        run.fault = (*trainer)->fault();
        return;
      }
      run.validations.push_back(*loss);
    }
    if (step->stop != Stop::kNone) {
      return;
    }
  }
}

// Runs all ranks of a job as threads of one generation. `runs` may hold states to go on from.
inline void RunRanks(const JobConfig& config, const std::string& path, const RunOptions& options,
                     std::vector<RankRun>& runs) {
  runs.resize(config.world_size());
  const auto communicators = ConnectInProcess(config.world_size(), options.hop_deadline);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < config.world_size(); ++rank) {
    threads.emplace_back([&, rank] {
      RunRank(config, options.paths.empty() ? path : options.paths[rank], options,
              *communicators[rank], runs[rank]);
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
}

}  // namespace ringmaster::worker
