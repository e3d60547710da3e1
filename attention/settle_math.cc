// Part of every program that computes with LibTorch: what MKL decides at its first calls is decided
// before main(), where there is one thread.
//
// It picks the code of a vector function when it is called first; of threads that make that call at
// once, one may be given the code of least accuracy: a logarithm of doubles was then wrong from the
// ninth digit on, in one of forty processes (https://github.com/pytorch/pytorch/issues/188792).
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

#include <cstdlib>

namespace ringmaster::attention {
namespace {

bool SettleVectorMath() {
  // Sums in one order, whatever the alignment of a buffer: part of what makes results repeatable.
  // AUTO fixes the code path to this kind of CPU, as LibTorch's own kernels do; COMPATIBLE would
  // make the step 2.4 times as long and still not equal another kind's. MKL reads it once.
  setenv("MKL_CBWR", "AUTO", /*overwrite=*/0);
  // The functions of ATen/cpu/vml.h.
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
