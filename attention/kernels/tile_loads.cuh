#pragma once

#include <stdint.h>

#include "attention/kernels/sm90.cuh"
#include "attention/kernels/tensor_maps.h"
#include "attention/kernels/tile_list.h"

// How rows come into shared memory: a block's producer fills a few buffers in turns, its consumers
// read them.
namespace ringmaster::attention::kernels {

// Rows of elements, 64 columns after the other, swizzled as boxes are written and products read
// them.
template <typename Element, int kRows, int kHeadDim>
struct alignas(1024) SharedRows {
  uint16_t columns[kHeadDim / kColumns][kRows * kColumns];
};

__device__ inline const CUtensorMap& MapOf(const ViewMaps& views, int view, int residue) {
  return residue < views.longer_residues[view] ? views.longer[view] : views.shorter[view];
}

// Starts to load rows first, first + 1, ... of `rows`, as many as the views' boxes have.
template <typename Element, int kRows, int kHeadDim>
__device__ void LoadRows(SharedRows<Element, kRows, kHeadDim>& shared, const ViewMaps& views,
                         const TileRows& rows, int first, int batch, uint64_t* barrier) {
  const CUtensorMap& map = MapOf(views, rows.view, rows.residue);
#pragma unroll
  for (int i = 0; i < kHeadDim / kColumns; ++i) {
    sm90::LoadBox(shared.columns[i], map, barrier, i * kColumns, rows.head, rows.residue,
                  rows.first + first, batch);
  }
}

// Which of a few buffers is next, and the parity of its barriers.
template <int kBuffers>
class StageOf {
 public:
  __device__ int index() const { return count_ < kBuffers ? count_ : count_ - kBuffers; }
  __device__ int parity() const { return count_ < kBuffers ? 0 : 1; }
  __device__ void Next() { count_ = count_ == 2 * kBuffers - 1 ? 0 : count_ + 1; }

 private:
  int count_ = 0;  // of twice as many buffers
};

// The barriers of the buffers.
template <int kBuffers>
struct PipelineOf {
  uint64_t full[kBuffers];
  uint64_t empty[kBuffers];

  // How many arrivals fill a buffer, and how many empty it.
  __device__ void Init(int producers, int consumers) {
    for (int i = 0; i < kBuffers; ++i) {
      sm90::InitBarrier(&full[i], producers);
      sm90::InitBarrier(&empty[i], consumers);
    }
  }
  __device__ void AwaitFull(const StageOf<kBuffers>& stage) {
    sm90::WaitFor(&full[stage.index()], stage.parity());
  }
  __device__ void AwaitEmpty(const StageOf<kBuffers>& stage) {
    sm90::WaitFor(&empty[stage.index()], stage.parity() ^ 1);
  }
};

constexpr int kStages = 2;
using Stage = StageOf<kStages>;
using Pipeline = PipelineOf<kStages>;

// The blocks of rows that come by, a buffer each: what is left of their span from the block on, and
// whether it is the tile's last block. Written by the producer before the buffer is full.
template <int kBuffers>
struct BlocksOf {
  TileKeys left[kBuffers];
  bool last[kBuffers];
};

// The blocks of kRows rows of a tile's spans, one after the other. Of a span the rows from
// range.First(span) to before range.End(span) meet the tile.
template <int kRows, typename Range>
class Walk {
 public:
  __device__ Walk(const TileKeys* list, int begin, int end, Range range)
      : list_(list), at_(begin), end_(end), range_(range) {
    Load();
  }

  __device__ bool done() const { return at_ == end_; }
  // What is left of the span from this block on.
  __device__ const TileKeys& Left() const { return left_; }

  __device__ void Next() {
    Skip(kRows);
    if (rows_ <= 0) {
      ++at_;
      Load();
    }
  }

 private:
  __device__ void Load() {
    for (; at_ != end_; ++at_) {
      left_ = list_[at_];
      rows_ = range_.End(left_);
      Skip(range_.First(left_));
      if (rows_ > 0) {
        return;
      }
    }
  }

  __device__ void Skip(int rows) {
    left_.rows.first += rows;
    left_.count -= rows;
    left_.diagonal += Range::kDiagonalPerRow * rows;
    rows_ -= rows;
  }

  const TileKeys* list_;
  int at_;
  int end_;
  Range range_;
  TileKeys left_;
  int rows_ = 0;  // of them, those that meet the tile
};

}  // namespace ringmaster::attention::kernels
