#include <algorithm>

#include "attention/kernels/last_error.h"
#include "attention/kernels/rotate.h"

namespace ringmaster::attention::kernels {
namespace {

constexpr int kThreads = 256;

// kWidth neighbours of a row, as they are loaded and stored.
template <int kWidth>
struct alignas(kWidth * sizeof(uint16_t)) Elements {
  uint16_t bits[kWidth];
};
template <int kWidth>
struct alignas(std::min<int>(16, kWidth * sizeof(float))) Factors {
  float values[kWidth];
};

// A block turns all heads of a token, then of one that is all blocks further.
template <typename Element, int kWidth>
__global__ void __launch_bounds__(kThreads) Turn(const RotateProblem problem) {
  const int pieces = problem.half / kWidth;  // of half a row
  const auto* x = static_cast<const Elements<kWidth>*>(problem.x);
  auto* out = static_cast<Elements<kWidth>*>(problem.out);
  for (int64_t token = blockIdx.x; token < problem.batch * problem.tokens; token += gridDim.x) {
    const int64_t table = token % problem.tokens * pieces;
    for (int i = threadIdx.x; i < problem.heads * pieces; i += blockDim.x) {
      const int head = i / pieces, piece = i % pieces;
      const int64_t low = (token * problem.heads + head) * 2 * pieces + piece;
      const auto cos = reinterpret_cast<const Factors<kWidth>*>(problem.cos)[table + piece];
      const auto sin = reinterpret_cast<const Factors<kWidth>*>(problem.sin)[table + piece];
      const Elements<kWidth> x1 = x[low], x2 = x[low + pieces];
      Elements<kWidth> y1, y2;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const float a = Element::Float(Element::Extend(x1.bits[j]));
        const float b = Element::Float(Element::Extend(x2.bits[j]));
        const float turned = problem.direction * sin.values[j];
        const uint32_t packed =
            Element::Pack(fmaf(-turned, b, a * cos.values[j]), fmaf(turned, a, b * cos.values[j]));
        y1.bits[j] = static_cast<uint16_t>(packed);
        y2.bits[j] = static_cast<uint16_t>(packed >> 16);
      }
      out[low] = y1;
      out[low + pieces] = y2;
    }
  }
}

bool IsAligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

}  // namespace

std::string Rotate(const RotateProblem& problem, cudaStream_t stream) {
  constexpr int kWidth = 8;
  constexpr int64_t kMostBlocks = 1 << 16;
  const int64_t tokens = problem.batch * problem.tokens;
  if (tokens == 0 || problem.heads == 0 || problem.half == 0) {
    return "";
  }
  const bool wide = problem.half % kWidth == 0 && IsAligned(problem.x) && IsAligned(problem.out) &&
                    IsAligned(problem.cos) && IsAligned(problem.sin);
  const int pieces = problem.heads * (wide ? problem.half / kWidth : problem.half);
  const int threads = std::min(kThreads, (pieces + 31) / 32 * 32);
  const auto blocks = static_cast<unsigned>(std::min(tokens, kMostBlocks));
  WithElement(problem.type, [&](auto element) {
    using Element = decltype(element);
    if (wide) {
      Turn<Element, kWidth><<<blocks, threads, 0, stream>>>(problem);
    } else {
      Turn<Element, 1><<<blocks, threads, 0, stream>>>(problem);
    }
  });
  return LastError();
}

}  // namespace ringmaster::attention::kernels
