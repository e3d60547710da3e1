#include "cli/log_cursor.h"

#include <utility>

namespace ringmaster::cli {
namespace {

// Of a line as docs/files.md has it, text that orders like time.
std::string TimeOf(const std::string& text) { return text.substr(0, text.find(' ')); }

}  // namespace

bool LogCursor::Rewind() {
  for (auto& [rank, place] : places_) {
    place.behind = true;
    place.repeated = 0;
    place.begun = false;
  }
  return !places_.empty();
}

bool LogCursor::Admit(const v1::LogLine& line) {
  Place& place = places_[line.rank()];
  const std::string time = TimeOf(line.text());
  const bool first = !std::exchange(place.begun, true);
  if (place.behind) {
    if (time == place.time && place.repeated < place.lines) {
      ++place.repeated;
      return false;
    }
    // Where the oldest line is a later one, those that were read have been rotated away.
    const bool rotated = first && time > place.time;
    if (place.repeated == 0 && !rotated) return false;
    place.behind = false;
  }
  if (time != place.time) {
    place.time = time;
    place.lines = 0;
  }
  ++place.lines;
  return true;
}

}  // namespace ringmaster::cli
