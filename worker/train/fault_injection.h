#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace ringmaster::worker {

// Makes one rank fail at one place of one step, so that tests can prove what happens then. Off by
// default. As text (environment variable RINGMASTER_FAULT, read once by the worker's main):
//   rank=1,step=3,phase=backward,layer=2,kind=oom[,generation=1]
// phase: data, embedding, forward, loss, backward, reduce, vote, update
// kind:  throw (an exception), oom (device out of memory), nan (the gradients become NaN; phases up
//        to reduce), kill (SIGKILL to the own process)
// `layer` is meant for forward and backward and defaults to 0. `generation` restricts the fault to
// one generation, so that the step succeeds when it is tried again; without it every attempt fails.
struct FaultInjection {
  enum class Kind { kNone, kThrow, kOutOfMemory, kNotANumber, kKill };
  Kind kind = Kind::kNone;
  int rank = 0;
  int64_t step = 0;
  std::string phase;
  int64_t layer = 0;
  int64_t generation = 0;

  // "" gives kNone. InvalidArgument naming the unknown or missing key.
  static absl::StatusOr<FaultInjection> Parse(std::string_view text);
};

// Stands at every phase of a step of one rank and generation.
class FaultPoint {
 public:
  FaultPoint() = default;
  FaultPoint(const FaultInjection& fault, int rank, int64_t generation)
      : fault_(fault),
        armed_(fault.kind != FaultInjection::Kind::kNone && fault.rank == rank &&
               (fault.generation == 0 || fault.generation == generation)) {}

  // Throws, kills the process, or does nothing. True: the caller is to spoil its gradients.
  bool Reach(int64_t step, std::string_view phase, int64_t layer = 0) const;

 private:
  FaultInjection fault_;
  bool armed_ = false;
};

}  // namespace ringmaster::worker
