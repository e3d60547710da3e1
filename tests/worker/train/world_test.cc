// Fifty steps of one job on worlds of every shape. Its own program, because it takes half a minute.
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/worker/train/training_ranks.h"

namespace ringmaster::worker {
namespace {

struct World {
  int ring_size;
  int replicas;
};
struct Case {
  Precision precision;
  double tolerance;
  int64_t tokens;
};
// Sequences up to 256 tokens are summed in fp64 by attention whatever the precision.
constexpr Case kCases[] = {{Precision::kFp64, 1e-9, 96},
                           {Precision::kFp64, 1e-9, 101},
                           {Precision::kFp32, 1e-4, 101},
                           {Precision::kFp32, 1e-4, 288},
                           {Precision::kFp32, 1e-4, 301}};
constexpr World kWorlds[] = {{2, 1}, {4, 1}, {1, 2}, {2, 2}, {4, 2}};

// However the work is shared out, 50 steps give the same losses, norms and validation losses.
TEST(WorldTest, LossesDoNotDependOnTheWorld) {
  const CorpusFiles files;
  const std::string path = files.Write("text", SmallText());
  const auto run_job = [&](const JobConfig& config) {
    std::vector<RankRun> runs;
    RunRanks(config, path, {.steps = 50}, runs);
    return runs;
  };
  for (const auto& [precision, tolerance, tokens] : kCases) {
    SCOPED_TRACE(testing::Message() << tokens << " tokens, tolerance " << tolerance);
    JobConfig config = SmallJob();
    config.precision = precision;
    config.sequence_length = tokens;
    config.validation_interval = 25;
    const std::vector<RankRun> alone = run_job(config);
    ASSERT_EQ(alone[0].steps.size(), 50u);
    EXPECT_LT(alone[0].steps.back().loss, 0.8 * alone[0].steps.front().loss) << "does not learn";
    for (const World& world : kWorlds) {
      JobConfig shared = config;
      shared.ring_size = world.ring_size;
      shared.replicas = world.replicas;
      const std::vector<RankRun> runs = run_job(shared);
      for (const RankRun& run : runs) {
        ASSERT_EQ(run.steps.size(), 50u);
        EXPECT_EQ(run.state->Digest(), runs[0].state->Digest());
        EXPECT_EQ(run.validations, runs[0].validations);
      }
      for (size_t i = 0; i < 50; ++i) {
        const StepResult& step = runs[0].steps[i];
        EXPECT_NEAR(step.loss, alone[0].steps[i].loss, tolerance * step.loss)
            << "step " << i << ", ring " << world.ring_size << ", replicas " << world.replicas;
        EXPECT_EQ(step.exchanged_bytes, step.planned_bytes);
        EXPECT_EQ(step.exchanged_bytes > 0, world.ring_size > 1) << "no branch spans the ranks";
      }
      for (size_t i = 0; i < 2; ++i) {
        EXPECT_NEAR(runs[0].validations[i], alone[0].validations[i],
                    tolerance * alone[0].validations[i]);
      }
    }
  }
}

}  // namespace
}  // namespace ringmaster::worker
