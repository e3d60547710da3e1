#pragma once

#include <stdint.h>

#include "attention/kernels/tile_kernel.cuh"

// What the kernels have in common whose tiles are of queries: the queries stay in shared memory,
// the keys that they see and their values come by, each through a pipeline of its own.
namespace ringmaster::attention::kernels {

template <int kKeys, int kHeadDim, int kConsumers>
struct QueryTileShared {
  SharedRows<kKeys, kHeadDim> keys[kStages];
  SharedRows<kKeys, kHeadDim> values[kStages];
  TileSlots<Tile> tiles;
  Pipeline key_pipeline;
  Pipeline value_pipeline;

  __device__ void Init() {
    tiles.Init(kConsumers);
    key_pipeline.Init(1, kConsumers * kWarpsOfConsumer);
    value_pipeline.Init(1, kConsumers * kWarpsOfConsumer);
  }
};

// The keys that some query of a tile sees.
struct VisibleKeys {
  int queries;
  __device__ int First(const TileKeys&) const { return 0; }
  __device__ int End(const TileKeys& keys) const {
    return min(keys.count, queries + keys.diagonal);
  }
};
template <int kKeys>
using KeyWalk = Walk<kKeys, VisibleKeys>;

template <int kKeys>
__device__ KeyWalk<kKeys> WalkKeys(const TileKeys* list, const Tile& tile) {
  return {list, tile.keys_begin, tile.keys_end, VisibleKeys{tile.count}};
}

// Loads the keys and values that tiles see, by the lane that it is given to.
template <typename Arguments, typename Shared>
class KeyLoader {
 public:
  __device__ KeyLoader(const Arguments& arguments, Shared& shared)
      : arguments_(arguments), shared_(shared) {}

  template <int kKeys>
  __device__ void Load(const Tile& tile, int batch) {
    for (auto walk = WalkKeys<kKeys>(arguments_.key_list, tile); !walk.done();
         walk.Next(), stage_.Next()) {
      const auto load = [&](Pipeline& pipeline, auto& buffer, const ViewMaps* views) {
        pipeline.AwaitEmpty(stage_);
        uint64_t* full = &pipeline.full[stage_.index()];
        sm90::ArriveExpecting(full, sizeof(buffer));
        LoadRows(buffer, views, walk.span().rows, walk.first(), batch, full);
      };
      load(shared_.key_pipeline, shared_.keys[stage_.index()], arguments_.keys);
      load(shared_.value_pipeline, shared_.values[stage_.index()], arguments_.values);
    }
  }

 private:
  const Arguments& arguments_;
  Shared& shared_;
  Stage stage_;
};

}  // namespace ringmaster::attention::kernels
