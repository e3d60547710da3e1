#pragma once

#include <string>
#include <vector>

#include "ringmaster/v1/job_service.pb.h"

namespace ringmaster::coordinator {

// What is read of a file, however long it is.
inline constexpr size_t kStepSampleBytes = 1 << 20;

// Steps from all over a job's steps.jsonl, for a drawing: all of a short file, and of a long one
// runs of neighbours, evenly far from each other, with its beginning and end. The steps rise; what
// was done again is there as it was done last, as far as the samples tell: a step that is void
// because of lines between two samples may stay. What other jobs left in the file is skipped, and
// so are lines much shorter than a step's, and what is beyond 8,192 lines. Blocks on the disk.
std::vector<v1::StepRecord> SampleSteps(const std::string& path,
                                        const std::string& training_job_uid);

}  // namespace ringmaster::coordinator
