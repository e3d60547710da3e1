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
//   call when the tile's own rows are there, `seen` if any come by; it gives the slot back;
// - kHelpers, how many warps help the producer, and Helper<i>(arguments, shared, lane), whose
//   Run(tile, batch, slot, seen) each lane of helper i calls as soon as the tile is taken, and
//   which gives the slot back as well.
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
// A pointer that was an integer would no longer be known to be of shared memory.
constexpr int kSharedSlack = 1024;
__device__ inline uint8_t* AlignShared(uint8_t* raw) {
  return raw + (-sm90::SharedAddress(raw) & (kSharedSlack - 1));
}

// The tiles that a block has taken and not finished.
template <typename AnyTile>
struct TileSlots {
  AnyTile tile[kStages];
  int batch[kStages];  // negative: there are no more tiles
  bool seen[kStages];  // whether any rows come by
  Pipeline pipeline;
  uint64_t taken[kStages];  // the tile is known, its rows need not be there

  // Once for each tile: one producer; all warps of the consumers, a lane of each helper.
  __device__ void Init(int consumers, int helpers = 0) {
    pipeline.Init(1, consumers * kWarpsOfConsumer + helpers);
    for (uint64_t& barrier : taken) {
      sm90::InitBarrier(&barrier, 1);
    }
  }
};

template <typename K, typename Arguments>
__device__ void ProduceTiles(const Arguments& arguments, typename K::Shared& shared, int lane) {
  typename K::Producer producer(arguments, shared, lane);
  auto& slots = shared.tiles;
  for (Stage stage;; stage.Next()) {
    const int slot = stage.index();
    slots.pipeline.AwaitEmpty(stage);
    unsigned taken = lane == 0 ? atomicAdd(arguments.taken, 1) : 0;
    taken = __shfl_sync(0xFFFFFFFF, taken, 0);
    const unsigned batch = taken / arguments.tile_count;
    if (batch >= arguments.batches) {
      if (lane == 0) {
        slots.batch[slot] = -1;
        sm90::Arrive(&slots.taken[slot]);
        sm90::Arrive(&slots.pipeline.full[slot]);
      }
      return;
    }
    const auto tile = arguments.tiles[taken % arguments.tile_count];
    const auto walk = producer.WalkOf(tile);
    if (lane == 0) {
      slots.tile[slot] = tile;
      slots.batch[slot] = static_cast<int>(batch);
      slots.seen[slot] = !walk.done();
      sm90::Arrive(&slots.taken[slot]);
      producer.LoadOwn(tile, batch, slot);
    }
    __syncwarp();
    producer.LoadSeen(walk, tile, batch);
  }
}

// Runs what a consumer, or a helper, does of each tile; `ready` are the barriers that it waits for.
template <typename Worker, typename AnyTile>
__device__ void RunTiles(Worker worker, TileSlots<AnyTile>& slots, uint64_t* ready) {
  for (Stage stage;; stage.Next()) {
    const int slot = stage.index();
    sm90::WaitFor(&ready[slot], stage.parity());
    if (slots.batch[slot] < 0) {
      return;
    }
    worker.Run(slots.tile[slot], slots.batch[slot], slot, slots.seen[slot]);
  }
}

template <typename K, int kFirst, typename Arguments>
__device__ void Help(const Arguments& arguments, typename K::Shared& shared, int helper, int lane) {
  if constexpr (kFirst < K::kHelpers) {
    if (helper == kFirst) {
      RunTiles(typename K::template Helper<kFirst>(arguments, shared, lane), shared.tiles,
               shared.tiles.taken);
    } else {
      Help<K, kFirst + 1>(arguments, shared, helper, lane);
    }
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
    const int helper = static_cast<int>(threadIdx.x % sm90::kWarpGroup / 32) - 1;
    if (helper < 0) {
      ProduceTiles<K>(arguments, shared, threadIdx.x % 32);
    } else {
      Help<K, 0>(arguments, shared, helper, threadIdx.x % 32);
    }
  } else {
    sm90::GrowRegisters<K::kConsumerRegisters>();
    RunTiles(typename K::Consumer(arguments, shared, group), shared.tiles,
             shared.tiles.pipeline.full);
  }
}

}  // namespace ringmaster::attention::kernels
