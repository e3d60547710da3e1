#pragma once

#include <cuda.h>
#include <stdint.h>

// The instructions of Hopper that attention kernels are made of, but for the products: barriers in
// shared memory, bulk tensor loads, registers. Names and semantics as in the PTX ISA, chapters
// mbarrier and cp.async.bulk.tensor.
namespace ringmaster::attention::sm90 {

constexpr int kWarpGroup = 128;

__device__ inline uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// A phase of a barrier completes when `arrivals` threads have arrived and all expected bytes are
// in.
__device__ inline void InitBarrier(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)),
               "r"(arrivals));
}

// Makes initialised barriers visible to the loads of other threads; a __syncthreads() follows.
__device__ inline void FenceBarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ inline void Arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(barrier)) : "memory");
}

__device__ inline void ArriveExpecting(uint64_t* barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(barrier)),
      "r"(bytes)
      : "memory");
}

// Returns once the phase of this parity is complete. The hint, in nanoseconds, is as long as any
// wait: a warp that looks again and again takes turns that others would multiply in.
__device__ inline void WaitFor(uint64_t* barrier, int parity) {
  constexpr int kSuspended = 10'000'000;
  uint32_t done = 0;
  while (done == 0) {
    asm volatile(
        "{\n"
        ".reg .pred complete;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 complete, [%1], %2, %3;\n"
        "selp.u32 %0, 1, 0, complete;\n"
        "}\n"
        : "=r"(done)
        : "r"(SharedAddress(barrier)), "r"(parity), "n"(kSuspended)
        : "memory");
  }
}

// One box of a five-dimensional tensor into shared memory; its bytes arrive at the barrier.
__device__ inline void LoadBox(void* shared, const CUtensorMap& map, uint64_t* barrier, int c0,
                               int c1, int c2, int c3, int c4) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(SharedAddress(shared)),
      "l"(reinterpret_cast<uint64_t>(&map)), "r"(SharedAddress(barrier)), "r"(c0), "r"(c1), "r"(c2),
      "r"(c3), "r"(c4)
      : "memory");
}

// Adds a box of shared memory, fp32, to a five-dimensional tensor; boxes are committed in groups,
// of which the thread that did so waits for until their memory has been read.
__device__ inline void AddBox(const CUtensorMap& map, const void* shared, int c0, int c1, int c2,
                              int c3, int c4) {
  asm volatile(
      "cp.reduce.async.bulk.tensor.5d.global.shared::cta.add.tile.bulk_group"
      " [%0, {%2, %3, %4, %5, %6}], [%1];" ::"l"(reinterpret_cast<uint64_t>(&map)),
      "r"(SharedAddress(shared)), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
      : "memory");
}
__device__ inline void CommitBoxes() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
__device__ inline void AwaitBoxesRead() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

// Four blocks of 8 x 8 two-byte numbers into shared memory, each lane giving the address of a row:
// block lane / 8, row lane % 8.
__device__ inline void StoreBlocks(void* row, const uint32_t (&blocks)[4]) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(SharedAddress(row)),
      "r"(blocks[0]), "r"(blocks[1]), "r"(blocks[2]), "r"(blocks[3])
      : "memory");
}

// Shared memory that this thread has written is seen by products that come after a barrier.
__device__ inline void FenceShared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Adds to four neighbours in memory; nobody waits for it.
__device__ inline void AddFour(float* to, const float4& four) {
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(four.x),
               "f"(four.y), "f"(four.z), "f"(four.w)
               : "memory");
}

// Brings the line with this address into the second-level cache; nobody waits for it.
__device__ inline void Prefetch(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

// Gives registers back, or takes them; all warps of a warpgroup execute it.
template <int kRegisters>
__device__ inline void ShrinkRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void GrowRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Whether this thread is the one of its warp that is to act, each time the same: the compiler then
// knows that there is but one. All of the warp call it.
__device__ inline bool IsElected() {
  uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred elected;\n"
      "elect.sync _|elected, 0xFFFFFFFF;\n"
      "selp.u32 %0, 1, 0, elected;\n"
      "}\n"
      : "=r"(elected));
  return elected != 0;
}

// Named barriers 1..15 among some of a block's threads.
__device__ inline void SyncNamed(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ inline void ArriveNamed(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace ringmaster::attention::sm90
