#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "gtest/gtest.h"
#include "tests/worker/train/ring_scenarios.h"
#include "tests/worker/train/training_ranks.h"
#include "worker/comm/collectives.h"
#include "worker/torch_status.h"

namespace ringmaster::worker {
namespace {

constexpr int64_t kSteps = 20;
// What storing one number in fp32 changes it by at most: sums of losses are.
constexpr double kRounding = 0x1p-24;

JobConfig ShortJob() {
  JobConfig config = SmallJob();
  config.steps = kSteps;
  config.validation_interval = -1;
  config.global_sequences = 2;
  return config;
}

// Heads as kernels take them; the second branch spans two of four ranks, the last one all.
JobConfig Job() {
  JobConfig config = ShortJob();
  config.model.dim = 256;
  config.model.ffn_dim = 512;
  config.model.attention.branches = {{256, 1}, {1024, 2}, {4096, 4}};
  config.sequence_length = 3001;
  config.global_sequences = 1;
  config.optimizer.lr = 1e-3;
  return config;
}

at::Tensor OnHost(const at::Tensor& x) { return x.to(at::kCPU, at::kDouble); }

double Norm(const at::Tensor& x) { return x.norm().item<double>(); }

// How far a run is from the reference.
struct Distance {
  Distance(const RankRun& run, const RankRun& reference) {
    for (size_t i = 0; i < kSteps; ++i) {
      losses.push_back(run.steps[i].loss - reference.steps[i].loss);
      largest_loss = std::max(largest_loss, std::abs(losses[i]));
    }
    const auto weights = run.state->Weights(), exact = reference.state->Weights();
    for (size_t i = 0; i < weights.size(); ++i) {
      tensors.push_back(Norm(OnHost(weights[i].tensor) - exact[i].tensor));
    }
    all = Norm(OnHost(run.state->parameters()) - reference.state->parameters());
  }

  std::vector<double> losses;
  double largest_loss = 0;
  std::vector<double> tensors;  // of the parameters, in their order
  double all = 0;
};

// Of what ranks and one rank end with. Both start from the same bits as the reference.
void Compare(const RankRun& ring, const RankRun& one, const RankRun& reference,
             const at::Tensor& initial) {
  const Distance of_ring(ring, reference), of_one(one, reference);
  std::printf("  step, loss in fp64, of one rank and of the ranks minus that\n");
  for (size_t i = 0; i < kSteps; ++i) {
    const double loss = reference.steps[i].loss;
    std::printf("  %2zu  %.9f  %+.2e  %+.2e\n", i, loss, of_one.losses[i], of_ring.losses[i]);
    // A loss may come near to the exact one by luck: one rank's worst step counts.
    EXPECT_LE(std::abs(of_ring.losses[i]), 2 * of_one.largest_loss + kRounding * loss)
        << "step " << i;
    const StepResult& step = ring.steps[i];
    EXPECT_EQ(step.exchanged_bytes, step.planned_bytes) << "step " << i;
    EXPECT_GT(step.exchanged_bytes, 0u) << "no branch spans the ranks";
  }
  EXPECT_LT(reference.steps.back().loss, reference.steps.front().loss) << "does not learn";
  const double moved = Norm(reference.state->parameters() - initial);
  std::printf("  parameters: moved by %.3e; one rank is off by %.3e, the ranks by %.3e\n", moved,
              of_one.all, of_ring.all);
  EXPECT_LE(of_ring.all, 2 * of_one.all);
  // Small tensors may come near to the exact ones by luck: half of what as many parameters are off
  // by on the average is added to their distance.
  const auto exact = reference.state->Weights();
  const double average = of_one.all / std::sqrt(reference.state->parameters().numel());
  double worst = 0;
  std::string name;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double luck = 0.5 * average * std::sqrt(exact[i].tensor.numel());
    const double ratio = of_ring.tensors[i] / (of_one.tensors[i] + luck);
    EXPECT_LE(ratio, 2) << exact[i].name;
    if (ratio > worst) {
      worst = ratio;
      name = exact[i].name;
    }
  }
  std::printf("  at most %.2f times one rank's distance, in %s; the busiest rank sent %llu bytes\n",
              worst, name.c_str(), static_cast<unsigned long long>(ring.steps[0].exchanged_bytes));
  std::fflush(stdout);
}

absl::Status Training(Rank& rank, JobConfig config) {
  const CorpusFiles files;
  const std::string path = files.Write("text", SmallText());
  const auto run = [&](const JobConfig& job, at::Device device, Communicator& ring,
                       RankRun& result) {
    RunRank(job, path, {.steps = kSteps, .device = device}, ring, result);
    const std::string why = result.fault.has_value() ? result.fault->status.ToString() : "";
    CHECK_OR_RETURN(result.steps.size() == kSteps, "rank ", rank.rank(), ": ", why);
    return absl::OkStatus();
  };
  const at::Device device = DeviceOf(rank);
  RankRun of_ring, of_one, reference;
  config.ring_size = rank.size();
  {
    ASSIGN_OR_RETURN(const auto ring, rank.Form(1, kRingDeadline));
    RETURN_IF_ERROR(run(config, device, *ring, of_ring));
    ASSIGN_OR_RETURN(const auto digests, AllGather(*ring, of_ring.state->Digest()));
    EXPECT_EQ(digests, std::vector(digests.size(), digests[0]));
    RETURN_IF_ERROR(ring->Close());
  }
  if (rank.rank() != 0) return absl::OkStatus();
  config.ring_size = 1;
  ASSIGN_OR_RETURN(const auto alone, rank.Open({.generation = 2, .hop_deadline = kRingDeadline}));
  RETURN_IF_ERROR(alone->Connect({alone->address()}, absl::Seconds(30)));
  RETURN_IF_ERROR(run(config, device, *alone, of_one));
  RETURN_IF_ERROR(alone->Close());
  ASSIGN_OR_RETURN(const auto initial, TrainingState::Create(config, "cpu"));
  config.precision = Precision::kFp64;
  config.threads = static_cast<int>(std::thread::hardware_concurrency());
  ASSIGN_OR_RETURN(reference.state, TrainingState::Create(config, "cpu"));
  reference.state->MarkDirty();
  reference.state->parameters().copy_(initial->parameters());
  reference.state->MarkClean(0);
  RETURN_IF_ERROR(run(config, at::kCPU, *ConnectInProcess(1)[0], reference));
  Compare(of_ring, of_one, reference, OnHost(initial->parameters()));
  return absl::OkStatus();
}

}  // namespace

std::vector<Scenario> RingTrainingScenarios() {
  std::vector<Scenario> scenarios;
  for (const bool brief : {true, false}) {
    for (const Precision precision : {Precision::kBf16, Precision::kFp32}) {
      for (const int ranks : {2, 4}) {
        const std::string name =
            absl::StrCat(brief ? "Short" : "", "Training",
                         precision == Precision::kBf16 ? "Bf16On" : "Fp32On", ranks);
        scenarios.push_back({name, ranks, [=](Rank& rank) {
                               JobConfig config = brief ? ShortJob() : Job();
                               config.precision = precision;
                               if (rank.rank() == 0) std::printf("%s\n", name.c_str());
                               return CatchTorch(name, [&] { return Training(rank, config); });
                             }});
      }
    }
  }
  return scenarios;
}

}  // namespace ringmaster::worker
