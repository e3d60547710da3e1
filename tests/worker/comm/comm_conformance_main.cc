// The suite, and what only processes can show, with one process a rank, over a real transport.
//   comm_conformance --transport=ucx|nccl [--gtest_filter=...]

#include <utility>

#include "tests/worker/comm/conformance_scenarios.h"
#include "tests/worker/comm/device_memory.h"
#include "tests/worker/comm/process_scenarios.h"
#include "worker/comm/communicator.h"

int main(int argc, char** argv) {
  auto scenarios = ringmaster::worker::ConformanceScenarios();
  auto processes = ringmaster::worker::ProcessScenarios();
  for (ringmaster::worker::Scenario& scenario : processes) {
    scenarios.push_back(std::move(scenario));
  }
  return ringmaster::worker::RunScenarios(argc, argv, scenarios,
                                          ringmaster::worker::OpenCommunicator,
                                          ringmaster::worker::CudaMemory());
}
