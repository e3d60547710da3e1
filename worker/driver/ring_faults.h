#pragma once

#include "absl/status/status.h"
#include "ringmaster/v1/worker_service.pb.h"
#include "worker/train/trainer.h"

// What a rank tells the coordinator of a failure: where it was, whose it seems to be, and whether
// it would come again.
namespace ringmaster::worker {

// kLoad: restoring from files; kRestore: from ranks.
enum class FormStage { kSpec, kDirectory, kOpen, kBuild, kConnect, kRestore, kLoad };

// `ring` could not be formed.
v1::Fault FormFault(const v1::RingRef& ring, FormStage stage, const absl::Status& status);
// A step failed.
v1::Fault FaultOf(const v1::RingRef& ring, const StepFault& fault);

}  // namespace ringmaster::worker
