#pragma once

#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace ringmaster::cli {

// What of `text` a window shows: as many lines as it has, cut off where it ends.
std::string FitScreen(absl::string_view text, int columns, int rows);

// The whole terminal, drawn anew again and again; as it was before once this ends. Keys come one by
// one and are not shown, Ctrl-C among them, so that nothing ends it in the middle.
class Screen {
 public:
  // Whether standard input and output are a terminal.
  static bool Possible();

  Screen();
  ~Screen();
  Screen(const Screen&) = delete;
  Screen& operator=(const Screen&) = delete;

  void Draw(absl::string_view text);
  // Whether q or Ctrl-C was typed, or the terminal has gone, within `patience`.
  bool Quits(absl::Duration patience);

 private:
  struct Mode;
  std::unique_ptr<Mode> before_;
};

}  // namespace ringmaster::cli
