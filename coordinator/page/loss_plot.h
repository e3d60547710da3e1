#pragma once

#include <vector>

#include "coordinator/page/html.h"
#include "ringmaster/v1/job_service.pb.h"

namespace ringmaster::coordinator {

// What is drawn of some neighbouring steps.
struct LossPoint {
  double step = 0;
  double mean = 0;
  double low = 0;
  double high = 0;
};

// At most `count` points of records with rising steps; those with a number that no step or loss is
// are left out.
std::vector<LossPoint> LossPoints(const std::vector<v1::StepRecord>& records, size_t count);

// A drawing of the loss over the steps: the mean line, the spread around it, and dots for
// validations. A sentence in its place when there is nothing to draw.
Html LossPlot(const std::vector<v1::StepRecord>& records);

}  // namespace ringmaster::coordinator
