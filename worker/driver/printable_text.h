#pragma once

#include <cstddef>
#include <string>

namespace ringmaster::worker {

// Makes bytes safe to show as they come: valid UTF-8, line feeds and tabs pass, any other byte
// becomes "\xNN". So a terminal gets no control codes, and whoever reads the output gets text.
class PrintableText {
 public:
  // What can be shown now that this byte came; the beginning of a character waits for its end.
  std::string Feed(unsigned char byte);
  // What still waits.
  std::string Finish();

 private:
  std::string waiting_;
  size_t wanted_ = 0;
};

}  // namespace ringmaster::worker
