// Registers attention/kernels for CUDA; part of libringmaster_cuda.so.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <optional>
#include <string>
#include <vector>

#include "attention/kernels/dropout.h"
#include "attention/kernels/mix.h"
#include "attention/kernels/rotate.h"
#include "attention/kernels/rows.h"
#include "attention/kernels/tile_attention.h"

namespace ringmaster::attention {
namespace {

using at::Tensor;
using kernels::ElementType;
using kernels::Gradient;
using kernels::View;

void CheckDone(const std::string& error) { TORCH_CHECK(error.empty(), "attention: ", error); }

cudaStream_t StreamOf(const Tensor& x) {
  return c10::cuda::getCurrentCUDAStream(x.device().index());
}

ElementType TypeOf(const Tensor& x) {
  return x.scalar_type() == at::kHalf ? ElementType::kFp16 : ElementType::kBf16;
}

template <typename T>
int CountOf(const Tensor& list) {
  return static_cast<int>(list.numel() / static_cast<int64_t>(sizeof(T)));
}

// Null if there are no numbers.
template <typename T>
const T* Data(const Tensor& list) {
  return list.numel() == 0 ? nullptr : static_cast<const T*>(list.const_data_ptr());
}

int8_t* Rest(const Tensor& x) {
  return x.numel() == 0 ? nullptr : static_cast<int8_t*>(x.mutable_data_ptr());
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

// Of sums whose first token is `begin`.
std::vector<Gradient> SumsOf(const Tensor& own, at::IntArrayRef steps, int64_t begin) {
  return std::vector<Gradient>(
      steps.size(), {own.numel() == 0 ? nullptr : Sums(own), begin, own.size(1), own.stride(0),
                     own.stride(1), own.stride(2)});
}

std::vector<Gradient> SumsOf(const Tensor& own, at::IntArrayRef steps, int64_t begin,
                             const Tensor& pool) {
  std::vector<Gradient> sums = SumsOf(own, steps, begin);
  sums.push_back(SumsOf(pool, {1}, 0).front());
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
                 const Tensor& keys, const Tensor& slots, const Tensor& merge_begin,
                 const Tensor& out, const Tensor& lse, const Tensor& rest, const Tensor& part_outs,
                 const Tensor& part_lses) {
  const c10::cuda::CUDAGuard guard(q.device());
  const Tensor taken = Word(q);
  const kernels::ForwardProblem problem = {.type = TypeOf(q),
                                           .head_dim = static_cast<int>(q.size(3)),
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
                                                       .rest = Rest(rest),
                                                       .slots = Data<uint32_t>(slots),
                                                       .part_outs = Sums(part_outs),
                                                       .part_lses = Sums(part_lses),
                                                       .parts = part_outs.size(1),
                                                       .merge_begin = Data<uint32_t>(merge_begin)}};
  CheckDone(WhyNot(problem));
  CheckDone(kernels::TileForward(problem, StreamOf(q)));
}

void MixCuda(const Tensor& part_outs, const Tensor& part_lses, const Tensor& places,
             const Tensor& begin, const Tensor& out, const Tensor& lse, const Tensor& rest) {
  const c10::cuda::CUDAGuard guard(out.device());
  CheckDone(kernels::Mix({.type = TypeOf(out),
                          .head_dim = static_cast<int>(out.size(3)),
                          .batch = out.size(0),
                          .part_outs = Sums(part_outs),
                          .part_lses = Sums(part_lses),
                          .parts = part_outs.size(1),
                          .mixed_places = places.numel(),
                          .places = Data<uint32_t>(places),
                          .begin = Data<uint32_t>(begin),
                          .all_places = out.size(1) * out.size(2),
                          .out = out.mutable_data_ptr(),
                          .lse = Sums(lse),
                          .rest = Rest(rest)},
                         StreamOf(out)));
}

void StartsCuda(const Tensor& dout, const Tensor& out, const Tensor& rest, const Tensor& lse,
                double scale, const Tensor& starts) {
  const c10::cuda::CUDAGuard guard(dout.device());
  CheckDone(kernels::MakeStarts({.type = TypeOf(dout),
                                 .head_dim = static_cast<int>(dout.size(3)),
                                 .tokens = dout.size(0) * dout.size(1),
                                 .heads = dout.size(2),
                                 .scale = static_cast<float>(scale),
                                 .dout = dout.const_data_ptr(),
                                 .out = out.const_data_ptr(),
                                 .rest = Data<int8_t>(rest),
                                 .lse = Data<float>(lse),
                                 .starts = Sums(starts)},
                                StreamOf(dout)));
}

void DropoutFactorsCuda(const Tensor& philox_keys, const Tensor& queries, const Tensor& keys,
                        int64_t dropped_below, double kept, const Tensor& factors) {
  const c10::cuda::CUDAGuard guard(factors.device());
  TORCH_CHECK_VALUE(factors.is_contiguous() && (factors.scalar_type() == at::kFloat ||
                                                factors.scalar_type() == at::kDouble),
                    "factors are contiguous, fp32 or fp64");
  const Tensor each[] = {philox_keys.contiguous(), queries.contiguous(), keys.contiguous()};
  const bool fp64 = factors.scalar_type() == at::kDouble;
  void* to = factors.mutable_data_ptr();
  CheckDone(kernels::DropoutFactors({.groups = factors.size(0),
                                     .queries = factors.size(1),
                                     .keys = factors.size(2),
                                     .dropped_below = static_cast<uint64_t>(dropped_below),
                                     .kept = kept,
                                     .philox_keys = Data<int64_t>(each[0]),
                                     .query_tokens = Data<int64_t>(each[1]),
                                     .key_tokens = Data<int64_t>(each[2]),
                                     .factors = fp64 ? nullptr : static_cast<float*>(to),
                                     .double_factors = fp64 ? static_cast<double*>(to) : nullptr},
                                    StreamOf(factors)));
}

void RotateCuda(const Tensor& x, const Tensor& cos, const Tensor& sin, double direction,
                const Tensor& out) {
  const c10::cuda::CUDAGuard guard(x.device());
  TORCH_CHECK_VALUE(x.dim() == 4 && x.size(3) % 2 == 0 && x.is_contiguous() &&
                        out.is_contiguous() && out.sizes() == x.sizes() &&
                        out.scalar_type() == x.scalar_type(),
                    "x and what it becomes are contiguous [B, N, H, D] of one type");
  for (const Tensor& table : {cos, sin}) {
    TORCH_CHECK_VALUE(table.is_contiguous() && table.scalar_type() == at::kFloat &&
                          table.numel() == x.size(1) * x.size(3) / 2,
                      "tables are contiguous, fp32, a row of D / 2 for each token");
  }
  CheckDone(kernels::Rotate({.type = TypeOf(x),
                             .batch = x.size(0),
                             .tokens = x.size(1),
                             .heads = static_cast<int>(x.size(2)),
                             .half = static_cast<int>(x.size(3) / 2),
                             .direction = static_cast<float>(direction),
                             .x = x.const_data_ptr(),
                             .cos = Data<float>(cos),
                             .sin = Data<float>(sin),
                             .out = out.mutable_data_ptr()},
                            StreamOf(x)));
}

void BackwardCuda(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& pool_k,
                  const Tensor& pool_v, at::IntArrayRef steps, double scale, const Tensor& dout,
                  const Tensor& starts, const Tensor& tiles, const Tensor& keys,
                  const Tensor& key_tiles, const Tensor& queries, bool deterministic,
                  int64_t key_gradients, const Tensor& key_sums, int64_t begin, const Tensor& dq,
                  const Tensor& dk, const Tensor& dv, const Tensor& pool_dk, const Tensor& pool_dv,
                  const Tensor& finished_dk, const Tensor& finished_dv) {
  const c10::cuda::CUDAGuard guard(q.device());
  const Tensor taken = Word(q);
  const kernels::BackwardProblem problem = {
      .type = TypeOf(q),
      .head_dim = static_cast<int>(q.size(3)),
      .scale = static_cast<float>(scale),
      .query_views = Views(q, steps),
      .dout_views = Views(dout, steps),
      .key_views = Views(k, steps, pool_k),
      .value_views = Views(v, steps, pool_v),
      .starts = Data<float>(starts),
      .deterministic = deterministic,
      .key_gradients = static_cast<kernels::KeyGradients>(key_gradients),
      .tiles = Data<kernels::Tile>(tiles),
      .tile_count = CountOf<kernels::Tile>(tiles),
      .keys = Data<kernels::TileKeys>(keys),
      .key_tiles = Data<kernels::KeyTile>(key_tiles),
      .key_tile_count = CountOf<kernels::KeyTile>(key_tiles),
      .queries = Data<kernels::TileKeys>(queries),
      .taken = Data(taken),
      .dq = SumsOf(dq, steps, begin),
      .dk = SumsOf(dk, steps, begin, pool_dk),
      .dv = SumsOf(dv, steps, begin, pool_dv),
      .key_sums = Data<uint8_t>(key_sums),
      .finished_dk = finished_dk.mutable_data_ptr(),
      .finished_dv = finished_dv.mutable_data_ptr()};
  CheckDone(WhyNot(problem));
  CheckDone(kernels::TileBackward(problem, StreamOf(q)));
}

template <typename T>
kernels::Strided<T> StridedOf(const Tensor& x) {
  TORCH_CHECK_VALUE(x.dim() == 4 && x.stride(3) == 1 && x.element_size() == sizeof(T),
                    "rows are [B, T, H, D] with columns beside each other, of ", sizeof(T),
                    " bytes each");
  void* data = const_cast<void*>(x.const_data_ptr());
  return {static_cast<T*>(data), x.stride(0), x.stride(1), x.stride(2)};
}

void PackRowsCuda(const Tensor& k, const Tensor& v, const Tensor& places, const Tensor& message) {
  const c10::cuda::CUDAGuard guard(k.device());
  TORCH_CHECK_VALUE(message.is_contiguous() && message.element_size() == k.element_size() &&
                        v.sizes() == k.sizes() &&
                        message.numel() == 2 * places.numel() * k.size(0) * k.size(3),
                    "a message is [rows, 2, B, D], contiguous, of the type of keys and values");
  CheckDone(kernels::PackRows({.batch = k.size(0),
                               .heads = static_cast<int>(k.size(2)),
                               .head_dim = static_cast<int>(k.size(3)),
                               .rows = places.numel(),
                               .places = Data<uint32_t>(places),
                               .k = StridedOf<const uint16_t>(k),
                               .v = StridedOf<const uint16_t>(v),
                               .message = static_cast<uint16_t*>(message.mutable_data_ptr())},
                              StreamOf(k)));
}

void AddRowsCuda(const Tensor& places, const Tensor& begin, const Tensor& rows, const Tensor& kept,
                 const Tensor& returned, const Tensor& dk_sums, const Tensor& dv_sums,
                 const std::optional<Tensor>& dk, const std::optional<Tensor>& dv) {
  const c10::cuda::CUDAGuard guard(dk_sums.device());
  for (const Tensor& message : {kept, returned}) {
    TORCH_CHECK_VALUE(message.is_contiguous() && message.scalar_type() == at::kFloat,
                      "messages of gradients are contiguous and fp32");
  }
  TORCH_CHECK_VALUE(kept.size(0) + returned.size(0) == rows.numel(),
                    "the lists are of other messages");
  kernels::ReturnedRowsProblem problem{.batch = dk_sums.size(0),
                                       .heads = static_cast<int>(dk_sums.size(2)),
                                       .head_dim = static_cast<int>(dk_sums.size(3)),
                                       .place_count = places.numel(),
                                       .places = Data<uint32_t>(places),
                                       .begin = Data<uint32_t>(begin),
                                       .rows = Data<uint32_t>(rows),
                                       .kept_rows = static_cast<uint32_t>(kept.size(0)),
                                       .kept = Data<float>(kept),
                                       .returned = Data<float>(returned),
                                       .dk = StridedOf<float>(dk_sums),
                                       .dv = StridedOf<float>(dv_sums)};
  if (dk.has_value() && dv.has_value()) {
    problem.type = TypeOf(*dk);
    problem.rounded_dk = StridedOf<uint16_t>(*dk);
    problem.rounded_dv = StridedOf<uint16_t>(*dv);
  }
  CheckDone(kernels::AddReturnedRows(problem, StreamOf(dk_sums)));
}

TORCH_LIBRARY_IMPL(ringmaster, CUDA, library) {
  library.impl("tile_why_not", WhyNotCuda);
  library.impl("tile_forward", ForwardCuda);
  library.impl("tile_mix", MixCuda);
  library.impl("tile_starts", StartsCuda);
  library.impl("dropout_factors", DropoutFactorsCuda);
  library.impl("rotate", RotateCuda);
  library.impl("tile_backward", BackwardCuda);
  library.impl("tile_pack_rows", PackRowsCuda);
  library.impl("tile_add_rows", AddRowsCuda);
}

}  // namespace
}  // namespace ringmaster::attention
