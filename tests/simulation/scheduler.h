#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <random>
#include <utility>

#include "absl/time/time.h"

namespace ringmaster::simulation {

// Virtual time: things happen in the order of their times, equal ones in the order in which they
// were planned. One seed decides everything.
class Scheduler {
 public:
  explicit Scheduler(uint64_t seed) : random_(seed) {}

  absl::Time now() const { return now_; }
  void At(absl::Time when, std::function<void()> what) {
    planned_.emplace(std::pair(std::max(when, now_), ++sequence_), std::move(what));
  }
  void After(absl::Duration delay, std::function<void()> what) {
    At(now_ + delay, std::move(what));
  }
  // False when nothing is planned before `end`.
  bool RunNext(absl::Time end) {
    if (planned_.empty() || planned_.begin()->first.first > end) return false;
    const auto first = planned_.begin();
    now_ = first->first.first;
    const std::function<void()> what = std::move(first->second);
    planned_.erase(first);
    what();
    return true;
  }

  // Uniform in [low, high].
  int64_t Int(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random_() % static_cast<uint64_t>(high - low + 1));
  }
  bool Chance(double probability) {
    return static_cast<double>(random_() >> 11) * 0x1p-53 < probability;
  }
  absl::Duration Ms(int64_t low, int64_t high) {
    return absl::Microseconds(Int(low * 1000, high * 1000));
  }
  uint64_t Bits() { return random_(); }

 private:
  std::mt19937_64 random_;
  absl::Time now_ = absl::FromUnixSeconds(1'700'000'000);
  uint64_t sequence_ = 0;
  std::map<std::pair<absl::Time, uint64_t>, std::function<void()>> planned_;
};

}  // namespace ringmaster::simulation
