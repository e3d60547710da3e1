#pragma once

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

namespace ringmaster::cli {

struct ScalarValue {
  std::string tag;
  double value = 0;
};

// Writes a TensorBoard event file: records of u64 length, masked CRC-32C of the length, an Event
// message, masked CRC-32C of it, as tensorflow/core/lib/io/record_writer describes. `out` is
// borrowed. Thread-compatible.
class TensorboardWriter {
 public:
  // Writes the version record that every event file starts with.
  TensorboardWriter(std::ostream* out, double wall_time_seconds);

  void AddScalars(double wall_time_seconds, int64_t step, const std::vector<ScalarValue>& values);

 private:
  void WriteRecord(const std::string& event);

  std::ostream* const out_;
};

// CRC-32C (Castagnoli) of `bytes`.
uint32_t Crc32c(const std::string& bytes);

}  // namespace ringmaster::cli
