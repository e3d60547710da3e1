#pragma once

#include <string>

#include "coordinator/core/state.h"

namespace ringmaster::coordinator {

// A worker's words, as much of them as is kept: jobs are stored and sent whole, many times.
std::string Shortened(const std::string& text);

v1::RecoveryEpisode::Cause CauseOf(v1::Fault::Kind kind);

// Faults of the work itself, which the same work may bring again; not those of a peer's loss.
bool MayRepeat(v1::Fault::Kind kind);

// Whether trying again makes sense.
struct FaultVerdict {
  bool ends_job = false;
  v1::FailureClass failure_class = v1::FAILURE_CLASS_UNSPECIFIED;
  // Appended to the fault's message.
  std::string remark;
};

// Remembers in the job what is needed to see that a fault repeats itself. All ranks may tell of one
// fault: it counts once in a generation.
FaultVerdict Judge(Job& job, const v1::Fault& fault);

// Remembers which checkpoint could not be restored, once in a generation. A newcomer that is to
// blame takes no job its last one: others may read it.
void NoteUnreadable(const State& state, Job& job, const v1::Fault& fault, bool newcomer);
// A checkpoint that may be tried (again).
bool IsTrusted(const Job& job, const v1::Checkpoint& checkpoint);

}  // namespace ringmaster::coordinator
