// Memory runs out at any allocation of a step, also with an exchange under way: nobody waits for
// the hop deadline, nobody's state is half a step unless its update was under way.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/train/training_ranks.h"

namespace ringmaster::worker {
namespace {

// Allocations of this thread until one fails; none does at 0 and below.
thread_local int64_t allocations_left = 0;

class FailingAllocator final : public c10::Allocator {
 public:
  explicit FailingAllocator(c10::Allocator* real) : real_(real) {}
  c10::DataPtr allocate(size_t bytes) override {
    if (allocations_left > 0 && --allocations_left == 0) {
      TORCH_CHECK_WITH(OutOfMemoryError, false, "injected: no memory");
    }
    return real_->allocate(bytes);
  }
  c10::DeleterFnPtr raw_deleter() const override { return real_->raw_deleter(); }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    real_->copy_data(to, from, bytes);
  }

 private:
  c10::Allocator* const real_;
};

class MemoryFaultTest : public testing::Test {
 protected:
  MemoryFaultTest() : real_(c10::GetCPUAllocator()), failing_(real_) {
    c10::SetCPUAllocator(&failing_);
  }
  ~MemoryFaultTest() override { c10::SetCPUAllocator(real_); }

  // A ring of three whose rank `rank` lacks memory at that allocation of step 1.
  std::vector<RankRun> Run(int rank, int64_t allocation, bool recompute) const {
    JobConfig config = SmallJob();
    config.ring_size = 3;
    config.global_sequences = 1;
    config.sequence_length = 288;
    config.precision = Precision::kFp32;
    config.activation_checkpointing = recompute;
    std::vector<RankRun> runs;
    RunRanks(config, path_,
             {.steps = 2,
              .before_step =
                  [&](int which, Trainer&) {
                    static thread_local int step = 0;
                    allocations_left = which == rank && step++ == 1 ? allocation : 0;
                  }},
             runs);
    return runs;
  }

  c10::Allocator* const real_;
  FailingAllocator failing_;
  CorpusFiles files_;
  const std::string path_ = files_.Write("text", SmallText());
};

TEST_F(MemoryFaultTest, AtAnyAllocationOfAStepThePeersAreReleasedAtOnce) {
  for (const bool recompute : {false, true}) {
    int faults = 0;
    // Every 13th, until the step has no more of them.
    for (int64_t allocation = 1, missed = 0; missed == 0; allocation += 13) {
      SCOPED_TRACE(allocation);
      const int failing = static_cast<int>(allocation % 3);
      const std::vector<RankRun> runs = Run(failing, allocation, recompute);
      if (!runs[failing].fault.has_value()) {
        ++missed;
        continue;
      }
      ++faults;
      const StepFault& fault = *runs[failing].fault;
      EXPECT_EQ(fault.kind, StepFault::Kind::kOutOfMemory) << fault.where << fault.status;
      EXPECT_FALSE(fault.deterministic);
      EXPECT_TRUE(runs[failing].state->clean() || fault.where == "step.update") << fault.where;
      for (int rank = 0; rank < 3; ++rank) {
        if (rank == failing) {
          continue;
        }
        const RankRun& peer = runs[rank];
        EXPECT_TRUE(peer.state->clean());
        // Who had all it needed has done the step.
        if (peer.fault.has_value()) {
          EXPECT_EQ(peer.fault->kind, StepFault::Kind::kCommunication) << peer.fault->status;
          EXPECT_FALSE(absl::IsDeadlineExceeded(peer.fault->status))
              << "waited for the hop deadline, " << fault.where << ": " << peer.fault->status;
        } else {
          EXPECT_EQ(peer.state->step(), 2);
          EXPECT_THAT(fault.where, testing::AnyOf("step.vote", "step.update"));
        }
      }
    }
    EXPECT_GT(faults, 20);
  }
}

}  // namespace
}  // namespace ringmaster::worker
