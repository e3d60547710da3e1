// Faults injected in every phase and layer: the peers hear of it, nobody's state is half a step.
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/train/training_ranks.h"
#include "worker/train/fault_injection.h"

namespace ringmaster::worker {
namespace {

using testing::HasSubstr;

class FaultTest : public testing::Test {
 protected:
  // A ring of three that is to fail in step 1.
  std::vector<RankRun> Run(const std::string& fault, int64_t generation = 1) const {
    JobConfig config = SmallJob();
    config.ring_size = 3;
    config.global_sequences = 1;
    config.sequence_length = 288;
    config.precision = Precision::kFp32;
    std::vector<RankRun> runs;
    const absl::StatusOr<FaultInjection> parsed = FaultInjection::Parse(fault);
    EXPECT_TRUE(parsed.ok()) << parsed.status();
    RunRanks(config, path_, {.steps = 3, .fault = *parsed, .generation = generation}, runs);
    return runs;
  }

  // The failing rank holds step 1. A peer that had not yet heard the end of the vote before it may
  // be one step behind: the copy from the furthest rank heals that.
  static void ExpectTheOldStepOrOneBefore(const RankRun& run, const TrainingState& failing) {
    EXPECT_EQ(failing.step(), 1);
    EXPECT_EQ(run.fault->step, run.state->step());
    if (run.state->step() == 1) {
      EXPECT_EQ(run.state->Digest(), failing.Digest());
    } else {
      EXPECT_EQ(run.state->step(), 0);
    }
  }

  CorpusFiles files_;
  std::string path_ = files_.Write("text", SmallText());
};

struct Place {
  std::string phase;
  int layer;
  std::string where;
};

TEST_F(FaultTest, AFailingRankReleasesItsPeersAtOnceAndKeepsTheOldStep) {
  const std::vector<Place> places = {
      {"data", 0, "step.data"},
      {"embedding", 0, "step.embedding"},
      {"forward", 0, "step.forward.layer0"},
      {"forward", 1, "step.forward.layer1"},
      {"loss", 0, "step.loss"},
      {"backward", 1, "step.backward.layer1"},
      {"backward", 0, "step.backward.layer0"},
      {"reduce", 0, "step.reduce"},
      {"vote", 0, "step.vote"},
  };
  for (const Place& place : places) {
    for (const std::string kind : {"throw", "oom"}) {
      for (const int failing : {0, 2}) {
        const std::string fault = "rank=" + std::to_string(failing) +
                                  ",step=1,phase=" + place.phase +
                                  ",layer=" + std::to_string(place.layer) + ",kind=" + kind;
        SCOPED_TRACE(fault);
        const std::vector<RankRun> runs = Run(fault);
        for (int rank = 0; rank < 3; ++rank) {
          const RankRun& run = runs[rank];
          ASSERT_TRUE(run.fault.has_value());
          EXPECT_FALSE(run.fault->deterministic);
          EXPECT_TRUE(run.state->clean());
          ExpectTheOldStepOrOneBefore(run, *runs[failing].state);
          if (rank != failing) {
            EXPECT_EQ(run.fault->kind, StepFault::Kind::kCommunication);
            EXPECT_FALSE(absl::IsDeadlineExceeded(run.fault->status))
                << "waited for the hop deadline: " << run.fault->status;
            continue;
          }
          EXPECT_EQ(run.fault->where, place.where);
          EXPECT_EQ(run.fault->kind,
                    kind == "oom" ? StepFault::Kind::kOutOfMemory : StepFault::Kind::kException);
          EXPECT_THAT(run.fault->status.ToString(), HasSubstr("injected"));
        }
      }
    }
  }
}

// The others agreed on the same update and apply it, or lose the ring before they hear that all
// agreed.
TEST_F(FaultTest, AFaultWithinTheUpdateLeavesOnlyThatRankDirty) {
  const std::vector<RankRun> runs = Run("rank=1,step=1,phase=update,kind=throw");
  EXPECT_FALSE(runs[1].state->clean());
  EXPECT_EQ(runs[1].state->Digest(), 0u);
  EXPECT_EQ(runs[1].fault->where, "step.update");
  for (const int rank : {0, 2}) {
    EXPECT_TRUE(runs[rank].state->clean());
    EXPECT_GE(runs[rank].state->step(), 1);
    EXPECT_LE(runs[rank].state->step(), 2);
    EXPECT_EQ(runs[rank].fault->kind, StepFault::Kind::kCommunication);
  }
  if (runs[0].state->step() == runs[2].state->step()) {
    EXPECT_EQ(runs[0].state->Digest(), runs[2].state->Digest());
  }
}

TEST_F(FaultTest, GradientsThatAreNotFiniteAreRefusedByAllRanksAlike) {
  for (const std::string phase : {"embedding", "backward", "reduce"}) {
    const std::vector<RankRun> runs = Run("rank=2,step=1,phase=" + phase + ",kind=nan");
    for (const RankRun& run : runs) {
      ASSERT_TRUE(run.fault.has_value());
      EXPECT_EQ(run.fault->kind, StepFault::Kind::kNotFinite);
      EXPECT_TRUE(run.fault->deterministic);
      EXPECT_THAT(run.fault->status.ToString(), HasSubstr("optimizer.lr"));
      EXPECT_TRUE(run.state->clean());
      EXPECT_EQ(run.state->step(), 1);
    }
  }
}

TEST_F(FaultTest, AFaultOfOneGenerationIsGoneInTheNext) {
  const std::string fault = "rank=0,step=1,phase=loss,kind=throw,generation=1";
  EXPECT_TRUE(Run(fault, 1)[0].fault.has_value());
  EXPECT_FALSE(Run(fault, 2)[0].fault.has_value());
}

TEST(FaultInjectionTest, ParsesAndNamesWhatItDoesNotKnow) {
  EXPECT_EQ(FaultInjection::Parse("")->kind, FaultInjection::Kind::kNone);
  const auto fault = FaultInjection::Parse("rank=2,step=7,phase=backward,layer=3,kind=kill");
  ASSERT_TRUE(fault.ok());
  EXPECT_EQ(fault->rank, 2);
  EXPECT_EQ(fault->step, 7);
  EXPECT_EQ(fault->layer, 3);
  EXPECT_EQ(fault->kind, FaultInjection::Kind::kKill);
  for (const std::string text : {"phase=lunch,kind=oom", "phase=data,kind=odd", "step=x,phase=data",
                                 "colour=red", "rank=1,step=2"}) {
    EXPECT_EQ(FaultInjection::Parse(text).status().code(), absl::StatusCode::kInvalidArgument)
        << text;
  }
}

}  // namespace
}  // namespace ringmaster::worker
