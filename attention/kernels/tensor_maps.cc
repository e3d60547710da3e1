#include "attention/kernels/tensor_maps.h"

#include <cuda_runtime_api.h>

#include <algorithm>

namespace ringmaster::attention::kernels {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// From the driver that the runtime has loaded, so that nothing links against it.
Encode FindEncode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                             12000, cudaEnableDefault, &result);
  return error == cudaSuccess && result == cudaDriverEntryPointSuccess
             ? reinterpret_cast<Encode>(function)
             : nullptr;
}

struct Boxes {
  CUtensorMapDataType type;
  uint64_t bytes;  // of a number
  int columns;
  CUtensorMapSwizzle swizzle;
};
// Bytes are only moved, so that bf16 and fp16 are the same.
constexpr Boxes kElements = {CU_TENSOR_MAP_DATA_TYPE_UINT16, 2, kColumns,
                             CU_TENSOR_MAP_SWIZZLE_128B};
constexpr Boxes kSums = {CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 4, kSumColumns,
                         CU_TENSOR_MAP_SWIZZLE_128B};
constexpr Boxes kStarts = {CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 4, kStartColumns,
                           CU_TENSOR_MAP_SWIZZLE_NONE};

std::string MakeMap(const View& view, const Boxes& boxes, int head_dim, int box_rows, int64_t rows,
                    CUtensorMap* map) {
  static const Encode encode = FindEncode();
  if (encode == nullptr) {
    return "the CUDA driver has no cuTensorMapEncodeTiled";
  }
  const uint64_t bytes = boxes.bytes;
  const Operand& operand = view.operand;
  const auto size = [](int64_t value) {
    return static_cast<cuuint64_t>(std::max<int64_t>(value, 1));
  };
  const cuuint64_t sizes[] = {size(head_dim), size(operand.heads), size(view.step), size(rows),
                              size(operand.batch)};
  const cuuint64_t strides[] = {operand.head_stride * bytes, operand.token_stride * bytes,
                                view.step * operand.token_stride * bytes,
                                operand.batch_stride * bytes};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(boxes.columns), 1, 1,
                            static_cast<cuuint32_t>(box_rows), 1};
  const cuuint32_t every[] = {1, 1, 1, 1, 1};
  const CUresult result =
      encode(map, boxes.type, 5, const_cast<void*>(operand.data), sizes, strides, box, every,
             CU_TENSOR_MAP_INTERLEAVE_NONE, boxes.swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? "" : "cuTensorMapEncodeTiled failed: " + std::to_string(result);
}

// Those of view i.
std::string MakeMaps(const View& view, const Boxes& boxes, int head_dim, int box_rows, size_t i,
                     ViewMaps* maps) {
  const int64_t rows = view.operand.tokens / view.step;
  maps->longer_residues[i] = static_cast<int32_t>(view.operand.tokens % view.step);
  const std::string error = MakeMap(view, boxes, head_dim, box_rows, rows + 1, &maps->longer[i]);
  return error.empty() ? MakeMap(view, boxes, head_dim, box_rows, rows, &maps->shorter[i]) : error;
}

}  // namespace

std::string MakeViewMaps(const std::vector<View>& views, int head_dim, int box_rows,
                         ViewMaps* maps) {
  std::string error;
  for (size_t i = 0; i < views.size() && error.empty(); ++i) {
    error = MakeMaps(views[i], kElements, head_dim, box_rows, i, maps);
  }
  return error;
}

std::string MakeStartMaps(const float* starts, const std::vector<View>& views, int box_rows,
                          ViewMaps* maps) {
  std::string error;
  for (size_t i = 0; i < views.size() && error.empty(); ++i) {
    const auto& [operand, step] = views[i];
    const int64_t heads = PairsOfHeads(operand.heads);
    const Operand of_starts = {starts,
                               operand.batch,
                               operand.tokens,
                               heads,
                               operand.tokens * heads * kStartColumns,
                               heads * kStartColumns,
                               kStartColumns};
    error = MakeMaps({of_starts, step}, kStarts, kStartColumns, box_rows, i, maps);
  }
  return error;
}

std::string MakeSumMaps(const std::vector<Gradient>& sums, const std::vector<View>& views,
                        int head_dim, int box_rows, SumMaps* maps) {
  std::string error;
  for (size_t i = 0; i < views.size() && error.empty(); ++i) {
    const auto& [operand, step] = views[i];
    maps->first_row[i] = static_cast<int32_t>(sums[i].first_token / step);
    maps->first_residue[i] = static_cast<int32_t>(sums[i].first_token % step);
    const Operand of_sums = {sums[i].data,       operand.batch,        sums[i].tokens,
                             operand.heads,      sums[i].batch_stride, sums[i].token_stride,
                             sums[i].head_stride};
    error = MakeMaps({of_sums, step}, kSums, head_dim, box_rows, i, &maps->views);
  }
  return error;
}

}  // namespace ringmaster::attention::kernels
