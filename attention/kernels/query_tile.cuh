#pragma once

#include <stdint.h>

#include "attention/kernels/tile_kernel.cuh"

// What the kernels have in common whose tiles are of queries: the queries stay in shared memory,
// the keys that they see and their values come by, each through a pipeline of its own.
namespace ringmaster::attention::kernels {

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
template <int kKeys, typename Arguments>
__device__ KeyWalk<kKeys> KeyWalkOf(const Arguments& arguments, const Tile& tile) {
  return {arguments.key_list, tile.keys_begin, tile.keys_end, VisibleKeys{tile.count}};
}

template <typename Element, int kKeys, int kHeadDim, int kConsumers, int kKeyStages>
struct QueryTileShared {
  SharedRows<Element, kKeys, kHeadDim> keys[kKeyStages];
  SharedRows<Element, kKeys, kHeadDim> values[kStages];
  TileSlots<Tile, KeyWalk<kKeys>> tiles;
  BlocksOf<kKeyStages> blocks;  // read before the keys are given back
  PipelineOf<kKeyStages> key_pipeline;
  Pipeline value_pipeline;

  __device__ void Init(int warps) {
    tiles.Init(warps);
    key_pipeline.Init(1, kConsumers * kWarpsOfConsumer);
    value_pipeline.Init(1, kConsumers * kWarpsOfConsumer);
  }
};

// Loads the keys that tiles see. Keys and values have a warp each: keys are asked for as soon as
// there is a buffer, whatever values wait for.
template <int kKeys, int kKeyStages, typename Arguments, typename Shared>
class KeyLoader {
 public:
  __device__ KeyLoader(const Arguments& arguments, Shared& shared)
      : arguments_(arguments), shared_(shared) {}

  __device__ void LoadKeys(KeyWalk<kKeys> walk, int batch) {
    for (; !walk.done(); keys_.Next()) {
      const int at = keys_.index();
      const TileKeys left = walk.Left();
      walk.Next();
      shared_.key_pipeline.AwaitEmpty(keys_);
      shared_.blocks.left[at] = left;
      shared_.blocks.last[at] = walk.done();
      uint64_t* full = &shared_.key_pipeline.full[at];
      sm90::ArriveExpecting(full, sizeof(shared_.keys[at]));
      LoadRows(shared_.keys[at], arguments_.keys, left.rows, 0, batch, full);
    }
  }

 protected:
  const Arguments& arguments_;
  Shared& shared_;

 private:
  StageOf<kKeyStages> keys_;
};

// Loads their values.
template <int kKeys, typename Arguments, typename Shared>
class ValueLoader {
 public:
  __device__ ValueLoader(const Arguments& arguments, Shared& shared, int)
      : arguments_(arguments), shared_(shared) {}

  __device__ void Run(const Tile&, int batch, const Stage& stage) {
    if (sm90::IsElected()) {
      for (KeyWalk<kKeys> walk = shared_.tiles.walk[stage.index()]; !walk.done(); walk.Next()) {
        const int at = values_.index();
        shared_.value_pipeline.AwaitEmpty(values_);
        uint64_t* full = &shared_.value_pipeline.full[at];
        sm90::ArriveExpecting(full, sizeof(shared_.values[at]));
        LoadRows(shared_.values[at], arguments_.values, walk.Left().rows, 0, batch, full);
        values_.Next();
      }
    }
  }

 private:
  const Arguments& arguments_;
  Shared& shared_;
  Stage values_;
};

}  // namespace ringmaster::attention::kernels
