#include "coordinator/page/tables.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "coordinator/core/times.h"
#include "coordinator/page/words.h"

namespace ringmaster::coordinator {
namespace {

Html ProgressCell(const v1::TrainingJob& job) {
  const std::string steps = absl::StrCat(job.status().progress().step());
  return Html::Element("progress", {{"value", steps}, {"max", absl::StrCat(job.spec().steps())}},
                       "") +
         absl::StrCat(" ", Count(job.status().progress().step()), " / ", Count(job.spec().steps()));
}

// Why it waits, or is in this state.
Html WhyCell(const v1::TrainingJobStatus& status) {
  if (!status.has_pending_reason()) return status.state_reason();
  const v1::PendingReason& reason = status.pending_reason();
  Html cell;
  if (reason.queue_position() > 0) {
    cell += Marked("wait", absl::StrCat("#", reason.queue_position(), " "));
  }
  return cell + reason.message();
}

Html RingCell(const v1::TrainingJob& job) {
  const v1::ParallelSpec& parallel = job.spec().parallel();
  const std::string shape = parallel.replicas() > 1
                                ? absl::StrCat(parallel.ring_size(), " × ", parallel.replicas())
                                : absl::StrCat(parallel.ring_size());
  if (job.status().ranks().empty()) return Marked("dim", shape);
  return Html(shape) + Marked("dim", absl::StrCat(" g", job.status().generation()));
}

Html Milliseconds(bool known, int64_t value) { return known ? Html(Count(value)) : Html(); }

Html WhereCell(const v1::Hardware& hardware) {
  return absl::StrJoin({hardware.host(), hardware.zone()}, hardware.zone().empty() ? "" : ", ");
}

Html CordonCell(const v1::Worker& worker) {
  if (!worker.has_cordon()) return {};
  const char* what = worker.drained()          ? "drained"
                     : worker.cordon().drain() ? "draining"
                                               : "cordoned";
  const std::string& reason = worker.cordon().reason();
  return Marked("wait", what) + (reason.empty() ? "" : ": ") + reason;
}

}  // namespace

Html JobsTable(const std::vector<const v1::TrainingJob*>& jobs, absl::Time now) {
  HtmlTable table({"job", "state", "progress", "#loss", "#tokens/s", "#left", "#ring",
                   "#recoveries", "queue", "#priority", "#age", "?why"});
  for (const v1::TrainingJob* listed : jobs) {
    const v1::TrainingJob& job = *listed;
    const v1::Progress& progress = job.status().progress();
    const bool stepped = progress.has_step_time();
    const bool running = job.status().state() == v1::TrainingJobStatus::RUNNING;
    table.Add({JobLink(job.name()), StateOf(job), ProgressCell(job),
               stepped ? absl::StrFormat("%.4f", progress.loss()) : "",
               stepped && running ? Rate(progress.tokens_per_second()) : "",
               running && progress.has_remaining() ? Span(FromProto(progress.remaining())) : "",
               RingCell(job), absl::StrCat(job.status().episodes_count()), job.spec().queue(),
               absl::StrCat(job.spec().priority()), Span(now - FromProto(job.create_time())),
               WhyCell(job.status())});
  }
  return Html::Element("div", {{"class", "jobs"}}, table.Done());
}

Html WorkersTable(const v1::ListWorkersResponse& workers) {
  HtmlTable table(
      {"worker", "state", "job", "#rank", "device", "where", "#heartbeat", "version", "?cordon"});
  for (const v1::Worker& worker : workers.workers()) {
    const bool busy = !worker.training_job().empty();
    table.Add({std::string(absl::StripPrefix(worker.name(), "workers/")), StateOf(worker),
               busy ? JobLink(worker.training_job()) : Html(),
               busy ? Html(absl::StrCat(worker.rank())) : Html(), worker.hardware().device_name(),
               WhereCell(worker.hardware()), Span(FromProto(worker.heartbeat_age())),
               Marked("dim", worker.version()), CordonCell(worker)});
  }
  return table.Done();
}

Html QueuesTable(const v1::ListQueuesResponse& queues) {
  HtmlTable table({"queue", "#waiting", "#placed", "#workers", "#quota", "#weight",
                   "#max. priority", "?projects"});
  for (const v1::Queue& queue : queues.queues()) {
    table.Add({std::string(absl::StripPrefix(queue.name(), "queues/")), Count(queue.pending_jobs()),
               Count(queue.admitted_jobs()), Count(queue.held_workers()),
               queue.max_workers() > 0 ? Html(Count(queue.max_workers())) : Marked("dim", "none"),
               absl::StrCat(queue.weight()), absl::StrCat(queue.max_priority()),
               queue.projects().empty()
                   ? Marked("dim", "all")
                   : Html(absl::StrJoin(
                         queue.projects(), ", ", [](std::string* text, absl::string_view project) {
                           absl::StrAppend(text, absl::StripPrefix(project, "projects/"));
                         }))});
  }
  return table.Done();
}

Html RecoveriesTable(const std::vector<Recovery>& recoveries, bool of_one_job, absl::Time now) {
  HtmlTable table({"seen", of_one_job ? "" : "job", "cause", "generation", "#detect ms", "#abort",
                   "#form", "#restore", "#first step", "#lost steps", "state from", "?what"});
  for (const auto& [job, episode] : recoveries) {
    table.Add({Ago(FromProto(episode->detect_time()), now),
               of_one_job ? Html() : JobLink(job->name()),
               Plain(v1::RecoveryEpisode::Cause_Name(episode->cause())),
               episode->finished()
                   ? Html(absl::StrCat(episode->from_generation(), " → ", episode->to_generation()))
                   : Marked("bad", absl::StrCat(episode->from_generation(), " → …")),
               Milliseconds(episode->has_detect_ms(), episode->detect_ms()),
               Milliseconds(episode->has_abort_ms(), episode->abort_ms()),
               Milliseconds(episode->has_form_ms(), episode->form_ms()),
               Milliseconds(episode->has_restore_ms(), episode->restore_ms()),
               Milliseconds(episode->has_first_step_ms(), episode->first_step_ms()),
               Count(episode->lost_steps()),
               episode->restore() == v1::RecoveryEpisode::RESTORE_UNSPECIFIED
                   ? Html()
                   : Html(Plain(v1::RecoveryEpisode::Restore_Name(episode->restore()))),
               episode->message()});
  }
  return table.Done();
}

}  // namespace ringmaster::coordinator
