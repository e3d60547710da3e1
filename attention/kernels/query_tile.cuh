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
  uint64_t queries_full;
  Pipeline key_pipeline;
  Pipeline value_pipeline;

  __device__ void Init() {
    sm90::InitBarrier(&queries_full, 1);
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

// Loads the keys and values of a tile whose queries are on their way; one thread does.
template <typename Arguments, int kKeys, int kHeadDim, int kConsumers>
__device__ void LoadKeys(const Arguments& arguments,
                         QueryTileShared<kKeys, kHeadDim, kConsumers>& shared, const Tile& tile,
                         int batch) {
  Stage stage;
  for (auto walk = WalkKeys<kKeys>(arguments.key_list, tile); !walk.done();
       walk.Next(), stage.Next()) {
    const auto load = [&](Pipeline& pipeline, auto& buffer, const ViewMaps* views) {
      pipeline.AwaitEmpty(stage);
      uint64_t* full = &pipeline.full[stage.index];
      sm90::ArriveExpecting(full, sizeof(buffer));
      LoadRows(buffer, views, walk.span().rows, walk.first(), batch, full);
    };
    load(shared.key_pipeline, shared.keys[stage.index], arguments.keys);
    load(shared.value_pipeline, shared.values[stage.index], arguments.values);
  }
  // A block may not end before its loads, and consumers without keys wait for nothing.
  sm90::WaitFor(&shared.queries_full, 0);
}

}  // namespace ringmaster::attention::kernels
