#pragma once

#include <cstdint>
#include <string>

#include "absl/time/time.h"
#include "coordinator/page/html.h"
#include "ringmaster/v1/cluster_service.pb.h"
#include "ringmaster/v1/job.pb.h"

// How the pages say numbers, times and states.
namespace ringmaster::coordinator {

// "12,345".
std::string Count(int64_t number);
// Of a rate: "9,500", "12.3k", "4.56M".
std::string Rate(double number);
// "41 s", "12 min", "3.4 h", "5.1 d".
std::string Span(absl::Duration duration);
// A <time>: how long before `now`; the date and time, UTC, when it is pointed at.
Html Ago(absl::Time time, absl::Time now);
// "2026-01-31 12:00:00 UTC".
std::string Utc(absl::Time time);

// In lower case and, where it matters, in a colour.
Html StateOf(const v1::TrainingJob& job);
Html StateOf(const v1::Worker& worker);
// An enum's name for people: "worker exit" of WORKER_EXIT.
std::string Plain(const std::string& enum_name);

// "vision/bible" of "projects/vision/trainingJobs/bible".
std::string ShortJobName(const std::string& name);
// A link to the job's page.
Html JobLink(const std::string& name);

}  // namespace ringmaster::coordinator
