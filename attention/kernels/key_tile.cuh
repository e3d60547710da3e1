#pragma once

#include <stdint.h>

#include <tuple>

#include "attention/kernels/backward_sm90.cuh"
#include "attention/kernels/shared_sums.cuh"

// The kernel over tiles of keys: what it works on, and what it keeps in shared memory.
namespace ringmaster::attention::kernels {

struct KeyArguments : BackwardArguments, TileArguments<KeyTile> {
  ViewMaps starts;
  int64_t key_steps[kMaxViews];
  Gradient dk[kMaxViews];
  Gradient dv[kMaxViews];
  SumMaps dq;
  KeyGradients key_gradients;
  const TileKeys* query_list;
  // To finish:
  const uint8_t* key_sums;
  void* finished_dk;
  void* finished_dv;
  int64_t tokens;
  int64_t kv_heads;

  __device__ int SumsBeside(int64_t token, int head) const {
    return key_sums == nullptr ? 0 : key_sums[token * kv_heads + head];
  }
};

// Queries of a step.
constexpr int kQueries = 64;

// What the sums of scores and slopes begin with, for each row of a pair of heads.
template <int kRows>
struct alignas(128) SharedStarts {
  float2 of_row[kRows][2];
};

// The queries that see some key of a tile, from the start of a step on.
struct SeeingQueries {
  static constexpr int kDiagonalPerRow = 1;
  __device__ int First(const TileKeys& queries) const {
    return max(0, -queries.diagonal) / kQueries * kQueries;
  }
  __device__ int End(const TileKeys& queries) const { return queries.count; }
};
using QueryWalk = Walk<kQueries, SeeingQueries>;

template <typename Element, int kHeadDim, bool kWithQueries>
struct KeyKernel {
  static constexpr int kConsumers = kTileKeys / kRowsOfConsumer;
  static constexpr int kHelpers = kWithQueries ? 2 : 1;
  static constexpr int kConsumerRegisters = kHeadDim == 64 ? 232 : 240;
  static constexpr int kShare = kHeadDim / kConsumers;  // columns of dQ of a consumer

  // Of the next tile the keys are loaded while those before are in use; its values when the last
  // product that reads those before is through, well before the tile is.
  struct Shared {
    SharedRows<Element, kTileKeys, kHeadDim> keys[kStages];
    SharedRows<Element, kTileKeys, kHeadDim> values;
    SharedRows<Element, kQueries, kHeadDim> queries[kStages];
    SharedRows<Element, kQueries, kHeadDim> douts[kStages];
    SharedRows<Element, kTileKeys, kQueries> slopes[kWithQueries ? kStages : 1];
    SharedSums<kShare> dq[kWithQueries ? kConsumers : 1];
    SharedStarts<kQueries> starts[kStages];
    TileSlots<KeyTile, QueryWalk> tiles;
    BlocksOf<kStages> blocks;
    Pipeline pipeline;
    PipelineOf<1> values_pipeline;
    PipelineOf<1> dq_pipelines[kConsumers];

    __device__ void Init() {
      tiles.Init(kWarpsOf<KeyKernel>);
      values_pipeline.Init(1, kConsumers * kWarpsOfConsumer);
      pipeline.Init(1, kConsumers * kWarpsOfConsumer + (kWithQueries ? 1 : 0));
      for (PipelineOf<1>& dq_pipeline : dq_pipelines) {
        dq_pipeline.Init(kWarpsOfConsumer, 1);
      }
    }
  };

  __device__ static QueryWalk WalkOf(const KeyArguments& arguments, const KeyTile& tile) {
    return {arguments.query_list, tile.queries_begin, tile.queries_end, {}};
  }

  class Loader;
  class Fetcher;
  class Writer;
  class Consumer;
  template <int kIndex>
  using Helper = std::tuple_element_t<kIndex, std::tuple<Fetcher, Writer>>;
};

}  // namespace ringmaster::attention::kernels
