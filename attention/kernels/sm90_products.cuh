#pragma once

#include <stdint.h>

#include <type_traits>

#include "attention/kernels/element.h"
#include "attention/kernels/sm90.cuh"

// Warpgroup matrix products of an Element (element.h) with fp32 sums: PTX ISA, chapter wgmma.
// Asynchronous: operands and accumulators are not touched between issue and AwaitProducts.
namespace ringmaster::attention::sm90 {

// A matrix operand in shared memory, rows of 64 two-byte elements (128 bytes) in the 128-byte
// swizzle, eight rows one after the other. `next_columns`: bytes to the next 64 columns, read only
// for operands whose columns run along M or N.
__device__ inline uint64_t MatrixDescriptor(const void* shared, int next_columns) {
  constexpr uint64_t kEightRows = 1024;
  uint64_t descriptor = (SharedAddress(shared) & 0x3FFFF) >> 4;
  descriptor |= static_cast<uint64_t>((next_columns >> 4) & 0x3FFF) << 16;
  descriptor |= (kEightRows >> 4) << 32;
  descriptor |= uint64_t{1} << 62;
  return descriptor;
}

// Of the operand that begins so many bytes, a multiple of 16, behind. One addition: to describe
// each from its address takes longer than a product of 64 columns.
__device__ inline uint64_t Behind(uint64_t descriptor, int bytes) {
  const uint32_t low = static_cast<uint32_t>(descriptor) + (bytes >> 4);
  return (descriptor >> 32 << 32) | low;
}

// Registers and shared memory written before are seen by the products issued after.
__device__ inline void FenceProducts() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void CommitProducts() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most `kLeft` committed groups run.
template <int kLeft>
__device__ inline void AwaitProducts() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}
// Keeps the compiler from moving uses of accumulators over the waits.
template <int kCount>
__device__ inline void PinRegisters(float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    asm volatile("" : "+f"(values[i])::"memory");
  }
}

#define RINGMASTER_ACC8(d, i)                                                                 \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define RINGMASTER_ACC32(d, i)                                                  \
  RINGMASTER_ACC8(d, i), RINGMASTER_ACC8(d, i + 8), RINGMASTER_ACC8(d, i + 16), \
      RINGMASTER_ACC8(d, i + 24)
#define RINGMASTER_REGS32                                                  \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define RINGMASTER_REGS64                                                              \
  RINGMASTER_REGS32                                                                    \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// The product of this shape: what comes before it and behind its name, and its operands.
#define RINGMASTER_PRODUCT(Element, before, shape, behind, ...)                        \
  if constexpr (std::is_same_v<Element, kernels::Fp16>) {                              \
    asm volatile(before "wgmma.mma_async.sync.aligned." shape ".f32.f16.f16 " behind   \
                 : __VA_ARGS__);                                                       \
  } else {                                                                             \
    asm volatile(before "wgmma.mma_async.sync.aligned." shape ".f32.bf16.bf16 " behind \
                 : __VA_ARGS__);                                                       \
  }
#define RINGMASTER_ADD_IF(operand) "{\n.reg .pred add;\nsetp.ne.b32 add, " operand ", 0;\n"

// d (+)= a * b^T of 64 rows of a and N rows of b, 16 deep, both in shared memory with the depth
// along their rows. As the ISA lays accumulators out, d[i] is of row
// 16 * warp + 8 * (i / 2 & 1) + lane / 4 and column 8 * (i / 4) + 2 * (lane % 4) + (i & 1).
template <typename Element>
__device__ inline void MultiplyRows(float (&d)[64], uint64_t a, uint64_t b, bool add) {
  RINGMASTER_PRODUCT(Element, RINGMASTER_ADD_IF("%66"), "m64n128k16",
                     "{" RINGMASTER_REGS64 "}, %64, %65, add, 1, 1, 0, 0;\n}\n",
                     RINGMASTER_ACC32(d, 0), RINGMASTER_ACC32(d, 32)
                     : "l"(a), "l"(b), "r"(static_cast<int>(add)))
}

template <typename Element>
__device__ inline void MultiplyRows(float (&d)[32], uint64_t a, uint64_t b, bool add) {
  RINGMASTER_PRODUCT(Element, RINGMASTER_ADD_IF("%34"), "m64n64k16",
                     "{" RINGMASTER_REGS32 "}, %32, %33, add, 1, 1, 0, 0;\n}\n",
                     RINGMASTER_ACC32(d, 0)
                     : "l"(a), "l"(b), "r"(static_cast<int>(add)))
}

// d += a * b of 64 rows of a in registers and 16 rows of b in shared memory, columns along N.
template <typename Element>
__device__ inline void MultiplyAdd(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {
  RINGMASTER_PRODUCT(Element, "", "m64n128k16",
                     "{" RINGMASTER_REGS64 "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n",
                     RINGMASTER_ACC32(d, 0), RINGMASTER_ACC32(d, 32)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
}
template <typename Element>
__device__ inline void MultiplyAdd(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
  RINGMASTER_PRODUCT(Element, "", "m64n64k16",
                     "{" RINGMASTER_REGS32 "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;\n",
                     RINGMASTER_ACC32(d, 0)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
}

// d (+)= a^T * b of 16 rows of 64 columns of a and 16 rows of b, both in shared memory, columns
// along M and N.
template <typename Element>
__device__ inline void MultiplyColumns(float (&d)[32], uint64_t a, uint64_t b, bool add) {
  RINGMASTER_PRODUCT(Element, RINGMASTER_ADD_IF("%34"), "m64n64k16",
                     "{" RINGMASTER_REGS32 "}, %32, %33, add, 1, 1, 1, 1;\n}\n",
                     RINGMASTER_ACC32(d, 0)
                     : "l"(a), "l"(b), "r"(static_cast<int>(add)))
}
template <typename Element>
__device__ inline void MultiplyColumns(float (&d)[16], uint64_t a, uint64_t b, bool add) {
  RINGMASTER_PRODUCT(Element, RINGMASTER_ADD_IF("%18"), "m64n32k16",
                     "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
                     "}, %16, %17, add, 1, 1, 1, 1;\n}\n",
                     RINGMASTER_ACC8(d, 0), RINGMASTER_ACC8(d, 8)
                     : "l"(a), "l"(b), "r"(static_cast<int>(add)))
}

#undef RINGMASTER_PRODUCT
#undef RINGMASTER_ADD_IF
#undef RINGMASTER_ACC8
#undef RINGMASTER_ACC32
#undef RINGMASTER_REGS32
#undef RINGMASTER_REGS64

}  // namespace ringmaster::attention::sm90
