#pragma once

#include <cstdint>
#include <string>

#include "ringmaster/v1/job_service.pb.h"

namespace ringmaster {

// A small job that is admitted: what it leaves out has defaults.
inline v1::TrainingJobSpec SmallSpec(int ring = 1, int64_t steps = 10) {
  v1::TrainingJobSpec spec;
  spec.mutable_model()->set_preset("tiny");
  spec.mutable_data()->add_paths("/data/*.txt");
  spec.mutable_data()->set_sequence_length(8192);
  spec.mutable_parallel()->set_ring_size(ring);
  spec.set_steps(steps);
  return spec;
}

inline v1::CreateTrainingJobRequest SmallRequest(const std::string& id, int ring = 1) {
  v1::CreateTrainingJobRequest request;
  request.set_training_job_id(id);
  *request.mutable_training_job()->mutable_spec() = SmallSpec(ring);
  return request;
}

}  // namespace ringmaster
