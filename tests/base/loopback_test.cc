#include "base/loopback.h"

#include <gtest/gtest.h>

namespace ringmaster {
namespace {

TEST(LoopbackTest, OnlyWholeAddressesOfThisMachine) {
  for (const char* address : {"localhost:7077", "127.0.0.1:0", "127.9.8.7:1", "[::1]:7077",
                              "localhost", "127.0.0.1", "[::1]"}) {
    EXPECT_TRUE(IsLoopback(address)) << address;
  }
  for (const char* address :
       {"127.evil.example:7077", "127.0.0.1,0.0.0.0:7077", "127.1:7077", "0.0.0.0:7077",
        "128.0.0.1:7077", "[::]:7077", "::1:7077", ":7077", "localhost.example:7077",
        "[::1].example:7077", "[::1].example", "[::1]:1]", "[::]", "::1", ""}) {
    EXPECT_FALSE(IsLoopback(address)) << address;
  }
}

}  // namespace
}  // namespace ringmaster
