#include "cli/log_cursor.h"

#include <algorithm>

namespace ringmaster::cli {
namespace {

// Of a line as docs/files.md has it, text that orders like time.
std::string TimeOf(const std::string& text) { return text.substr(0, text.find(' ')); }

}  // namespace

bool LogCursor::Rewind() {
  for (auto& [rank, place] : places_) {
    place.behind = true;
    place.repeated = 0;
  }
  return !places_.empty();
}

bool LogCursor::Admit(const v1::LogLine& line) {
  Place& place = places_[line.rank()];
  const std::string time = TimeOf(line.text());
  if (place.behind) {
    if (time == place.time && place.repeated < place.lines) {
      ++place.repeated;
      return false;
    }
    // Without a line of its time, the place may have been rotated away.
    if (place.repeated == 0 && time <= place.latest) return false;
    place.behind = false;
  }
  if (time != place.time) {
    place.time = time;
    place.lines = 0;
  }
  ++place.lines;
  place.latest = std::max(place.latest, time);
  return true;
}

}  // namespace ringmaster::cli
