#include "worker/comm/cuda_plugin.h"

#include <cstdlib>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/comm/communicator.h"

namespace ringmaster::worker {
namespace {

using testing::HasSubstr;

// The first outcome stays, so one test tells all that a host without the library sees.
TEST(CudaPlugin, SaysWhatIsMissingAndNcclSaysTheSame) {
  setenv("RINGMASTER_CUDA_PLUGIN", "/nowhere/libringmaster_cuda.so", /*replace=*/1);
  const auto plugin = CudaPlugin::Open();
  EXPECT_EQ(plugin.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(plugin.status().message()), HasSubstr("/nowhere/libringmaster_cuda.so"));
  EXPECT_EQ(OpenCommunicator("nccl", {.world_size = 1}).status(), plugin.status());
}

TEST(OpenCommunicator, RefusesUnknownTransportsAndImpossibleRanks) {
  EXPECT_EQ(OpenCommunicator("gloo", {}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(OpenCommunicator("ucx", {.rank = 2, .world_size = 2}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(OpenCommunicator("ucx", {.host = "not-numeric"}).status().code(),
            absl::StatusCode::kInvalidArgument);
  // An address that no interface of this host has.
  EXPECT_EQ(OpenCommunicator("ucx", {.host = "203.0.113.7"}).status().code(),
            absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace ringmaster::worker
