#include <algorithm>

#include "attention/kernels/dropout.h"
#include "attention/kernels/last_error.h"
#include "attention/kernels/philox.h"

namespace ringmaster::attention::kernels {
namespace {

constexpr int kThreads = 256;

// A block makes the factors of a query, then of one that is all blocks further.
template <typename T>
__global__ void __launch_bounds__(kThreads) Fill(const DropoutProblem problem, T* factors) {
  const auto kept = static_cast<T>(problem.kept);
  const int64_t rows = problem.groups * problem.queries;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const int64_t group = row / problem.queries;
    const auto philox_key = static_cast<uint64_t>(problem.philox_keys[group]);
    const auto query = static_cast<uint64_t>(problem.query_tokens[row]);
    for (int64_t i = threadIdx.x; i < problem.keys; i += kThreads) {
      const uint32_t word = WordOf(
          philox_key, query, static_cast<uint64_t>(problem.key_tokens[group * problem.keys + i]));
      factors[row * problem.keys + i] = word < problem.dropped_below ? 0 : kept;
    }
  }
}

template <typename T>
void Launch(const DropoutProblem& problem, T* factors, cudaStream_t stream) {
  constexpr int64_t kMostBlocks = 1 << 16;
  const int64_t rows = problem.groups * problem.queries;
  Fill<<<static_cast<unsigned>(std::min(rows, kMostBlocks)), kThreads, 0, stream>>>(problem,
                                                                                    factors);
}

}  // namespace

std::string DropoutFactors(const DropoutProblem& problem, cudaStream_t stream) {
  if (problem.groups == 0 || problem.queries == 0 || problem.keys == 0) {
    return "";
  }
  if (problem.double_factors != nullptr) {
    Launch(problem, problem.double_factors, stream);
  } else {
    Launch(problem, problem.factors, stream);
  }
  return LastError();
}

}  // namespace ringmaster::attention::kernels
