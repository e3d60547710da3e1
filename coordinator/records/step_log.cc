#include "coordinator/records/step_log.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "coordinator/records/step_line.h"

namespace ringmaster::coordinator {
namespace {

// What is read at once, and more than a record can have.
constexpr size_t kBlockBytes = 1 << 20;

// The whole number behind `"name":`. To index a log of a million steps the lines are not parsed; a
// name cannot occur within a value, since no field of a record is free text.
std::optional<int64_t> NumberOf(absl::string_view line, absl::string_view name) {
  const size_t at = line.find(name);
  if (at == absl::string_view::npos) return std::nullopt;
  absl::string_view rest = line.substr(at + name.size());
  const size_t begin = rest.find_first_not_of(" :\"");
  if (begin == absl::string_view::npos) return std::nullopt;
  rest = rest.substr(begin);
  int64_t number = 0;
  if (!absl::SimpleAtoi(rest.substr(0, rest.find_first_not_of("0123456789")), &number))
    return std::nullopt;
  return number;
}

}  // namespace

bool StepLog::Void(const Line& line) const {
  return std::any_of(first_steps_.upper_bound(line.generation), first_steps_.end(),
                     [&](const auto& later) { return later.second <= line.step; });
}

void StepLog::Add(const Line& line) {
  if (Void(line)) return;
  auto [first, is_new] = first_steps_.emplace(line.generation, line.step);
  first->second = std::min(first->second, line.step);
  // This line makes void what lower generations did from its step on, and replaces its own
  // generation's.
  auto at = std::lower_bound(waiting_.begin(), waiting_.end(), line.step,
                             [](const Line& waiting, int64_t step) { return waiting.step < step; });
  while (at != waiting_.end() && (at->step == line.step || at->generation < line.generation)) {
    at = waiting_.erase(at);
  }
  if (line.step >= next_step_) waiting_.insert(at, line);
}

void StepLog::Scan() {
  if (!file_.is_open()) file_ = FileReader(path_);
  for (;;) {
    const absl::string_view block = file_.Read(scanned_, kBlockBytes);
    const size_t whole = block.rfind('\n');
    if (whole == absl::string_view::npos) {
      // The writer is within the last line, or the line is no record.
      if (block.size() < kBlockBytes) return;
      skipping_ = true;
      scanned_ += static_cast<int64_t>(block.size());
      continue;
    }
    for (size_t begin = std::exchange(skipping_, false) ? block.find('\n') + 1 : 0;
         begin <= whole;) {
      const size_t end = block.find('\n', begin);
      const absl::string_view text = block.substr(begin, end - begin);
      const std::optional<int64_t> step = NumberOf(text, "\"step\"");
      const std::optional<int64_t> generation = NumberOf(text, "\"generation\"");
      if (IsStepLineOf(text, training_job_uid_) && step.has_value() && generation.has_value()) {
        Add({.step = *step,
             .generation = *generation,
             .offset = scanned_ + static_cast<int64_t>(begin),
             .bytes = text.size()});
      }
      begin = end + 1;
    }
    scanned_ += static_cast<int64_t>(whole) + 1;
  }
}

std::vector<v1::StepRecord> StepLog::Next(size_t count) {
  Scan();
  std::vector<v1::StepRecord> records;
  while (!waiting_.empty() && records.size() < count) {
    const Line line = waiting_.front();
    waiting_.pop_front();
    next_step_ = line.step + 1;
    if (auto record = ParseStepLine(file_.Read(line.offset, line.bytes))) {
      records.push_back(*std::move(record));
    }
  }
  return records;
}

}  // namespace ringmaster::coordinator
