// Attention and training with one process a rank over a real transport.
//   ring_conformance --transport=ucx|nccl [--gtest_filter=...]

#include <cstdio>
#include <string_view>
#include <utility>

#include "tests/worker/comm/device_memory.h"
#include "tests/worker/train/ring_scenarios.h"
#include "worker/comm/communicator.h"
#include "worker/comm/cuda_plugin.h"

namespace {

// A plugin that is missing is a failure, which the ranks report.
bool NoCudaDevice() {
  const auto plugin = ringmaster::worker::CudaPlugin::Open();
  if (!plugin.ok()) return false;
  const auto devices = (*plugin)->CountDevices();
  return devices.ok() && *devices == 0;
}

}  // namespace

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (std::string_view(argv[i]) == "--transport=nccl" && NoCudaDevice()) {
      std::printf("skipped: no CUDA device\n");
      return 0;
    }
  }
  auto scenarios = ringmaster::worker::RingAttentionScenarios();
  for (auto& scenario : ringmaster::worker::RingTrainingScenarios()) {
    scenarios.push_back(std::move(scenario));
  }
  return ringmaster::worker::RunScenarios(argc, argv, scenarios,
                                          ringmaster::worker::OpenCommunicator,
                                          ringmaster::worker::CudaMemory());
}
