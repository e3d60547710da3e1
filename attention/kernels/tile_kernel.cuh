#pragma once

#include <stdint.h>

#include "attention/kernels/tile_loads.cuh"
#include "attention/kernels/tile_products.cuh"

// The frame of the kernels over tiles. One block a multiprocessor takes tiles from the list, one
// after the other: a producer warp loads, K::kConsumers consumer warpgroups multiply, and while
// they finish a tile the rows of the next are on their way. A kernel K has
// - kConsumerRegisters, of a consumer's thread; what is left must do for the producer's;
// - Shared, its shared memory, with a TileSlots `tiles` and an Init() of the barriers that one
//   thread calls;
// - Producer(arguments, shared, lane), whose WalkOf(tile) finds what comes by, LoadOwn(tile, batch,
//   slot) one lane calls to start the loads of the rows that a tile keeps, arriving at the slot's
//   full barrier, and LoadSeen(walk, tile, batch) each lane to load what comes by;
// - Consumer(arguments, shared, group), whose Run(tile, batch, slot, seen) each consumer's threads
//   call when the tile's own rows are there, `seen` if any come by; it gives the slot back.
// Consumers read no list: its latency would come before their products.
namespace ringmaster::attention::kernels {

// Of all kernels: the list, and what is left of it.
template <typename AnyTile>
struct TileArguments {
  const AnyTile* tiles;
  unsigned tile_count;
  unsigned batches;
  unsigned* taken;
};

constexpr float kLog2e = 1.44269504088896340736f;

template <typename K>
constexpr int kThreadsOf = (K::kConsumers + 1) * sm90::kWarpGroup;

// Dynamic shared memory from its first swizzle pattern on; kSharedSlack bytes more are asked for.
constexpr int kSharedSlack = 1024;
__device__ inline uint8_t* AlignShared(uint8_t* raw) {
  return reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(raw) + kSharedSlack - 1) &
                                    ~uintptr_t{kSharedSlack - 1});
}

// The tiles that a block has taken and not finished.
template <typename AnyTile>
struct TileSlots {
  AnyTile tile[kStages];
  int batch[kStages];  // negative: there are no more tiles
  bool seen[kStages];  // whether any rows come by
  Pipeline pipeline;

  // Once for each tile: one producer, all warps of the consumers.
  __device__ void Init(int consumers) { pipeline.Init(1, consumers * kWarpsOfConsumer); }
};

template <typename K, typename Arguments>
__device__ void ProduceTiles(const Arguments& arguments, typename K::Shared& shared, int lane) {
  typename K::Producer producer(arguments, shared, lane);
  auto& slots = shared.tiles;
  for (Stage stage;; stage.Next()) {
    slots.pipeline.AwaitEmpty(stage);
    unsigned taken = 0;
    if (lane == 0) {
      taken = atomicAdd(arguments.taken, 1);
    }
    taken = __shfl_sync(0xFFFFFFFF, taken, 0);
    const unsigned batch = taken / arguments.tile_count;
    if (batch >= arguments.batches) {
      if (lane == 0) {
        slots.batch[stage.index()] = -1;
        sm90::Arrive(&slots.pipeline.full[stage.index()]);
      }
      return;
    }
    const auto tile = arguments.tiles[taken % arguments.tile_count];
    const auto walk = producer.WalkOf(tile);
    if (lane == 0) {
      slots.tile[stage.index()] = tile;
      slots.batch[stage.index()] = static_cast<int>(batch);
      slots.seen[stage.index()] = !walk.done();
      producer.LoadOwn(tile, batch, stage.index());
    }
    __syncwarp();
    producer.LoadSeen(walk, tile, batch);
  }
}

template <typename K, typename Arguments>
__device__ void ConsumeTiles(const Arguments& arguments, typename K::Shared& shared, int group) {
  typename K::Consumer consumer(arguments, shared, group);
  auto& slots = shared.tiles;
  for (Stage stage;; stage.Next()) {
    slots.pipeline.AwaitFull(stage);
    if (slots.batch[stage.index()] < 0) {
      return;
    }
    consumer.Run(slots.tile[stage.index()], slots.batch[stage.index()], stage.index(),
                 slots.seen[stage.index()]);
  }
}

template <typename K, typename Arguments>
__global__ void __launch_bounds__(kThreadsOf<K>, 1)
    TileKernel(const __grid_constant__ Arguments arguments) {
  extern __shared__ uint8_t raw[];
  auto& shared = *reinterpret_cast<typename K::Shared*>(AlignShared(raw));
  if (threadIdx.x == 0) {
    shared.Init();
    sm90::FenceBarrierInit();
  }
  __syncthreads();
  // The same in all lanes, and the compiler is to know.
  const int group = __shfl_sync(0xFFFFFFFF, threadIdx.x / sm90::kWarpGroup, 0);
  // What the block has been given is divided by hand: consumers hold scores and sums.
  constexpr int kGiven = K::kConsumers == 2 ? 3 * 168 : 4 * 128;
  if (group == K::kConsumers) {
    sm90::ShrinkRegisters<kGiven - K::kConsumers * K::kConsumerRegisters>();
    if (threadIdx.x % sm90::kWarpGroup < 32) {
      ProduceTiles<K>(arguments, shared, threadIdx.x % 32);
    }
  } else {
    sm90::GrowRegisters<K::kConsumerRegisters>();
    ConsumeTiles<K>(arguments, shared, group);
  }
}

}  // namespace ringmaster::attention::kernels
