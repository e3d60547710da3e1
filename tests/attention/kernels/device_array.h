#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
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

inline uint16_t ToBf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  bits += 0x7FFF + (bits >> 16 & 1);
  return static_cast<uint16_t>(bits >> 16);
}

inline float FromBf16(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

// Normal numbers. After a million they repeat: drawing all of a benchmark's would take longer than
// what it measures.
inline std::vector<uint16_t> RandomBf16(int64_t count, std::mt19937_64* random) {
  constexpr size_t kDrawn = size_t{1} << 20;
  std::normal_distribution<float> normal;
  std::vector<uint16_t> values(count);
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = i < kDrawn ? ToBf16(normal(*random)) : values[i - kDrawn];
  }
  return values;
}

}  // namespace ringmaster::attention::kernels
