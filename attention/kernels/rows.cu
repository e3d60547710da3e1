#include <algorithm>

#include "attention/kernels/last_error.h"
#include "attention/kernels/rows.h"

namespace ringmaster::attention::kernels {
namespace {

constexpr int kThreads = 256;
// Rows that a thread has pieces of: what it has under way hides how long memory takes.
constexpr int kRowsAhead = 4;

// kWidth neighbours of a row, as they are loaded and stored.
template <typename T, int kWidth>
struct alignas(kWidth * sizeof(T)) Piece {
  T values[kWidth];
};

template <typename P, typename T>
__device__ P* PieceAt(const Strided<T>& tensor, int64_t batch, uint32_t place, uint32_t heads,
                      int column) {
  const uint32_t token = place / heads, head = place % heads;
  return reinterpret_cast<P*>(tensor.data + batch * tensor.batch_stride +
                              token * tensor.token_stride + head * tensor.head_stride + column);
}

// A block is the pieces of a row by rows; its threads take kRowsAhead rows each.
template <int kWidth>
__global__ void __launch_bounds__(kThreads) Pack(const PackProblem problem) {
  using Elements = Piece<uint16_t, kWidth>;
  const int column = threadIdx.x * kWidth;
  const int64_t first = int64_t{blockIdx.x} * blockDim.y * kRowsAhead + threadIdx.y;
  const int64_t batch = blockIdx.y;
  Elements keys[kRowsAhead], values[kRowsAhead];
#pragma unroll
  for (int i = 0; i < kRowsAhead; ++i) {
    const int64_t row = first + i * blockDim.y;
    if (row < problem.rows) {
      const uint32_t place = problem.places[row];
      keys[i] = *PieceAt<const Elements>(problem.k, batch, place, problem.heads, column);
      values[i] = *PieceAt<const Elements>(problem.v, batch, place, problem.heads, column);
    }
  }
#pragma unroll
  for (int i = 0; i < kRowsAhead; ++i) {
    const int64_t row = first + i * blockDim.y;
    if (row < problem.rows) {
      uint16_t* to =
          problem.message + (row * 2 * problem.batch + batch) * problem.head_dim + column;
      *reinterpret_cast<Elements*>(to) = keys[i];
      *reinterpret_cast<Elements*>(to + problem.batch * problem.head_dim) = values[i];
    }
  }
}

template <typename Element, int kWidth>
__device__ Piece<uint16_t, kWidth> Rounded(const Piece<float, kWidth>& numbers) {
  Piece<uint16_t, kWidth> rounded;
  if constexpr (kWidth == 1) {
    rounded.values[0] = static_cast<uint16_t>(Element::Pack(numbers.values[0], 0));
  } else {
#pragma unroll
    for (int j = 0; j < kWidth; j += 2) {
      const uint32_t pair = Element::Pack(numbers.values[j], numbers.values[j + 1]);
      rounded.values[j] = static_cast<uint16_t>(pair);
      rounded.values[j + 1] = static_cast<uint16_t>(pair >> 16);
    }
  }
  return rounded;
}

// A block is the pieces of a row by places; a thread adds to the place's key and value.
template <typename Element, int kWidth>
__global__ void __launch_bounds__(kThreads) Add(const ReturnedRowsProblem problem) {
  using Numbers = Piece<float, kWidth>;
  const int64_t at = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (at >= problem.place_count) {
    return;
  }
  const int column = threadIdx.x * kWidth;
  const int64_t batch = blockIdx.y, of_values = problem.batch * problem.head_dim;
  const uint32_t place = problem.places[at];
  Numbers* const sums[] = {PieceAt<Numbers>(problem.dk, batch, place, problem.heads, column),
                           PieceAt<Numbers>(problem.dv, batch, place, problem.heads, column)};
  Numbers totals[] = {*sums[0], *sums[1]};
  const uint32_t end = problem.begin[at + 1];
  for (uint32_t i = problem.begin[at]; i < end; ++i) {
    const uint32_t row = problem.rows[i];
    const bool is_kept = row < problem.kept_rows;
    const int64_t of_message = is_kept ? row : row - problem.kept_rows;
    const float* key = (is_kept ? problem.kept : problem.returned) +
                       (of_message * 2 * problem.batch + batch) * problem.head_dim + column;
    const Numbers added[] = {*reinterpret_cast<const Numbers*>(key),
                             *reinterpret_cast<const Numbers*>(key + of_values)};
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      totals[0].values[j] += added[0].values[j];
      totals[1].values[j] += added[1].values[j];
    }
  }
  const Strided<uint16_t> rounded[] = {problem.rounded_dk, problem.rounded_dv};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (rounded[i].data == nullptr) {
      *sums[i] = totals[i];
    } else {
      *PieceAt<Piece<uint16_t, kWidth>>(rounded[i], batch, place, problem.heads, column) =
          Rounded<Element>(totals[i]);
    }
  }
}

// Whether each row of it is pieces of `width` numbers.
template <typename T>
bool IsInPieces(const Strided<T>& tensor, int width) {
  return reinterpret_cast<uintptr_t>(tensor.data) % (width * sizeof(T)) == 0 &&
         tensor.batch_stride % width == 0 && tensor.token_stride % width == 0 &&
         tensor.head_stride % width == 0;
}

template <typename T>
Strided<T> Message(T* data) {
  return {data};
}

struct Grid {
  // `count` rows or places, of which a thread takes `each`.
  Grid(int64_t count, int each, int pieces, int64_t batch)
      : threads(pieces, std::max(1, kThreads / pieces)) {
    const int64_t rows = int64_t{threads.y} * each;
    blocks = dim3(static_cast<unsigned>((count + rows - 1) / rows), static_cast<unsigned>(batch));
  }

  dim3 threads, blocks;
};

}  // namespace

std::string PackRows(const PackProblem& problem, cudaStream_t stream) {
  constexpr int kWide = 8;
  if (problem.rows == 0 || problem.batch == 0) {
    return "";
  }
  const bool wide = problem.head_dim % kWide == 0 && IsInPieces(problem.k, kWide) &&
                    IsInPieces(problem.v, kWide) && IsInPieces(Message(problem.message), kWide);
  const Grid grid(problem.rows, kRowsAhead, wide ? problem.head_dim / kWide : problem.head_dim,
                  problem.batch);
  const auto kernel = wide ? Pack<kWide> : Pack<1>;
  kernel<<<grid.blocks, grid.threads, 0, stream>>>(problem);
  return LastError();
}

std::string AddReturnedRows(const ReturnedRowsProblem& problem, cudaStream_t stream) {
  constexpr int kWide = 4;
  if (problem.place_count == 0 || problem.batch == 0) {
    return "";
  }
  const bool wide = problem.head_dim % kWide == 0 && IsInPieces(problem.dk, kWide) &&
                    IsInPieces(problem.dv, kWide) && IsInPieces(problem.rounded_dk, kWide) &&
                    IsInPieces(problem.rounded_dv, kWide) &&
                    IsInPieces(Message(problem.kept), kWide) &&
                    IsInPieces(Message(problem.returned), kWide);
  const Grid grid(problem.place_count, 1, wide ? problem.head_dim / kWide : problem.head_dim,
                  problem.batch);
  WithElement(problem.type, [&](auto element) {
    using Element = decltype(element);
    const auto kernel = wide ? Add<Element, kWide> : Add<Element, 1>;
    kernel<<<grid.blocks, grid.threads, 0, stream>>>(problem);
  });
  return LastError();
}

}  // namespace ringmaster::attention::kernels
