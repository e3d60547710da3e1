#pragma once

#include <cuda_runtime_api.h>

#include <string>

namespace ringmaster::attention::kernels {

// Of a launch before: empty, or what CUDA says.
inline std::string LastError() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

}  // namespace ringmaster::attention::kernels
