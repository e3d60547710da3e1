#include <cuda_runtime_api.h>

#include "attention/kernels/tile_attention.h"

namespace ringmaster::attention::kernels {
namespace {

constexpr int64_t kAlignment = 16;
constexpr int64_t kElementBytes = 2;

std::string WhyNotViews(const std::vector<View>& views, const std::string& what) {
  if (views.empty() || views.size() > kMaxViews) {
    return what + ": " + std::to_string(views.size()) + " views, not 1 to " +
           std::to_string(kMaxViews);
  }
  for (const View& view : views) {
    const Operand& operand = view.operand;
    const bool aligned = reinterpret_cast<uintptr_t>(operand.data) % kAlignment == 0 &&
                         operand.batch_stride * kElementBytes % kAlignment == 0 &&
                         operand.token_stride * kElementBytes % kAlignment == 0 &&
                         operand.head_stride * kElementBytes % kAlignment == 0;
    if (!aligned) {
      return what + ": pointer and strides must be multiples of 16 bytes";
    }
    if ((operand.tokens > 1 && operand.token_stride < 1) ||
        (operand.heads > 1 && operand.head_stride < 1)) {
      return what + ": strides must be above 0";
    }
    if (view.step < 1 || operand.tokens < 0 || operand.batch < 1 || operand.heads < 1) {
      return what + ": an empty view";
    }
  }
  return "";
}

std::string WhyNot(int head_dim, float scale,
                   const std::vector<std::pair<const std::vector<View>*, const char*>>& operands) {
  if (head_dim != 64 && head_dim != 128) {
    return "a head dimension of " + std::to_string(head_dim) + ", not 64 or 128";
  }
  if (!(scale >= kLeastScale)) {
    return "a scale of " + std::to_string(scale) + ", not 2^-100 or more";
  }
  for (const auto& [views, what] : operands) {
    if (std::string why = WhyNotViews(*views, what); !why.empty()) {
      return why;
    }
  }
  return WhyNotDevice();
}

}  // namespace

std::string WhyNotDevice() {
  int device = 0, major = 0, minor = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  }
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  }
  if (error != cudaSuccess) {
    return cudaGetErrorString(error);
  }
  return major == 9 ? ""
                    : "the device has compute capability " + std::to_string(major) + "." +
                          std::to_string(minor) + ", not 9.0";
}

std::string WhyNot(const ForwardProblem& problem) {
  return WhyNot(problem.head_dim, problem.scale,
                {{&problem.query_views, "queries"},
                 {&problem.key_views, "keys"},
                 {&problem.value_views, "values"}});
}

std::string WhyNot(const BackwardProblem& problem) {
  return WhyNot(problem.head_dim, problem.scale,
                {{&problem.query_views, "queries"},
                 {&problem.dout_views, "dout"},
                 {&problem.key_views, "keys"},
                 {&problem.value_views, "values"}});
}

}  // namespace ringmaster::attention::kernels
