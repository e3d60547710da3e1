#pragma once

#include <cstdint>
#include <string>

namespace ringmaster::coordinator {

// Ids that differ with near certainty, from a seed. Not secrets.
class IdSource {
 public:
  explicit IdSource(uint64_t seed) : state_(seed) {}

  // A version 4 UUID in lower case.
  std::string Uuid();
  // "job-" and 10 characters of [a-z0-9].
  std::string JobId();

 private:
  uint64_t Next();

  uint64_t state_;
};

}  // namespace ringmaster::coordinator
