#include <gtest/gtest.h>

#include <cstdlib>

// MKL's own name for what mkl_cbwr_get() does; absent where LibTorch has no MKL.
extern "C" int mkl_serv_cbwr_get(int option) __attribute__((weak));

namespace ringmaster::attention {
namespace {

TEST(SettleMathTest, SumsHaveOneOrderFromTheFirstOn) {
  if (mkl_serv_cbwr_get == nullptr) GTEST_SKIP() << "LibTorch without MKL";
  constexpr int kAllSettings = ~0, kAuto = 2;
  EXPECT_STREQ(std::getenv("MKL_CBWR"), "AUTO");
  EXPECT_EQ(mkl_serv_cbwr_get(kAllSettings), kAuto) << "it was set after MKL had read it";
}

}  // namespace
}  // namespace ringmaster::attention
