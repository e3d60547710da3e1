#include "worker/driver/ring_faults.h"

#include <iterator>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/comm/accused_ranks.h"

namespace ringmaster::worker {
namespace {

using ::testing::EndsWith;

v1::RingRef SomeRing() {
  v1::RingRef ring;
  ring.set_generation(7);
  ring.set_rank(3);
  return ring;
}

TEST(RingFaultsTest, SaysOfAFailureToFormWhoseItIsAndWhetherItWouldComeAgain) {
  struct Row {
    FormStage stage;
    absl::StatusCode code;
    v1::Fault::Kind kind;
    bool deterministic;
    const char* where;
  };
  using enum FormStage;
  using enum absl::StatusCode;
  static constexpr Row kRows[] = {
      // What the user wrote.
      {kSpec, kInvalidArgument, v1::Fault::FORM_ERROR, true, "spec"},
      // A directory that is not below --shared-dir, or that not all ranks see.
      {kDirectory, kFailedPrecondition, v1::Fault::FORM_ERROR, true, "directory"},
      {kDirectory, kInvalidArgument, v1::Fault::FORM_ERROR, true, "directory"},
      // An unreachable file system may be mounted again, a full disk be swept; it is no memory.
      {kDirectory, kUnavailable, v1::Fault::FORM_ERROR, false, "directory"},
      {kDirectory, kResourceExhausted, v1::Fault::FORM_ERROR, false, "directory"},
      // No plugin; no address that can be bound.
      {kOpen, kFailedPrecondition, v1::Fault::FORM_ERROR, true, "open"},
      {kOpen, kUnavailable, v1::Fault::FORM_ERROR, false, "open"},
      // No file matches; one that cannot be read; none with a byte in it; LibTorch.
      {kBuild, kNotFound, v1::Fault::DATA_ERROR, true, "build"},
      {kBuild, kDataLoss, v1::Fault::DATA_ERROR, false, "build"},
      {kBuild, kInvalidArgument, v1::Fault::FORM_ERROR, true, "build"},
      {kBuild, kInternal, v1::Fault::FORM_ERROR, false, "build"},
      {kBuild, kResourceExhausted, v1::Fault::OUT_OF_MEMORY_ERROR, false, "build"},
      // A peer is gone, is stuck, is of another generation.
      {kConnect, kUnavailable, v1::Fault::COMMUNICATION_ERROR, false, "connect"},
      {kConnect, kDeadlineExceeded, v1::Fault::COMMUNICATION_ERROR, false, "connect"},
      {kConnect, kFailedPrecondition, v1::Fault::COMMUNICATION_ERROR, false, "connect"},
      // Addresses that do not fit together.
      {kConnect, kInvalidArgument, v1::Fault::FORM_ERROR, true, "connect"},
      {kRestore, kUnavailable, v1::Fault::COMMUNICATION_ERROR, false, "restore"},
      {kRestore, kResourceExhausted, v1::Fault::OUT_OF_MEMORY_ERROR, false, "restore"},
      // Others may see the file; reading may succeed the next time.
      {kLoad, kNotFound, v1::Fault::CHECKPOINT_ERROR, false, "restore"},
      {kLoad, kUnavailable, v1::Fault::CHECKPOINT_ERROR, false, "restore"},
      // A checksum; another model.
      {kLoad, kDataLoss, v1::Fault::CHECKPOINT_ERROR, true, "restore"},
      {kLoad, kInvalidArgument, v1::Fault::CHECKPOINT_ERROR, true, "restore"},
      // Not the files': a sound checkpoint must not be set aside for it.
      {kLoad, kInternal, v1::Fault::EXCEPTION, false, "restore"},
      {kLoad, kResourceExhausted, v1::Fault::OUT_OF_MEMORY_ERROR, false, "restore"},
  };
  for (const Row& row : kRows) {
    SCOPED_TRACE(::testing::Message() << "row " << &row - std::begin(kRows) << ": " << row.where
                                      << ", " << absl::StatusCodeToString(row.code));
    const v1::Fault fault = FormFault(SomeRing(), row.stage, absl::Status(row.code, "why"));
    EXPECT_EQ(v1::Fault::Kind_Name(fault.kind()), v1::Fault::Kind_Name(row.kind));
    EXPECT_EQ(fault.deterministic(), row.deterministic);
    EXPECT_EQ(fault.where(), row.where);
    EXPECT_THAT(fault.message(), EndsWith(": why"));
    EXPECT_THAT(fault.accused_ranks(), testing::IsEmpty());
  }
}

TEST(RingFaultsTest, NamesTheRankThatTheTransportBlames) {
  const absl::Status lost = Accuse(absl::UnavailableError("rank 0 is gone"), {0});
  const v1::Fault forming = FormFault(SomeRing(), FormStage::kConnect, lost);
  EXPECT_THAT(forming.accused_ranks(), testing::ElementsAre(0));
  EXPECT_EQ(forming.message(), "ring generation 7 rank 3: connect: rank 0 is gone");

  const v1::Fault stepping = FaultOf(
      SomeRing(),
      {.kind = StepFault::Kind::kCommunication, .status = lost, .where = "step.reduce", .step = 5});
  EXPECT_EQ(stepping.kind(), v1::Fault::COMMUNICATION_ERROR);
  EXPECT_THAT(stepping.accused_ranks(), testing::ElementsAre(0));
  EXPECT_EQ(stepping.where(), "step.reduce");
  EXPECT_EQ(stepping.step(), 5);
  EXPECT_FALSE(stepping.deterministic());
  EXPECT_EQ(stepping.message(), "ring generation 7 rank 3: step.reduce of step 5: rank 0 is gone");
}

TEST(RingFaultsTest, AStepsFaultKeepsItsKind) {
  struct Row {
    StepFault::Kind from;
    v1::Fault::Kind to;
  };
  static constexpr Row kRows[] = {
      {StepFault::Kind::kOutOfMemory, v1::Fault::OUT_OF_MEMORY_ERROR},
      {StepFault::Kind::kException, v1::Fault::EXCEPTION},
      {StepFault::Kind::kCommunication, v1::Fault::COMMUNICATION_ERROR},
      {StepFault::Kind::kNotFinite, v1::Fault::NOT_FINITE},
      {StepFault::Kind::kData, v1::Fault::DATA_ERROR},
  };
  for (const Row& row : kRows) {
    const v1::Fault fault =
        FaultOf(SomeRing(),
                {.kind = row.from, .status = absl::InternalError("why"), .deterministic = true});
    EXPECT_EQ(v1::Fault::Kind_Name(fault.kind()), v1::Fault::Kind_Name(row.to));
    EXPECT_TRUE(fault.deterministic());
    EXPECT_THAT(fault.accused_ranks(), testing::IsEmpty());
  }
}

}  // namespace
}  // namespace ringmaster::worker
