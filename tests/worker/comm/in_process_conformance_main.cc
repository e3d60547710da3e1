// The suite over the in-process transport, without UCX: its memory hooks and ThreadSanitizer do not
// go together.
//   in_process_conformance [--gtest_filter=...]

#include "tests/worker/comm/conformance_scenarios.h"

int main(int argc, char** argv) {
  const auto scenarios = ringmaster::worker::ConformanceScenarios();
  return ringmaster::worker::RunScenarios(argc, argv, scenarios, nullptr);
}
