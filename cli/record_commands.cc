#include <cmath>
#include <fstream>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "cli/commands.h"
#include "cli/log_cursor.h"
#include "cli/output.h"
#include "cli/tensorboard_writer.h"
#include "proto/stream_header.h"

namespace ringmaster::cli {
namespace {

using v1::StepRecord;

struct LogOptions {
  std::string job;
  bool follow = false;
  int tail = 0;
  std::vector<int> ranks;
};

absl::Status ReadLogs(Client& client, CommandContext& context,
                      v1::StreamTrainingJobLogsRequest request, LogCursor& cursor, bool& answered) {
  if (cursor.Rewind()) request.clear_tail_lines();
  grpc::ClientContext call;
  auto reader = client.jobs().StreamTrainingJobLogs(&call, request);
  answered = AwaitStream(call, *reader);
  v1::StreamTrainingJobLogsResponse response;
  while (reader->Read(&response)) {
    answered = true;
    for (const auto& line : response.lines()) {
      if (!cursor.Admit(line)) continue;
      *context.out << "rank " << line.rank() << " " << ShortName(line.worker()) << " | "
                   << line.text() << "\n";
    }
    context.out->flush();
  }
  return client.Translate(reader->Finish());
}

absl::StatusOr<int> Logs(Client& client, CommandContext& context, const LogOptions& options) {
  v1::StreamTrainingJobLogsRequest request;
  request.set_name(client.JobName(options.job));
  request.set_follow(options.follow);
  request.set_tail_lines(options.tail);
  request.mutable_ranks()->Add(options.ranks.begin(), options.ranks.end());
  LogCursor cursor;
  RETURN_IF_ERROR(client.ReadStream(
      request.name(), options.follow, *context.err,
      [&](bool& answered) { return ReadLogs(client, context, request, cursor, answered); }));
  return kExitOk;
}

// Writes records in one format; the loss has 17 significant digits, so that equal text means equal
// bits.
class RecordSink {
 public:
  virtual ~RecordSink() = default;
  virtual void Write(const StepRecord& record) = 0;
};

std::string Exact(double value) { return absl::StrFormat("%.17g", value); }

class CsvSink : public RecordSink {
 public:
  explicit CsvSink(std::ostream& out) : out_(out) {
    out_ << "step,generation,loss,validation_loss,grad_norm,learning_rate,tokens,seconds,time\n";
  }
  void Write(const StepRecord& record) override {
    out_ << record.step() << "," << record.generation() << "," << Exact(record.loss()) << ","
         << (record.has_validation_loss() ? Exact(record.validation_loss()) : "") << ","
         << Exact(record.grad_norm()) << "," << Exact(record.learning_rate()) << ","
         << record.tokens() << "," << absl::StrFormat("%.6f", record.seconds()) << ","
         << absl::FormatTime(absl::RFC3339_full, FromProto(record.time()), absl::UTCTimeZone())
         << "\n";
  }

 private:
  std::ostream& out_;
};

class JsonLinesSink : public RecordSink {
 public:
  explicit JsonLinesSink(std::ostream& out) : out_(out) {}
  void Write(const StepRecord& record) override {
    out_ << "{\"step\":" << record.step() << ",\"generation\":" << record.generation()
         << ",\"loss\":" << Number(record.loss());
    if (record.has_validation_loss()) {
      out_ << ",\"validation_loss\":" << Number(record.validation_loss());
    }
    out_ << ",\"grad_norm\":" << Number(record.grad_norm())
         << ",\"learning_rate\":" << Number(record.learning_rate())
         << ",\"tokens\":" << record.tokens() << ",\"seconds\":" << Number(record.seconds())
         << ",\"time\":\""
         << absl::FormatTime(absl::RFC3339_full, FromProto(record.time()), absl::UTCTimeZone())
         << "\"}\n";
  }

 private:
  // JSON has no NaN or infinity.
  static std::string Number(double value) {
    return std::isfinite(value) ? Exact(value) : std::string("null");
  }
  std::ostream& out_;
};

class TensorboardSink : public RecordSink {
 public:
  TensorboardSink(std::ostream& out, absl::Time now)
      : writer_(&out, absl::ToDoubleSeconds(now - absl::UnixEpoch())) {}
  void Write(const StepRecord& record) override {
    std::vector<ScalarValue> values = {{"train/loss", record.loss()},
                                       {"train/grad_norm", record.grad_norm()},
                                       {"train/learning_rate", record.learning_rate()}};
    if (record.seconds() > 0) {
      values.push_back(
          {"train/tokens_per_second", static_cast<double>(record.tokens()) / record.seconds()});
    }
    if (record.has_validation_loss()) {
      values.push_back({"validation/loss", record.validation_loss()});
    }
    writer_.AddScalars(absl::ToDoubleSeconds(FromProto(record.time()) - absl::UnixEpoch()),
                       record.step(), values);
  }

 private:
  TensorboardWriter writer_;
};

struct MetricsOptions {
  std::string job;
  std::string format = "csv";
  std::string file;
  bool follow = false;
  int64_t start_step = 0;
};

using SinkMaker = std::function<std::unique_ptr<RecordSink>(std::ostream&)>;

absl::StatusOr<SinkMaker> MakerOf(const MetricsOptions& options, bool terminal) {
  if (options.format == "csv") {
    return [](std::ostream& out) { return std::make_unique<CsvSink>(out); };
  }
  if (options.format == "jsonl") {
    return [](std::ostream& out) { return std::make_unique<JsonLinesSink>(out); };
  }
  if (options.format != "tensorboard") {
    return absl::InvalidArgumentError(
        absl::StrCat("output \"", options.format, "\" is not one of csv, jsonl, tensorboard"));
  }
  if (options.file.empty() && terminal) {
    return absl::InvalidArgumentError(
        "a TensorBoard event file is binary: give --file events.out.tfevents.NAME");
  }
  return [](std::ostream& out) { return std::make_unique<TensorboardSink>(out, absl::Now()); };
}

// Where records go. A file is opened, and loses what it held, only once there is an answer: the job
// may not exist.
class RecordOutput {
 public:
  RecordOutput(SinkMaker make_sink, std::string file, std::ostream& standard_output)
      : make_sink_(std::move(make_sink)), path_(std::move(file)), out_(&standard_output) {}

  absl::Status Open() {
    if (sink_ != nullptr) return absl::OkStatus();
    if (!path_.empty()) {
      file_.open(path_, std::ios::binary | std::ios::trunc);
      if (!file_) {
        return absl::InvalidArgumentError(absl::StrCat(path_, ": cannot be opened for writing"));
      }
      out_ = &file_;
    }
    sink_ = make_sink_(*out_);
    return absl::OkStatus();
  }

  template <typename Records>
  absl::Status Write(const Records& records) {
    RETURN_IF_ERROR(Open());
    for (const StepRecord& record : records) sink_->Write(record);
    if (out_->flush()) return absl::OkStatus();
    return absl::DataLossError(
        absl::StrCat("writing ", path_.empty() ? "standard output" : path_, " failed"));
  }

 private:
  const SinkMaker make_sink_;
  const std::string path_;
  std::ofstream file_;
  std::ostream* out_;
  std::unique_ptr<RecordSink> sink_;
};

// Leaves in `request` where the next stream is to go on.
absl::Status ReadMetrics(Client& client, v1::StreamTrainingJobMetricsRequest& request,
                         RecordOutput& output, bool& answered) {
  grpc::ClientContext call;
  auto reader = client.jobs().StreamTrainingJobMetrics(&call, request);
  answered = AwaitStream(call, *reader);
  v1::StreamTrainingJobMetricsResponse response;
  while (reader->Read(&response)) {
    answered = true;
    if (absl::Status written = output.Write(response.records()); !written.ok()) {
      call.TryCancel();
      return written;
    }
    if (!response.records().empty()) {
      request.set_start_step(response.records().rbegin()->step() + 1);
    }
  }
  RETURN_IF_ERROR(client.Translate(reader->Finish()));
  return output.Write(std::vector<StepRecord>());  // There may have been none.
}

absl::StatusOr<int> Metrics(Client& client, CommandContext& context,
                            const MetricsOptions& options) {
  ASSIGN_OR_RETURN(SinkMaker make_sink, MakerOf(options, context.terminal));
  RecordOutput output(std::move(make_sink), options.file, *context.out);
  v1::StreamTrainingJobMetricsRequest request;
  request.set_name(client.JobName(options.job));
  request.set_follow(options.follow);
  request.set_start_step(options.start_step);
  RETURN_IF_ERROR(client.ReadStream(
      request.name(), options.follow, *context.err,
      [&](bool& answered) { return ReadMetrics(client, request, output, answered); }));
  return kExitOk;
}

void AddLogs(CLI::App& app, CommandContext& context) {
  auto options = std::make_shared<LogOptions>();
  CLI::App* command = app.add_subcommand("logs", "Print the ranks' logs");
  command->add_option("JOB", options->job, "Job id or full name")->required();
  command->add_flag("-f,--follow", options->follow, "Go on until the job ends");
  // To the service 0 means all lines.
  command->add_option("--tail", options->tail, "Only the last n lines of each rank")
      ->check(CLI::Range(1, std::numeric_limits<int>::max()));
  command->add_option("--rank", options->ranks, "Only these ranks")
      ->delimiter(',')
      ->check(CLI::Range(0, std::numeric_limits<int>::max()));
  command->callback([&context, options] {
    context.Run([&](Client& client) { return Logs(client, context, *options); });
  });
}

}  // namespace

void AddRecordCommands(CLI::App& app, CommandContext& context) {
  AddLogs(app, context);
  auto options = std::make_shared<MetricsOptions>();
  CLI::App* command = app.add_subcommand("metrics", "Print one record per step");
  command->add_option("JOB", options->job, "Job id or full name")->required();
  command->add_option("-o,--output", options->format, "csv, jsonl or tensorboard")
      ->capture_default_str();
  command->add_option("--file", options->file, "Write here instead of standard output");
  command->add_flag("-f,--follow", options->follow, "Go on until the job ends");
  command->add_option("--start-step", options->start_step, "First step wanted");
  command->callback([&context, options] {
    context.Run([&](Client& client) { return Metrics(client, context, *options); });
  });
}

}  // namespace ringmaster::cli
