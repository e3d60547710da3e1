#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <vector>

// Memory of a device and what is put there. Errors of CUDA are thrown.
namespace ringmaster::attention::kernels {

inline void Check(const std::string& error) {
  if (!error.empty()) {
    throw std::runtime_error(error);
  }
}
inline void Check(cudaError_t error) {
  Check(error == cudaSuccess ? std::string() : cudaGetErrorString(error));
}

template <typename T>
class DeviceArray {
 public:
  // Zeros.
  explicit DeviceArray(size_t size) : size_(size) {
    Check(cudaMalloc(&data_, std::max<size_t>(1, size_) * sizeof(T)));
    Check(cudaMemset(data_, 0, size_ * sizeof(T)));
  }
  explicit DeviceArray(const std::vector<T>& host) : DeviceArray(host.size()) {
    Check(cudaMemcpy(data_, host.data(), size_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return static_cast<T*>(data_); }
  std::vector<T> Host() const {
    std::vector<T> host(size_);
    Check(cudaMemcpy(host.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return host;
  }

 private:
  void* data_ = nullptr;
  const size_t size_;
};

}  // namespace ringmaster::attention::kernels
