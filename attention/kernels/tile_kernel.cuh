#pragma once

#include <stdint.h>

#include "attention/kernels/tile_loads.cuh"
#include "attention/kernels/tile_products.cuh"

// The frame of the kernels over tiles. One block a multiprocessor takes tiles from the list, one
// after the other: a warp loads, up to three more help it, K::kConsumers consumer warpgroups
// multiply, and while they finish a tile the rows of the next are on their way. A kernel K has
// - kConsumerRegisters, of a consumer's thread; what is left must do for the others';
// - WalkOf(arguments, tile), which finds what comes by;
// - Shared, its shared memory, with a TileSlots `tiles` and an Init() of the barriers that one
//   thread calls;
// - Loader(arguments, shared), whose Run(tile, batch, stage) one thread calls: it loads the tile's
//   own rows, arriving at the slot's full barrier, and what comes by;
// - Consumer(arguments, shared, group), whose Run(tile, batch, stage) each consumer's threads call
//   as soon as the tile is taken; it waits for its rows itself;
// - kHelpers, at most three, and Helper<i>(arguments, shared, lane), whose Run(tile, batch, stage)
//   each lane of helper i calls as soon as the tile is taken.
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
constexpr float kLn2 = 0.69314718055994530942f;

template <typename K>
constexpr int kThreadsOf = (K::kConsumers + 1) * sm90::kWarpGroup;
// That run tiles.
template <typename K>
constexpr int kWarpsOf = K::kConsumers* kWarpsOfConsumer + K::kHelpers;

// The tiles that a block has taken and not finished.
template <typename AnyTile, typename AnyWalk>
struct TileSlots {
  AnyTile tile[kStages];
  AnyWalk walk[kStages];
  int batch[kStages];       // negative: there are no more tiles
  uint64_t taken[kStages];  // all above is known
  Pipeline pipeline;        // full: the tile's own rows are there

  __device__ void Init(int warps) {
    pipeline.Init(1, warps);
    for (uint64_t& barrier : taken) {
      sm90::InitBarrier(&barrier, 1);
    }
  }
};

// Takes a tile when the loads of the one before have been started. Not as soon as there is a slot,
// though a tile's numbers take microseconds to come by: tiles that are taken long before their time
// are no longer near in memory to those that other blocks are at (4 % slower forward, 15 %
// backward, as measured).
template <typename K, typename Arguments>
__device__ void TakeTiles(const Arguments& arguments, typename K::Shared& shared) {
  auto& slots = shared.tiles;
  typename K::Loader loader(arguments, shared);
  for (Stage stage;; stage.Next()) {
    const int slot = stage.index();
    slots.pipeline.AwaitEmpty(stage);
    const unsigned taken = atomicAdd(arguments.taken, 1);
    const unsigned batch = taken / arguments.tile_count;
    const bool more = batch < arguments.batches;
    slots.batch[slot] = more ? static_cast<int>(batch) : -1;
    if (more) {
      const auto tile = arguments.tiles[taken % arguments.tile_count];
      slots.tile[slot] = tile;
      slots.walk[slot] = K::WalkOf(arguments, tile);
    }
    sm90::Arrive(&slots.taken[slot]);
    if (!more) {
      return;
    }
    loader.Run(slots.tile[slot], slots.batch[slot], stage);
  }
}

// Runs what a warp does of each tile.
template <typename Worker, typename Slots>
__device__ void RunTiles(Worker worker, Slots& slots) {
  for (Stage stage;; stage.Next()) {
    const int slot = stage.index();
    sm90::WaitFor(&slots.taken[slot], stage.parity());
    if (slots.batch[slot] < 0) {
      return;
    }
    worker.Run(slots.tile[slot], slots.batch[slot], stage);
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      sm90::Arrive(&slots.pipeline.empty[slot]);
    }
  }
}

template <typename K, int kFirst, typename Arguments>
__device__ void Help(const Arguments& arguments, typename K::Shared& shared, int helper, int lane) {
  if constexpr (kFirst < K::kHelpers) {
    if (helper == kFirst) {
      RunTiles(typename K::template Helper<kFirst>(arguments, shared, lane), shared.tiles);
    } else {
      Help<K, kFirst + 1>(arguments, shared, helper, lane);
    }
  }
}

template <typename K, typename Arguments>
__global__ void __launch_bounds__(kThreadsOf<K>, 1)
    TileKernel(const __grid_constant__ Arguments arguments) {
  // A swizzle pattern begins where the address is a multiple of 1024.
  extern __shared__ __align__(1024) uint8_t raw[];
  auto& shared = *reinterpret_cast<typename K::Shared*>(raw);
  if (threadIdx.x == 0) {
    if (sm90::SharedAddress(raw) % 1024 != 0) {
      __trap();
    }
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
    if (helper >= 0) {
      Help<K, 0>(arguments, shared, helper, threadIdx.x % 32);
    } else if (sm90::IsElected()) {
      TakeTiles<K>(arguments, shared);
    }
  } else {
    sm90::GrowRegisters<K::kConsumerRegisters>();
    RunTiles(typename K::Consumer(arguments, shared, group), shared.tiles);
  }
}

}  // namespace ringmaster::attention::kernels
