#include "coordinator/page/job_page.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "base/human_bytes.h"
#include "coordinator/core/times.h"
#include "coordinator/page/loss_plot.h"
#include "coordinator/page/tables.h"
#include "coordinator/page/words.h"
#include "google/protobuf/util/json_util.h"

namespace ringmaster::coordinator {
namespace {

Html Section(const char* title, const Html& content) {
  return Html::Element("section", {}, Html::Element("h2", {}, title) + content);
}

// Names and what they are, but for those that are nothing.
class Facts {
 public:
  void Add(const char* name, const Html& value) {
    if (value.empty()) return;
    list_ += Html::Element("dt", {}, name) + Html::Element("dd", {}, value);
  }
  Html Done() const { return Html::Element("dl", {}, list_); }

 private:
  Html list_;
};

Html StateFacts(const v1::TrainingJob& job) {
  Facts facts;
  const v1::TrainingJobStatus& status = job.status();
  facts.Add("state",
            StateOf(job) + (status.state_reason().empty() ? "" : ": ") + status.state_reason());
  if (status.failure_class() != v1::FAILURE_CLASS_UNSPECIFIED) {
    facts.Add("failure", Plain(v1::FailureClass_Name(status.failure_class())));
  }
  if (status.has_pending_reason()) {
    const v1::PendingReason& reason = status.pending_reason();
    facts.Add("waits", reason.message());
    if (reason.queue_position() > 0) facts.Add("in the queue", Count(reason.queue_position()));
  }
  facts.Add("queue", absl::StrCat(job.spec().queue(), ", priority ", job.spec().priority()));
  facts.Add("labels", absl::StrJoin(job.labels(), ", ", absl::PairFormatter("=")));
  facts.Add("directory", job.spec().directory());
  facts.Add("uid", job.uid());
  return facts.Done();
}

Html ProgressFacts(const v1::TrainingJob& job) {
  Facts facts;
  const v1::Progress& progress = job.status().progress();
  facts.Add("step", absl::StrCat(Count(progress.step()), " of ", Count(job.spec().steps())));
  if (!progress.has_step_time()) return facts.Done();
  facts.Add("loss", absl::StrFormat("%.6f", progress.loss()));
  if (progress.has_validation_loss()) {
    facts.Add("validation loss", absl::StrFormat("%.6f", progress.validation_loss()));
  }
  facts.Add("gradient norm", absl::StrFormat("%.4g", progress.grad_norm()));
  facts.Add("learning rate", absl::StrFormat("%.4g", progress.learning_rate()));
  facts.Add("tokens", absl::StrCat(Count(progress.tokens_processed()), ", ",
                                   Rate(progress.tokens_per_second()), " a second"));
  if (progress.has_remaining()) facts.Add("left", Span(FromProto(progress.remaining())));
  facts.Add("sent in a step",
            absl::StrCat(HumanBytes(static_cast<double>(progress.exchanged_bytes_per_step())),
                         " by the busiest rank"));
  return facts.Done();
}

Html TimeFacts(const v1::TrainingJob& job, absl::Time now) {
  Facts facts;
  facts.Add("created", Ago(FromProto(job.create_time()), now));
  if (job.has_start_time()) facts.Add("first ran", Ago(FromProto(job.start_time()), now));
  if (job.has_resume_time()) facts.Add("resumed", Ago(FromProto(job.resume_time()), now));
  if (job.has_end_time()) facts.Add("ended", Ago(FromProto(job.end_time()), now));
  if (job.status().has_run_duration()) {
    facts.Add("has run for", Span(FromProto(job.status().run_duration())));
  }
  return facts.Done();
}

Html RanksTable(const v1::TrainingJobStatus& status) {
  HtmlTable table({"#rank", "worker", "host", "process"});
  for (const v1::RankAssignment& rank : status.ranks()) {
    table.Add({absl::StrCat(rank.rank()), std::string(absl::StripPrefix(rank.worker(), "workers/")),
               rank.host(),
               rank.incarnation().empty() ? Marked("bad", "left")
                                          : Marked("dim", rank.incarnation().substr(0, 8))});
  }
  return table.Done();
}

Html CheckpointsTable(const v1::ListCheckpointsResponse& checkpoints, absl::Time now) {
  HtmlTable table({"#step", "#generation", "#size", "#files", "written", "?directory"});
  for (const v1::Checkpoint& checkpoint : checkpoints.checkpoints()) {
    table.Add({Count(checkpoint.step()), absl::StrCat(checkpoint.generation()),
               HumanBytes(static_cast<double>(checkpoint.bytes())), Count(checkpoint.shards_size()),
               Ago(FromProto(checkpoint.create_time()), now),
               checkpoint.directory() +
                   (checkpoint.set_aside() ? " (set aside: could not be read)" : "")});
  }
  return table.Done();
}

Html Recoveries(const v1::TrainingJob& job, absl::Time now) {
  std::vector<Recovery> newest_first;
  const auto& episodes = job.status().episodes();
  for (auto episode = episodes.rbegin(); episode != episodes.rend(); ++episode) {
    newest_first.push_back({&job, &*episode});
  }
  return RecoveriesTable(newest_first, /*of_one_job=*/true, now);
}

// A text that may be long, as far as a page has room for it.
Html LongText(absl::string_view text) {
  constexpr size_t kBytesShown = 64 << 10;
  if (text.size() <= kBytesShown) return Html::Element("pre", {}, text);
  size_t shown = kBytesShown;
  // Not within a character.
  while (shown > 0 && (static_cast<unsigned char>(text[shown]) & 0xc0) == 0x80) --shown;
  return Html::Element("pre", {},
                       Html(text.substr(0, shown)) + "\n… and " +
                           Count(static_cast<int64_t>(text.size() - shown)) + " bytes more");
}

Html SpecText(const v1::TrainingJobSpec& spec) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  options.preserve_proto_field_names = true;
  std::string json;
  (void)google::protobuf::util::MessageToJsonString(spec, &json, options);
  return LongText(json);
}

}  // namespace

std::string JobPage(const PageContext& context, const JobDetails& details) {
  const v1::TrainingJob& job = details.job;
  Html main = Html::Element("h1", {}, ShortJobName(job.name()));
  main += Html::Element("div", {{"class", "facts"}},
                        StateFacts(job) + ProgressFacts(job) + TimeFacts(job, context.now));
  main += Section("loss", details.steps.ok() ? LossPlot(*details.steps)
                                             : Html::Element("p", {{"class", "bad"}},
                                                             details.steps.status().message()));
  main += Section("ring", Html::Element("p", {{"class", "dim"}},
                                        absl::StrCat("generation ", job.status().generation())) +
                              RanksTable(job.status()));
  main += Section("recoveries",
                  Html::Element("p", {{"class", "dim"}},
                                absl::StrCat(Count(job.status().episodes_count()), " so far")) +
                      Recoveries(job, context.now));
  main += Section("checkpoints", CheckpointsTable(details.checkpoints, context.now));
  if (!job.status().resume_overrides().empty()) {
    main += Section("unlike the checkpoint it began with",
                    LongText(absl::StrJoin(job.status().resume_overrides(), "\n")));
  }
  main += Section("spec", SpecText(job.spec()));
  return WholePage(ShortJobName(job.name()), PageHeader(context), main);
}

}  // namespace ringmaster::coordinator
