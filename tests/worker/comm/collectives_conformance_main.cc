// Collectives with one process a rank; apart, because loading LibTorch takes longer than any
// scenario.
//   collectives_conformance --transport=ucx|nccl [--gtest_filter=...]

#include "tests/worker/comm/collective_scenarios.h"
#include "tests/worker/comm/device_memory.h"
#include "worker/comm/communicator.h"

int main(int argc, char** argv) {
  const auto scenarios = ringmaster::worker::CollectiveScenarios();
  return ringmaster::worker::RunScenarios(argc, argv, scenarios,
                                          ringmaster::worker::OpenCommunicator,
                                          ringmaster::worker::CudaMemory());
}
