// The suite with one process a rank, over a real transport.
//   comm_conformance --transport=ucx|nccl [--gtest_filter=...]

#include "tests/worker/comm/conformance_scenarios.h"
#include "tests/worker/comm/device_memory.h"
#include "worker/comm/communicator.h"

int main(int argc, char** argv) {
  const auto scenarios = ringmaster::worker::ConformanceScenarios();
  return ringmaster::worker::RunScenarios(argc, argv, scenarios,
                                          ringmaster::worker::OpenCommunicator,
                                          ringmaster::worker::CudaMemory());
}
