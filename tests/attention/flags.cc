#include "tests/attention/flags.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tests/attention/device.h"

namespace ringmaster::attention {
namespace {

bool Parse(int argc, char** argv, CaseFlags* flags) {
  for (int i = 1; i < argc; ++i) {
    if (std::strncmp(argv[i], "--seed=", 7) == 0) {
      flags->seed = std::strtoull(argv[i] + 7, nullptr, 10);
    } else if (std::strncmp(argv[i], "--cases=", 8) == 0) {
      flags->cases = std::atoi(argv[i] + 8);
    } else if (std::strncmp(argv[i], "--device=", 9) == 0) {
      const auto device = OpenDevice(argv[i] + 9);
      if (!device.ok()) {
        std::fprintf(stderr, "%s\n", device.status().ToString().c_str());
        return false;
      }
      flags->device = *device;
    } else {
      std::fprintf(stderr, "unknown argument %s; known: --seed=S --cases=C --device=cpu|cuda\n",
                   argv[i]);
      return false;
    }
  }
  return true;
}

}  // namespace

int RunTestsOfCases(int argc, char** argv, CaseFlags* flags) {
  testing::InitGoogleTest(&argc, argv);
  return Parse(argc, argv, flags) ? RUN_ALL_TESTS() : 2;
}

}  // namespace ringmaster::attention
