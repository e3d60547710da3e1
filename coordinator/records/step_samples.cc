#include "coordinator/records/step_samples.h"

#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "coordinator/records/file_reader.h"
#include "coordinator/records/step_line.h"

namespace ringmaster::coordinator {
namespace {

// Lines have about 250 bytes.
constexpr int64_t kWindowBytes = 4096;
constexpr int64_t kWindows = kStepSampleBytes / kWindowBytes;

// Parsing is what takes long, of lines that hold nothing: below a second for as many as these.
constexpr int kLinesMax = 8192;
constexpr int kLinesOfAWindow = kLinesMax / kWindows;
constexpr size_t kLineBytesMin = 40;

// Takes a line that stands behind all those in `records`.
void Add(v1::StepRecord record, std::vector<v1::StepRecord>& records) {
  // A later generation has begun at an earlier step: this one is void.
  if (!records.empty() && records.back().generation() > record.generation()) return;
  while (!records.empty() && records.back().step() >= record.step()) records.pop_back();
  records.push_back(std::move(record));
}

// The whole lines of a block, as far as there are not too many. Its first one may have begun before
// it.
void AddLines(absl::string_view block, bool from_the_middle, int lines_max,
              const std::string& training_job_uid, std::vector<v1::StepRecord>& records) {
  size_t begin = from_the_middle ? block.find('\n') : 0;
  if (begin == absl::string_view::npos) return;
  begin += from_the_middle ? 1 : 0;
  for (size_t end; (end = block.find('\n', begin)) != absl::string_view::npos; begin = end + 1) {
    const absl::string_view line = block.substr(begin, end - begin);
    if (line.size() < kLineBytesMin || !absl::StrContains(line, "\"step\"") ||
        !IsStepLineOf(line, training_job_uid)) {
      continue;
    }
    if (lines_max-- == 0) return;
    if (std::optional<v1::StepRecord> record = ParseStepLine(line)) {
      Add(*std::move(record), records);
    }
  }
}

}  // namespace

std::vector<v1::StepRecord> SampleSteps(const std::string& path,
                                        const std::string& training_job_uid) {
  FileReader file(path);
  std::vector<v1::StepRecord> records;
  const int64_t size = file.is_open() ? file.Size() : 0;
  if (size <= static_cast<int64_t>(kStepSampleBytes)) {
    AddLines(file.Read(0, kStepSampleBytes), false, kLinesMax, training_job_uid, records);
    return records;
  }
  const int64_t distance = (size - kWindowBytes) / (kWindows - 1);
  for (int64_t window = 0; window < kWindows; ++window) {
    // Counted from the end, so that the newest step is among them.
    const int64_t offset =
        window == 0 ? 0 : size - kWindowBytes - distance * (kWindows - 1 - window);
    AddLines(file.Read(offset, kWindowBytes), offset > 0, kLinesOfAWindow, training_job_uid,
             records);
  }
  return records;
}

}  // namespace ringmaster::coordinator
