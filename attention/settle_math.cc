// Part of every program that computes with LibTorch. MKL picks the code of a vector function at its
// first call; when several threads make that call at once, one of them may be given the code of
// least accuracy: a logarithm of doubles was then wrong from the ninth digit on, in one of fifty
// processes (https://github.com/pytorch/pytorch/issues/188792). So each function is called once
// before main(), where there is one thread.
#include <ATen/ops/acos.h>
#include <ATen/ops/asin.h>
#include <ATen/ops/atan.h>
#include <ATen/ops/cos.h>
#include <ATen/ops/erf.h>
#include <ATen/ops/erfc.h>
#include <ATen/ops/erfinv.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/log.h>
#include <ATen/ops/log10.h>
#include <ATen/ops/log2.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/sin.h>
#include <ATen/ops/sqrt.h>
#include <ATen/ops/tan.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/trunc.h>

namespace ringmaster::attention {
namespace {

// The functions of ATen/cpu/vml.h.
bool SettleVectorMath() {
  for (at::ScalarType type : {at::kFloat, at::kDouble}) {
    const at::Tensor x = at::ones({1}, type);
    for (auto* function :
         {at::acos, at::asin, at::atan, at::cos, at::erf, at::erfc, at::erfinv, at::exp, at::log,
          at::log10, at::log2, at::sin, at::sqrt, at::tan, at::tanh, at::trunc}) {
      function(x);
    }
  }
  return true;
}

[[maybe_unused]] const bool kSettled = SettleVectorMath();

}  // namespace
}  // namespace ringmaster::attention
