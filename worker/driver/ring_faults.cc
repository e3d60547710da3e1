#include "worker/driver/ring_faults.h"

#include <string>

#include "absl/strings/str_format.h"
#include "worker/comm/accused_ranks.h"

namespace ringmaster::worker {
namespace {

v1::Fault::Kind KindOf(StepFault::Kind kind) {
  switch (kind) {
    case StepFault::Kind::kOutOfMemory:
      return v1::Fault::OUT_OF_MEMORY_ERROR;
    case StepFault::Kind::kException:
      return v1::Fault::EXCEPTION;
    case StepFault::Kind::kCommunication:
      return v1::Fault::COMMUNICATION_ERROR;
    case StepFault::Kind::kNotFinite:
      return v1::Fault::NOT_FINITE;
    case StepFault::Kind::kData:
      return v1::Fault::DATA_ERROR;
  }
  return v1::Fault::EXCEPTION;
}

void Accuse(const absl::Status& status, v1::Fault* fault) {
  for (const int rank : AccusedRanks(status)) {
    fault->add_accused_ranks(rank);
  }
}

}  // namespace

v1::Fault FormFault(const v1::RingRef& ring, FormStage stage, const absl::Status& status) {
  static constexpr const char* kWhere[] = {"spec",    "directory", "open",   "build",
                                           "connect", "restore",   "restore"};
  const char* where = kWhere[static_cast<int>(stage)];
  v1::Fault fault;
  fault.set_kind(v1::Fault::FORM_ERROR);
  fault.set_where(where);
  Accuse(status, &fault);
  fault.set_message(absl::StrFormat("ring generation %d rank %d: %s: %s", ring.generation(),
                                    ring.rank(), where, status.message()));
  const bool missing = absl::IsNotFound(status) || absl::IsDataLoss(status);
  const bool invalid = absl::IsInvalidArgument(status);
  const bool impossible = absl::IsFailedPrecondition(status);
  if (absl::IsResourceExhausted(status) && stage != FormStage::kDirectory) {
    fault.set_kind(v1::Fault::OUT_OF_MEMORY_ERROR);
  } else if (stage == FormStage::kBuild) {
    fault.set_kind(missing ? v1::Fault::DATA_ERROR : v1::Fault::FORM_ERROR);
    fault.set_deterministic(invalid || absl::IsNotFound(status));
  } else if (stage == FormStage::kLoad && absl::IsInternal(status)) {
    // LibTorch failed, not the files.
    fault.set_kind(v1::Fault::EXCEPTION);
  } else if (stage == FormStage::kLoad) {
    fault.set_kind(v1::Fault::CHECKPOINT_ERROR);
    // An error of reading may pass, and a file that this host does not see may be there for others;
    // when it does not pass, an older checkpoint is taken.
    fault.set_deterministic(absl::IsDataLoss(status) || invalid);
  } else if ((stage == FormStage::kConnect && !invalid) || stage == FormStage::kRestore) {
    // Addresses that do not fit together are none of a peer's failings.
    fault.set_kind(v1::Fault::COMMUNICATION_ERROR);
  } else {
    // The spec, the directory, the transport: they are what they are.
    fault.set_deterministic(invalid || impossible);
  }
  return fault;
}

v1::Fault FaultOf(const v1::RingRef& ring, const StepFault& step_fault) {
  v1::Fault fault;
  fault.set_kind(KindOf(step_fault.kind));
  fault.set_where(step_fault.where);
  fault.set_step(step_fault.step);
  Accuse(step_fault.status, &fault);
  fault.set_deterministic(step_fault.deterministic);
  fault.set_message(absl::StrFormat("ring generation %d rank %d: %s of step %d: %s",
                                    ring.generation(), ring.rank(), step_fault.where,
                                    step_fault.step, step_fault.status.message()));
  return fault;
}

}  // namespace ringmaster::worker
