#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/comm/communicator.h"
#include "worker/data/sequence_source.h"
#include "worker/train/fault_injection.h"
#include "worker/train/job_config.h"
#include "worker/train/training_state.h"

namespace ringmaster::worker {

// Why a step, or a validation, did not come about. The kinds are those of v1::Fault.
struct StepFault {
  enum class Kind { kOutOfMemory, kException, kCommunication, kNotFinite, kData };
  Kind kind = Kind::kException;
  absl::Status status;
  // "step.forward.layer3", "step.reduce", "validation.data"...
  std::string where;
  int64_t step = 0;
  // Trying the same again must fail the same way: said of verdicts of the vote only. What one rank
  // met alone (a file that it cannot read) may be gone with that rank.
  bool deterministic = false;
};

// What a rank asks of all ranks in a step's vote; the highest of what was asked holds.
enum class Stop {
  kNone,
  // A rank leaves: the others keep their state for a ring without it.
  kLeave,
  // This step is the last one: a checkpoint of it is written, and the run has finished.
  kFinish,
};

struct StepResult {
  // Index of the step done; the state now holds step + 1 updates.
  int64_t step = 0;
  // Mean over the tokens of all ranks, nats.
  double loss = 0;
  // Global, before clipping.
  double grad_norm = 0;
  double learning_rate = 0;
  int64_t tokens = 0;
  double seconds = 0;
  // Attention payload that this rank sent; that the busiest one sent, and what the plan says it
  // must be.
  uint64_t sent_bytes = 0;
  uint64_t exchanged_bytes = 0;
  uint64_t planned_bytes = 0;
  // A rank's RequestStop was heard by all in this step's vote: all ranks stop here.
  Stop stop = Stop::kNone;
};

// One generation's run of a job on one rank: forward, backward, reduce, vote, update. Rank =
// replica x ring_size + ring rank. A step exists when all ranks agreed on it; only then is it
// applied.
//
// A rank that fails inside a step aborts the exchange at once, instead of feigning the rest of the
// step's messages: its peers' calls fail as soon as the transport tells them, at the latest at the
// hop deadline, and the ring forms again. What all ranks find out together (loss or gradients not
// finite, different data) needs no abort: every rank returns the same fault.
//
// Runs on one thread, the one that called Create; RequestStop may be called from any.
class Trainer {
 public:
  struct Ring {
    // Connected; borrowed. Aborted by the trainer when a step fails on this rank alone.
    Communicator* communicator = nullptr;
    int64_t generation = 0;
    FaultInjection fault;
  };

  // `state` is borrowed. Sets the calling thread's number of compute threads to config.threads.
  // InvalidArgument when the communicator has another size than the job's world; ResourceExhausted
  // when the gradient buffers do not fit.
  static absl::StatusOr<std::unique_ptr<Trainer>> Create(const JobConfig& config,
                                                         TrainingState* state, Ring ring,
                                                         SequenceSource source);
  ~Trainer();

  // One optimizer step. After an error, fault() tells more, the exchange is of no use, and the
  // state is as it was unless it is dirty.
  absl::StatusOr<StepResult> RunStep();

  // Mean loss in nats per token over the job's validation sequences, the same on all ranks. Every
  // rank calls it after the same step. REQUIRES: the source has validation data.
  absl::StatusOr<double> Validate();
  // Whether a validation is due now, that is after step() updates: the same on all ranks.
  bool ValidationDue() const;

  // Asks all ranks to stop after a step: see StepResult::stop. Of several requests the highest
  // holds.
  void RequestStop(Stop stop);

  // Of the last error. REQUIRES: RunStep or Validate failed.
  const StepFault& fault() const { return fault_; }

 private:
  struct Implementation;
  explicit Trainer(std::unique_ptr<Implementation> implementation);
  // Describes a failure and, when only this rank knows of it, aborts the communicator.
  absl::Status Finish(absl::Status status);

  std::unique_ptr<Implementation> implementation_;
  std::atomic<Stop> stop_{Stop::kNone};
  StepFault fault_;
};

}  // namespace ringmaster::worker
