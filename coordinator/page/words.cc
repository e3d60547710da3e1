#include "coordinator/page/words.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"

namespace ringmaster::coordinator {
namespace {

const char* ClassOf(v1::TrainingJobStatus::State state) {
  using Status = v1::TrainingJobStatus;
  switch (state) {
    case Status::STARTING:
    case Status::RUNNING:
      return "busy";
    case Status::RECOVERING:
    case Status::FAILED:
      return "bad";
    case Status::SUCCEEDED:
      return "good";
    case Status::QUEUED:
    case Status::PAUSING:
    case Status::PAUSED:
      return "wait";
    default:
      return "dim";
  }
}

const char* ClassOf(v1::Worker::State state) {
  switch (state) {
    case v1::Worker::RESERVED:
    case v1::Worker::ACTIVE:
      return "busy";
    case v1::Worker::SUSPECT:
      return "wait";
    case v1::Worker::LOST:
      return "bad";
    default:
      return "dim";
  }
}

}  // namespace

std::string Count(int64_t number) {
  const std::string digits = absl::StrCat(number);
  std::string text;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0 && digits[i - 1] != '-') text += ',';
    text += digits[i];
  }
  return text;
}

std::string Rate(double number) {
  // Beyond, it is no rate of anything.
  if (!(std::abs(number) < 1e15)) return "";
  if (number >= 1e6) return absl::StrFormat("%.2fM", number / 1e6);
  if (number >= 1e4) return absl::StrFormat("%.1fk", number / 1e3);
  return Count(std::llround(number));
}

std::string Span(absl::Duration duration) {
  const double seconds = absl::ToDoubleSeconds(duration);
  if (seconds < 90) return absl::StrFormat("%.0f s", std::max(0.0, seconds));
  if (seconds < 90 * 60) return absl::StrFormat("%.0f min", seconds / 60);
  if (seconds < 36 * 3600) return absl::StrFormat("%.1f h", seconds / 3600);
  return absl::StrFormat("%.1f d", seconds / 86400);
}

std::string Utc(absl::Time time) {
  return absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", time, absl::UTCTimeZone());
}

Html Ago(absl::Time time, absl::Time now) {
  return Html::Element("time", {{"title", Utc(time)}}, absl::StrCat(Span(now - time), " ago"));
}

std::string Plain(const std::string& enum_name) {
  return absl::StrReplaceAll(absl::AsciiStrToLower(enum_name), {{"_", " "}});
}

Html StateOf(const v1::TrainingJob& job) {
  const auto state = job.status().state();
  return Marked(ClassOf(state), Plain(v1::TrainingJobStatus::State_Name(state)));
}

Html StateOf(const v1::Worker& worker) {
  return Marked(ClassOf(worker.state()), Plain(v1::Worker::State_Name(worker.state())));
}

std::string ShortJobName(const std::string& name) {
  return absl::StrReplaceAll(absl::StripPrefix(name, "projects/"), {{"/trainingJobs/", "/"}});
}

Html JobLink(const std::string& name) {
  return Link(absl::StrCat("/jobs/", ShortJobName(name)), ShortJobName(name));
}

}  // namespace ringmaster::coordinator
