#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <functional>
#include <numeric>
#include <optional>
#include <string>

#include "tests/attention/kernels/device_array.h"

namespace ringmaster::attention::kernels {

// A GPU that comes to the power it may draw slows down, then swings for about so long until its
// clocks stay: by 15 % with passes that draw it all. Training runs longer.
constexpr double kSettleMilliseconds = 1000;

// Around one run.
class EventPair {
 public:
  EventPair() {
    Check(cudaEventCreate(&begin_));
    Check(cudaEventCreate(&end_));
  }
  ~EventPair() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }
  EventPair(const EventPair&) = delete;
  EventPair& operator=(const EventPair&) = delete;

  void Enqueue(const std::function<std::string()>& start) const {
    Check(cudaEventRecord(begin_));
    Check(start());
    Check(cudaEventRecord(end_));
  }
  float Wait() const {
    Check(cudaEventSynchronize(end_));
    float time = 0;
    Check(cudaEventElapsedTime(&time, begin_, end_));
    return time;
  }

 private:
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

// The median of the last ten runs, by events of the device, after those that settle it: as many as
// given, or as fill that time. Ten are enqueued one behind the other, as layers and steps of a
// training are: the host's part of a run counts where it takes longer than the device's, not where
// the device begins from idle. `start` enqueues the work and returns an error or nothing.
inline double Milliseconds(const std::function<std::string()>& start,
                           std::optional<int> warm_ups = std::nullopt) {
  const std::array<EventPair, 10> pairs;
  std::array<float, 10> times;
  const auto run_all = [&] {
    for (const EventPair& pair : pairs) pair.Enqueue(start);
    std::transform(pairs.begin(), pairs.end(), times.begin(),
                   [](const EventPair& pair) { return pair.Wait(); });
  };
  pairs[0].Enqueue(start);  // may wait for the host
  pairs[0].Wait();
  double settled = 0;
  for (int runs = 0; warm_ups.has_value() ? runs < *warm_ups : settled < kSettleMilliseconds;
       runs += static_cast<int>(times.size())) {
    run_all();
    settled += std::accumulate(times.begin(), times.end(), 0.0);
  }
  run_all();
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

}  // namespace ringmaster::attention::kernels
