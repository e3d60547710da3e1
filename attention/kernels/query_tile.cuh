#pragma once

#include <stdint.h>

#include "attention/kernels/tile_kernel.cuh"

// What the kernels have in common whose tiles are of queries: the queries stay in shared memory,
// the keys that they see and their values come by, each through a pipeline of its own.
namespace ringmaster::attention::kernels {

template <typename Element, int kKeys, int kHeadDim, int kConsumers>
struct QueryTileShared {
  SharedRows<Element, kKeys, kHeadDim> keys[kStages];
  SharedRows<Element, kKeys, kHeadDim> values[kStages];
  TileSlots<Tile> tiles;
  Blocks blocks;  // read before the keys are given back
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
  static constexpr int kDiagonalPerRow = -1;
  int queries;
  __device__ int First(const TileKeys&) const { return 0; }
  __device__ int End(const TileKeys& keys) const {
    return min(keys.count, (queries - 1) * keys.step + keys.diagonal + 1);
  }
};
template <int kKeys>
using KeyWalk = Walk<kKeys, VisibleKeys>;

// Finds and loads the keys and values that tiles see; the first lane of the warp does all.
template <int kKeys, typename Arguments, typename Shared>
class KeyLoader {
 public:
  __device__ KeyLoader(const Arguments& arguments, Shared& shared, int lane)
      : arguments_(arguments), shared_(shared), lane_(lane) {}

  __device__ KeyWalk<kKeys> WalkOf(const Tile& tile) const {
    return {arguments_.key_list, tile.keys_begin, tile.keys_end, VisibleKeys{tile.count}};
  }

  __device__ void LoadSeen(KeyWalk<kKeys> walk, const Tile&, int batch) {
    while (lane_ == 0 && !walk.done()) {
      const TileKeys left = walk.Left();
      walk.Next();
      const auto load = [&](Pipeline& pipeline, auto& buffer, const ViewMaps& views) {
        uint64_t* full = &pipeline.full[stage_.index()];
        sm90::ArriveExpecting(full, sizeof(buffer));
        LoadRows(buffer, views, left.rows, 0, batch, full);
      };
      shared_.key_pipeline.AwaitEmpty(stage_);
      shared_.blocks.left[stage_.index()] = left;
      shared_.blocks.last[stage_.index()] = walk.done();
      load(shared_.key_pipeline, shared_.keys[stage_.index()], arguments_.keys);
      shared_.value_pipeline.AwaitEmpty(stage_);
      load(shared_.value_pipeline, shared_.values[stage_.index()], arguments_.values);
      stage_.Next();
    }
    __syncwarp();
  }

 protected:
  const Arguments& arguments_;
  Shared& shared_;
  const int lane_;

 private:
  Stage stage_;
};

}  // namespace ringmaster::attention::kernels
