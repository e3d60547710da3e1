#pragma once

#include <stdint.h>

#include "attention/kernels/forward_sums.cuh"
#include "attention/kernels/rest.h"

namespace ringmaster::attention::kernels {

// The sums, and how they are stored.
template <typename Element, int kHeadDim, int kConsumers>
class ForwardRows : public ForwardSums<kHeadDim, kConsumers> {
  using Queries = SharedRows<Element, kRowsOfConsumer, kHeadDim>;
  using Sums = ForwardSums<kHeadDim, kConsumers>;

 public:
  using Sums::Sums;

  // By way of the memory of the queries, which nobody needs any more.
  __device__ void Store(const Tile& tile, int batch, Queries& queries) {
    const Results& results = arguments_.results;
    float lse[2], factor[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float sum = sum_[h];
      sum += __shfl_xor_sync(0xFFFFFFFF, sum, 1);
      sum += __shfl_xor_sync(0xFFFFFFFF, sum, 2);
      // No key was seen; a sum that is NaN goes on.
      const bool nothing = sum == 0;
      factor[h] = nothing ? 0 : __fdividef(1, sum);
      lse[h] = nothing ? kMinusInfinity : fmaf(most_[h], arguments_.scale_log2, Log2(sum)) * kLn2;
    }
    if (results.merge_begin != nullptr) {
      Sums::Merge(batch, lse, factor);
    }
    unsigned whole_rows = 0;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = group_.row + 8 * h;
      const bool real = row < tile.count, whole = part_[h] == kWhole;
      const int64_t part = batch * results.parts + part_[h];
      const int64_t place =
          batch * arguments_.tokens * arguments_.heads + PlaceOf(arguments_, tile.rows, row);
      if (real && group_.lane % 4 == 0) {
        (whole ? results.lse[place] : results.part_lses[part]) = lse[h];
      }
      whole_rows |= (__ballot_sync(0xFFFFFFFF, real && whole) & 0x11111111) << h;
      if (real && !whole) {
        StorePart(results.part_outs + part * kHeadDim, h, factor[h]);
      }
    }
    if (whole_rows != 0) {
      StoreWhole(tile, batch, queries, factor, whole_rows);
    }
  }

 protected:
  using Sums::arguments_;
  using Sums::group_;
  using Sums::most_;
  using Sums::out_;
  using Sums::part_;
  using Sums::sum_;

 private:
  __device__ void StorePart(float* out, int h, float factor) {
#pragma unroll
    for (int column = 0; column < kHeadDim; column += 8) {
      const int i = column / 2 + 2 * h;
      *reinterpret_cast<float2*>(out + column + 2 * (group_.lane % 4)) =
          make_float2(out_[i] * factor, out_[i + 1] * factor);
    }
  }

  // Stores whole rows and what their rounding leaves over, each warp the 16 rows that it holds. Bit
  // 4 * (i % 8) + i / 8 of `whole_rows`: whether row i of them is whole.
  __device__ void StoreWhole(const Tile& tile, int batch, Queries& queries,
                             const float (&factor)[2], unsigned whole_rows) {
    const Results& results = arguments_.results;
    uint32_t packed[kHeadDim / 16][4], rest[kHeadDim / 32][4];
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) {
      out_[i] *= factor[i / 2 & 1];
    }
    Pack<Element>(out_, packed);
    if (results.rest != nullptr) {
      PackRest(packed, rest);
    }
    StoreRows(packed, 0, group_.lane, queries);
    __syncwarp();
    StorePieces<8>(tile, batch, queries, whole_rows, [&](int64_t at, const uint4& piece) {
      *reinterpret_cast<uint4*>(static_cast<uint16_t*>(results.out) + at) = piece;
    });
    if (results.rest != nullptr) {
      __syncwarp();
      StoreRows(rest, 0, group_.lane, queries);
      __syncwarp();
      StorePieces<16>(tile, batch, queries, whole_rows, [&](int64_t at, const uint4& piece) {
        *reinterpret_cast<uint4*>(results.rest + at) = make_uint4(
            __byte_perm(piece.x, piece.y, 0x5410), __byte_perm(piece.z, piece.w, 0x5410),
            __byte_perm(piece.x, piece.y, 0x7632), __byte_perm(piece.z, piece.w, 0x7632));
      });
    }
  }

  // What rounding leaves over, a byte each: where `packed` has the columns of two blocks of eight,
  // a half of rest has them.
  __device__ void PackRest(const uint32_t (&packed)[kHeadDim / 16][4],
                           uint32_t (&rest)[kHeadDim / 32][4]) {
#pragma unroll
    for (int block = 0; block < kHeadDim / 16; ++block) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int i = 8 * block + 2 * h;
        rest[block / 2][2 * (block % 2) + h] =
            RestsOf<Element>({out_[i], out_[i + 1], out_[i + 4], out_[i + 5]}, packed[block][h],
                             packed[block][2 + h]);
      }
    }
  }

  // Calls f(where, piece) for the 16 bytes of each kColumnsOfPiece columns of whole rows.
  template <int kColumnsOfPiece, typename F>
  __device__ void StorePieces(const Tile& tile, int batch, Queries& queries, unsigned whole_rows,
                              const F& f) {
    constexpr int kPieces = kHeadDim / kColumnsOfPiece;
    constexpr int kRowsAtOnce = 32 / kPieces;
    const int row_of_warp = threadIdx.x % sm90::kWarpGroup / 32 * 16;
    const int piece = group_.lane % kPieces;
    const int first = group_.lane / kPieces;
    const int64_t place =
        batch * arguments_.tokens * arguments_.heads +
        PlaceOf(arguments_, tile.rows, group_.index * kRowsOfConsumer + row_of_warp + first);
    const int64_t step =
        kRowsAtOnce * kHeadDim * arguments_.heads * arguments_.query_steps[tile.rows.view];
    int64_t at = place * kHeadDim + kColumnsOfPiece * piece;
#pragma unroll 2
    for (int i = first; i < 16; i += kRowsAtOnce, at += step) {
      if ((whole_rows >> (4 * (i % 8) + i / 8) & 1) != 0) {
        f(at, *reinterpret_cast<const uint4*>(PieceOf(queries, row_of_warp + i, 8 * piece)));
      }
    }
  }
};

}  // namespace ringmaster::attention::kernels
