#include "coordinator/services/status_page.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "base/version.h"

namespace ringmaster::coordinator {
namespace {

constexpr char kHead[] =
    "<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content=5>"
    "<title>Ringmaster</title><style>body{font:15px sans-serif;margin:2em;max-width:70em}"
    "table{border-collapse:collapse}td,th{padding:.2em .8em;text-align:left;border-bottom:1px "
    "solid #ccc}"
    "</style><h1>Ringmaster coordinator</h1>";

std::string Escaped(absl::string_view text) {
  return absl::StrReplaceAll(text,
                             {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}});
}

std::string TableRow(std::initializer_list<std::string> cells) {
  std::string row = "<tr>";
  for (const std::string& cell : cells) absl::StrAppend(&row, "<td>", Escaped(cell), "</td>");
  return row + "</tr>";
}

std::string JobRow(const v1::TrainingJob& job) {
  const v1::TrainingJobStatus& status = job.status();
  const v1::Progress& progress = status.progress();
  const bool stepped = progress.has_step_time();
  return TableRow(
      {job.name(), absl::AsciiStrToLower(v1::TrainingJobStatus::State_Name(status.state())),
       absl::StrCat(progress.step(), " / ", job.spec().steps()),
       stepped ? absl::StrFormat("%.4f", progress.loss()) : "",
       stepped ? absl::StrFormat("%.0f", progress.tokens_per_second()) : "",
       absl::StrCat(status.generation()), absl::StrCat(status.ranks_size()),
       absl::StrCat(status.episodes_count()),
       status.has_pending_reason() ? status.pending_reason().message() : status.state_reason()});
}

}  // namespace

std::string StatusPage(const CoreSnapshot& snapshot) {
  std::string page = kHead;
  absl::StrAppend(
      &page, "<p>Version ", Version(), " (", Commit(), "), epoch ", snapshot.epoch,
      snapshot.draining ? ", <b>draining</b>" : "",
      snapshot.store_full ? ", <b>the store is full: submissions are refused</b>" : "",
      ". <a href=/metrics>Metrics</a></p><h2>Workers</h2><table><tr><th>state<th>workers</tr>");
  for (const auto& [state, count] : snapshot.workers) {
    absl::StrAppend(&page, TableRow({absl::AsciiStrToLower(v1::Worker::State_Name(state)),
                                     absl::StrCat(count)}));
  }
  absl::StrAppend(&page, "</table><h2>Jobs</h2><table><tr><th>state<th>jobs</tr>");
  for (const auto& [state, count] : snapshot.jobs) {
    absl::StrAppend(&page,
                    TableRow({absl::AsciiStrToLower(v1::TrainingJobStatus::State_Name(state)),
                              absl::StrCat(count)}));
  }
  absl::StrAppend(
      &page,
      "</table><h2>Unfinished jobs, oldest first</h2><table><tr><th>name<th>state<th>step<th>loss"
      "<th>tokens/s<th>generation<th>ring<th>recoveries<th>reason</tr>");
  const size_t shown = std::min(CoreSnapshot::kListedJobs, snapshot.active_jobs.size());
  for (size_t i = 0; i < shown; ++i) absl::StrAppend(&page, JobRow(snapshot.active_jobs[i]));
  absl::StrAppend(&page, "</table>");
  const int64_t more = snapshot.unfinished_jobs - static_cast<int64_t>(shown);
  if (more > 0) {
    absl::StrAppend(&page, "<p>and ", more, " more: see ringctl list</p>");
  }
  return page;
}

}  // namespace ringmaster::coordinator
