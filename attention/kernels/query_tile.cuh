#pragma once

#include <stdint.h>

#include "attention/kernels/tile_kernel.cuh"

// What the kernels have in common whose tiles are of queries: the queries stay in shared memory,
// the keys that they see and their values come by, each through a pipeline of its own.
namespace ringmaster::attention::kernels {

template <typename Element, int kKeys, int kHeadDim, int kConsumers, int kKeyStages>
struct QueryTileShared {
  SharedRows<Element, kKeys, kHeadDim> keys[kKeyStages];
  SharedRows<Element, kKeys, kHeadDim> values[kStages];
  TileSlots<Tile> tiles;
  BlocksOf<kKeyStages> blocks;  // read before the keys are given back
  PipelineOf<kKeyStages> key_pipeline;
  Pipeline value_pipeline;

  __device__ void Init() {
    tiles.Init(kConsumers);
    key_pipeline.Init(1, kConsumers * kWarpsOfConsumer);
    value_pipeline.Init(1, kConsumers * kWarpsOfConsumer);
  }
};

// The keys that some query of a tile sees.
struct VisibleKeys {
  static constexpr int kDiagonalPerRow = -1;
  int queries;
  __device__ int First(const TileKeys&) const { return 0; }
  __device__ int End(const TileKeys& keys) const {
    return min(keys.count, (queries - 1) * keys.step + keys.diagonal + 1);
  }
};
template <int kKeys>
using KeyWalk = Walk<kKeys, VisibleKeys>;

// Finds and loads the keys and values that tiles see; the first lane of the warp does all. With
// more buffers for keys than for values keys are asked for before the values of the block before: a
// consumer multiplies them so much earlier.
template <int kKeys, int kKeyStages, typename Arguments, typename Shared>
class KeyLoader {
 public:
  __device__ KeyLoader(const Arguments& arguments, Shared& shared, int lane)
      : arguments_(arguments), shared_(shared), lane_(lane) {}

  __device__ KeyWalk<kKeys> WalkOf(const Tile& tile) const {
    return {arguments_.key_list, tile.keys_begin, tile.keys_end, VisibleKeys{tile.count}};
  }

  __device__ void LoadSeen(KeyWalk<kKeys> walk, const Tile&, int batch) {
    constexpr bool kAhead = kKeyStages > kStages;
    TileRows before;
    for (bool first = true; lane_ == 0 && !walk.done(); first = false) {
      const TileKeys left = walk.Left();
      walk.Next();
      LoadKeys(left, walk.done(), batch);
      if (!kAhead) {
        LoadValues(left.rows, batch);
      } else if (!first) {
        LoadValues(before, batch);
      }
      before = left.rows;
      if (kAhead && walk.done()) {
        LoadValues(before, batch);
      }
    }
    __syncwarp();
  }

 protected:
  const Arguments& arguments_;
  Shared& shared_;
  const int lane_;

 private:
  __device__ void LoadKeys(const TileKeys& left, bool last, int batch) {
    shared_.key_pipeline.AwaitEmpty(keys_);
    const int at = keys_.index();
    shared_.blocks.left[at] = left;
    shared_.blocks.last[at] = last;
    Load(&shared_.key_pipeline.full[at], shared_.keys[at], arguments_.keys, left.rows, batch);
    keys_.Next();
  }

  __device__ void LoadValues(const TileRows& rows, int batch) {
    shared_.value_pipeline.AwaitEmpty(values_);
    const int at = values_.index();
    Load(&shared_.value_pipeline.full[at], shared_.values[at], arguments_.values, rows, batch);
    values_.Next();
  }

  template <typename Buffer>
  __device__ void Load(uint64_t* full, Buffer& buffer, const ViewMaps& views, const TileRows& rows,
                       int batch) {
    sm90::ArriveExpecting(full, sizeof(buffer));
    LoadRows(buffer, views, rows, 0, batch, full);
  }

  StageOf<kKeyStages> keys_;
  Stage values_;
};

}  // namespace ringmaster::attention::kernels
