#include "coordinator/records/rank_log.h"

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace ringmaster::coordinator {
namespace {

constexpr size_t kBlockBytes = 64 << 10;
// Longer lines come in pieces.
constexpr size_t kLineBytesMax = 32 << 10;
constexpr size_t kTimeBytes = 24;  // 2026-01-31T12:00:00.123Z

bool StartsWithTime(absl::string_view line) {
  return line.size() > kTimeBytes && line[4] == '-' && line[10] == 'T' &&
         line[kTimeBytes - 1] == 'Z';
}

// proto3 strings are UTF-8; what is not becomes '?'.
std::string Utf8(absl::string_view text) {
  std::string result(text);
  for (size_t i = 0; i < result.size();) {
    const auto byte = static_cast<unsigned char>(result[i]);
    const size_t length = byte < 0x80       ? 1
                          : byte >> 5 == 6  ? 2
                          : byte >> 4 == 14 ? 3
                          : byte >> 3 == 30 ? 4
                                            : 0;
    bool valid = length > 0 && i + length <= result.size();
    for (size_t k = 1; valid && k < length; ++k) {
      valid = (static_cast<unsigned char>(result[i + k]) & 0xC0) == 0x80;
    }
    // Overlong forms, surrogates, and beyond U+10FFFF.
    const auto second = valid && length > 1 ? static_cast<unsigned char>(result[i + 1]) : 0;
    valid = valid && !(length == 2 && byte < 0xC2) && !(byte == 0xE0 && second < 0xA0) &&
            !(byte == 0xED && second > 0x9F) && !(byte == 0xF0 && second < 0x90) &&
            !(byte > 0xF4) && !(byte == 0xF4 && second > 0x8F);
    if (!valid) result[i] = '?';
    i += valid ? length : 1;
  }
  return result;
}

}  // namespace

RankLog::RankLog(std::string logs_directory, int rank, int tail_lines)
    : directory_(std::move(logs_directory)), rank_(rank) {
  file_ = FileReader(Path(OldestAge()));
  if (tail_lines > 0) SkipToTail(tail_lines);
}

std::string RankLog::Path(int age) const {
  return age == 0 ? absl::StrCat(directory_, "/rank-", rank_, ".log")
                  : absl::StrCat(directory_, "/rank-", rank_, ".", age, ".log");
}

int RankLog::OldestAge() const {
  std::error_code error;
  int age = 0;
  while (std::filesystem::exists(Path(age + 1), error)) ++age;
  return age;
}

void RankLog::SkipToTail(int lines) {
  // The line feed that ends the last complete line is not the beginning of one: hence one more.
  int64_t feeds = static_cast<int64_t>(lines) + 1;
  const int oldest = OldestAge();
  for (int age = 0; age <= oldest; ++age) {
    FileReader file(Path(age));
    int64_t end = file.Size();
    while (end > 0) {
      const int64_t begin = std::max<int64_t>(0, end - static_cast<int64_t>(kBlockBytes));
      const absl::string_view block = file.Read(begin, static_cast<size_t>(end - begin));
      for (size_t at = block.size(); at-- > 0;) {
        if (block[at] == '\n' && --feeds == 0) {
          offset_ = begin + static_cast<int64_t>(at) + 1;
          file_ = std::move(file);
          return;
        }
      }
      end = begin;
    }
  }
}

bool RankLog::OpenNext() {
  if (!file_.is_open()) {
    file_ = FileReader(Path(OldestAge()));
    return file_.is_open();
  }
  const int oldest = OldestAge();
  for (int age = 0; age <= oldest; ++age) {
    FileReader file(Path(age));
    if (file.inode() != file_.inode()) continue;
    if (age == 0) return false;
    // It was rotated after it was read last: only now is it known to be whole.
    if (absl::StrContains(file_.Read(offset_, kBlockBytes), '\n')) return true;
    file_ = FileReader(Path(age - 1));
    offset_ = 0;
    return true;
  }
  // Rotated away while it was read: go on with what is left.
  file_ = FileReader(Path(oldest));
  offset_ = 0;
  return file_.is_open();
}

bool RankLog::Fill() {
  for (;;) {
    const absl::string_view block = file_.Read(offset_, kBlockBytes);
    const size_t whole = block.rfind('\n');
    if (whole == absl::string_view::npos) {
      if (block.size() >= kLineBytesMax) {
        lines_.emplace_back(block.substr(0, kLineBytesMax));
        offset_ += kLineBytesMax;
        return true;
      }
      if (!OpenNext()) return false;
      continue;
    }
    for (const absl::string_view line : absl::StrSplit(block.substr(0, whole), '\n')) {
      lines_.emplace_back(line);
    }
    offset_ += static_cast<int64_t>(whole) + 1;
    return true;
  }
}

const v1::LogLine* RankLog::Peek() {
  if (!next_.has_value() && (!lines_.empty() || Fill())) Describe();
  return next_.has_value() ? &*next_ : nullptr;
}

void RankLog::Describe() {
  const std::string line = std::move(lines_.front());
  lines_.pop_front();
  next_.emplace();
  next_->set_rank(rank_);
  next_->set_text(Utf8(line));
  if (!StartsWithTime(line)) return;
  time_ = line.substr(0, kTimeBytes);
  const std::vector<std::string> words = absl::StrSplit(next_->text(), absl::MaxSplits(' ', 3));
  if (words.size() > 2) next_->set_worker(words[2]);
}

v1::LogLine RankLog::Pop() {
  v1::LogLine line = std::move(*next_);
  next_.reset();
  return line;
}

JobLogs::JobLogs(const std::string& job_directory, std::vector<int> ranks, int tail_lines)
    : logs_directory_(job_directory + "/logs"),
      wanted_(std::move(ranks)),
      tail_lines_(tail_lines) {}

void JobLogs::FindRanks() {
  std::error_code error;
  for (std::filesystem::directory_iterator it(logs_directory_, error), end; !error && it != end;
       it.increment(error)) {
    const std::string name = it->path().filename().string();
    absl::string_view number = name;
    int rank = 0;
    if (!absl::ConsumePrefix(&number, "rank-") || !absl::ConsumeSuffix(&number, ".log") ||
        !absl::SimpleAtoi(number, &rank) || rank < 0 || logs_.contains(rank)) {
      continue;
    }
    if (!wanted_.empty() && std::find(wanted_.begin(), wanted_.end(), rank) == wanted_.end())
      continue;
    logs_.emplace(rank, RankLog(logs_directory_, rank, tail_lines_));
  }
}

std::vector<v1::LogLine> JobLogs::Next(size_t count, size_t bytes) {
  FindRanks();
  std::vector<RankLog*> ready;
  for (auto& [rank, log] : logs_) {
    if (log.Peek() != nullptr) ready.push_back(&log);
  }
  std::vector<v1::LogLine> lines;
  size_t size = 0;
  while (lines.size() < count && size < bytes && !ready.empty()) {
    const auto earliest = std::min_element(
        ready.begin(), ready.end(), [](RankLog* a, RankLog* b) { return a->time() < b->time(); });
    lines.push_back((*earliest)->Pop());
    size += lines.back().ByteSizeLong();
    if ((*earliest)->Peek() == nullptr) ready.erase(earliest);
  }
  return lines;
}

}  // namespace ringmaster::coordinator
