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

std::string MakeMap(const View& view, int head_dim, int box_rows, int64_t rows, CUtensorMap* map) {
  static const Encode encode = FindEncode();
  if (encode == nullptr) {
    return "the CUDA driver has no cuTensorMapEncodeTiled";
  }
  constexpr uint64_t kBytes = 2;
  const Operand& operand = view.operand;
  const auto size = [](int64_t value) {
    return static_cast<cuuint64_t>(std::max<int64_t>(value, 1));
  };
  const cuuint64_t sizes[] = {size(head_dim), size(operand.heads), size(view.step), size(rows),
                              size(operand.batch)};
  const cuuint64_t strides[] = {operand.head_stride * kBytes, operand.token_stride * kBytes,
                                view.step * operand.token_stride * kBytes,
                                operand.batch_stride * kBytes};
  const cuuint32_t box[] = {kColumns, 1, 1, static_cast<cuuint32_t>(box_rows), 1};
  const cuuint32_t every[] = {1, 1, 1, 1, 1};
  const CUresult result =
      encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 5, const_cast<void*>(operand.data), sizes,
             strides, box, every, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? "" : "cuTensorMapEncodeTiled failed: " + std::to_string(result);
}

}  // namespace

std::string MakeViewMaps(const View& view, int head_dim, int box_rows, ViewMaps* maps) {
  const int64_t rows = view.operand.tokens / view.step;
  maps->longer_residues = static_cast<int32_t>(view.operand.tokens % view.step);
  const std::string error = MakeMap(view, head_dim, box_rows, rows + 1, &maps->longer);
  return error.empty() ? MakeMap(view, head_dim, box_rows, rows, &maps->shorter) : error;
}

}  // namespace ringmaster::attention::kernels
