#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "ringmaster/v1/job_service.pb.h"

namespace ringmaster::cli {

// How far a job's logs have been read, so that a stream that broke can be read once more from the
// beginning without a line twice or one lost. A rank's place is the time of its last line, and how
// many lines of that time there were; a line later than all that were read is new in any case.
// Times that go back within one rank's log (another clock; two threads whose lines change places
// within a millisecond) can deceive it: some lines come twice, and where the place is rotated away
// too, lines of a clock that is behind are missed. Thread-compatible.
class LogCursor {
 public:
  // A new stream begins. True when it must have all lines, since some have been read already.
  bool Rewind();

  // Whether the line, the next of its rank, has not been read before.
  bool Admit(const v1::LogLine& line);

 private:
  struct Place {
    // Of the last line that was new, and the number of lines in a row that have it.
    std::string time;
    int64_t lines = 0;
    // The greatest so far.
    std::string latest;
    // In the stream under way: whether what was read comes again; the lines of `time` among that.
    bool behind = false;
    int64_t repeated = 0;
  };
  std::map<int, Place> places_;
};

}  // namespace ringmaster::cli
