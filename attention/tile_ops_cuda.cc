// Registers attention/kernels for CUDA; part of libringmaster_cuda.so.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <string>
#include <vector>

#include "attention/kernels/mix.h"
#include "attention/kernels/tile_attention.h"

namespace ringmaster::attention {
namespace {

using at::Tensor;
using kernels::Gradient;
using kernels::View;

void CheckDone(const std::string& error) { TORCH_CHECK(error.empty(), "attention: ", error); }

cudaStream_t StreamOf(const Tensor& x) {
  return c10::cuda::getCurrentCUDAStream(x.device().index());
}

template <typename T>
int CountOf(const Tensor& list) {
  return static_cast<int>(list.numel() / static_cast<int64_t>(sizeof(T)));
}

template <typename T>
const T* Data(const Tensor& list) {
  return static_cast<const T*>(list.const_data_ptr());
}

float* Sums(const Tensor& x) { return static_cast<float*>(x.mutable_data_ptr()); }

std::vector<View> Views(const Tensor& own, at::IntArrayRef steps) {
  std::vector<View> views;
  for (const int64_t step : steps) {
    views.push_back({{own.const_data_ptr(), own.size(0), own.size(1), own.size(2), own.stride(0),
                      own.stride(1), own.stride(2)},
                     step});
  }
  return views;
}

std::vector<View> Views(const Tensor& own, at::IntArrayRef steps, const Tensor& pool) {
  std::vector<View> views = Views(own, steps);
  if (pool.numel() > 0) {
    views.push_back(Views(pool, {1}).front());
  }
  return views;
}

std::vector<Gradient> Sums(const Tensor& own, at::IntArrayRef steps) {
  return std::vector<Gradient>(steps.size(),
                               {Sums(own), own.stride(0), own.stride(1), own.stride(2)});
}

std::vector<Gradient> Sums(const Tensor& own, at::IntArrayRef steps, const Tensor& pool) {
  std::vector<Gradient> sums = Sums(own, steps);
  sums.push_back(Sums(pool, {1}).front());
  return sums;
}

// A word for one call; the allocator gives it to nobody else before that has run.
Tensor Word(const Tensor& like) { return at::empty({1}, like.options().dtype(at::kInt)); }
unsigned* Data(const Tensor& word) { return static_cast<unsigned*>(word.mutable_data_ptr()); }

std::string WhyNotCuda(const Tensor& q) {
  const c10::cuda::CUDAGuard guard(q.device());
  return kernels::WhyNotDevice();
}

void ForwardCuda(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& pool_k,
                 const Tensor& pool_v, at::IntArrayRef steps, double scale, const Tensor& tiles,
                 const Tensor& keys, const Tensor& slots, const Tensor& out, const Tensor& lse,
                 const Tensor& part_outs, const Tensor& part_lses) {
  const c10::cuda::CUDAGuard guard(q.device());
  const Tensor taken = Word(q);
  const kernels::ForwardProblem problem = {.head_dim = static_cast<int>(q.size(3)),
                                           .scale = static_cast<float>(scale),
                                           .query_views = Views(q, steps),
                                           .key_views = Views(k, steps, pool_k),
                                           .value_views = Views(v, steps, pool_v),
                                           .tiles = Data<kernels::Tile>(tiles),
                                           .tile_count = CountOf<kernels::Tile>(tiles),
                                           .keys = Data<kernels::TileKeys>(keys),
                                           .taken = Data(taken),
                                           .results = {.out = out.mutable_data_ptr(),
                                                       .lse = Sums(lse),
                                                       .slots = Data<uint32_t>(slots),
                                                       .part_outs = Sums(part_outs),
                                                       .part_lses = Sums(part_lses),
                                                       .parts = part_outs.size(1)}};
  CheckDone(WhyNot(problem));
  CheckDone(kernels::TileForward(problem, StreamOf(q)));
}

void MixCuda(const Tensor& part_outs, const Tensor& part_lses, const Tensor& merge_begin,
             const Tensor& out, const Tensor& lse) {
  const c10::cuda::CUDAGuard guard(out.device());
  CheckDone(kernels::Mix({.head_dim = static_cast<int>(out.size(3)),
                          .batch = out.size(0),
                          .part_outs = Sums(part_outs),
                          .part_lses = Sums(part_lses),
                          .parts = part_outs.size(1),
                          .places = out.size(1) * out.size(2),
                          .merge_begin = Data<uint32_t>(merge_begin),
                          .out = out.mutable_data_ptr(),
                          .lse = Sums(lse)},
                         StreamOf(out)));
}

void RowDotsCuda(const Tensor& a, const Tensor& b, const Tensor& dots) {
  const c10::cuda::CUDAGuard guard(a.device());
  CheckDone(kernels::RowDots(static_cast<int>(a.size(3)), dots.numel(), a.const_data_ptr(),
                             b.const_data_ptr(), Sums(dots), StreamOf(a)));
}

kernels::PerQuery PerQueryOf(const Tensor& x) {
  return {Data<float>(x), x.stride(0), x.stride(1), x.stride(2)};
}

void BackwardCuda(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& pool_k,
                  const Tensor& pool_v, at::IntArrayRef steps, double scale, const Tensor& dout,
                  const Tensor& lse, const Tensor& delta, const Tensor& tiles, const Tensor& keys,
                  const Tensor& key_tiles, const Tensor& queries, bool deterministic,
                  bool store_keys, const Tensor& dq, const Tensor& dk, const Tensor& dv,
                  const Tensor& pool_dk, const Tensor& pool_dv) {
  const c10::cuda::CUDAGuard guard(q.device());
  const Tensor taken = Word(q);
  const kernels::BackwardProblem problem = {.head_dim = static_cast<int>(q.size(3)),
                                            .scale = static_cast<float>(scale),
                                            .query_views = Views(q, steps),
                                            .dout_views = Views(dout, steps),
                                            .key_views = Views(k, steps, pool_k),
                                            .value_views = Views(v, steps, pool_v),
                                            .lse = PerQueryOf(lse),
                                            .delta = PerQueryOf(delta),
                                            .deterministic = deterministic,
                                            .store_keys = store_keys,
                                            .tiles = Data<kernels::Tile>(tiles),
                                            .tile_count = CountOf<kernels::Tile>(tiles),
                                            .keys = Data<kernels::TileKeys>(keys),
                                            .key_tiles = Data<kernels::KeyTile>(key_tiles),
                                            .key_tile_count = CountOf<kernels::KeyTile>(key_tiles),
                                            .queries = Data<kernels::TileKeys>(queries),
                                            .taken = Data(taken),
                                            .dq = Sums(dq, steps),
                                            .dk = Sums(dk, steps, pool_dk),
                                            .dv = Sums(dv, steps, pool_dv)};
  CheckDone(WhyNot(problem));
  CheckDone(kernels::TileBackward(problem, StreamOf(q)));
}

TORCH_LIBRARY_IMPL(ringmaster, CUDA, library) {
  library.impl("tile_why_not", WhyNotCuda);
  library.impl("tile_forward", ForwardCuda);
  library.impl("tile_mix", MixCuda);
  library.impl("tile_row_dots", RowDotsCuda);
  library.impl("tile_backward", BackwardCuda);
}

}  // namespace
}  // namespace ringmaster::attention
