#include "cli/screen.h"

#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <iostream>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/steady_now.h"

namespace ringmaster::cli {
namespace {

// Of xterm, and of whatever came after it.
constexpr char kEnter[] = "\033[?1049h\033[?25l";
constexpr char kLeave[] = "\033[?25h\033[?1049l";
constexpr char kHome[] = "\033[H";
constexpr char kEraseLine[] = "\033[K";
constexpr char kEraseBelow[] = "\033[J";
constexpr char kCtrlC = 3;

}  // namespace

struct Screen::Mode {
  termios settings = {};
};

std::string FitScreen(absl::string_view text, int columns, int rows) {
  std::vector<absl::string_view> lines = absl::StrSplit(text, '\n');
  if (lines.size() > static_cast<size_t>(rows)) lines.resize(rows);
  for (absl::string_view& line : lines) line = line.substr(0, columns);
  return absl::StrJoin(lines, "\n");
}

bool Screen::Possible() { return isatty(STDIN_FILENO) != 0 && isatty(STDOUT_FILENO) != 0; }

Screen::Screen() : before_(std::make_unique<Mode>()) {
  tcgetattr(STDIN_FILENO, &before_->settings);
  termios keys = before_->settings;
  keys.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO | ISIG);
  tcsetattr(STDIN_FILENO, TCSANOW, &keys);
  std::cout << kEnter << std::flush;
}

Screen::~Screen() {
  std::cout << kLeave << std::flush;
  tcsetattr(STDIN_FILENO, TCSANOW, &before_->settings);
}

void Screen::Draw(absl::string_view text) {
  winsize size = {};
  const bool known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  const std::string shown = FitScreen(text, known ? size.ws_col : 80, known ? size.ws_row : 24);
  const std::vector<absl::string_view> lines = absl::StrSplit(shown, '\n');
  std::cout << kHome << absl::StrJoin(lines, absl::StrCat(kEraseLine, "\n")) << kEraseLine
            << kEraseBelow << std::flush;
}

bool Screen::Quits(absl::Duration patience) {
  const absl::Time end = SteadyNow() + patience;
  for (;;) {
    const int64_t left = absl::ToInt64Milliseconds(end - SteadyNow());
    pollfd keys = {.fd = STDIN_FILENO, .events = POLLIN, .revents = 0};
    if (left <= 0 || poll(&keys, 1, static_cast<int>(left)) == 0) return false;
    // A signal, such as that of a window's new size, is a reason to draw.
    if (keys.revents == 0) return false;
    char key = 0;
    if (read(STDIN_FILENO, &key, 1) <= 0 || key == 'q' || key == kCtrlC) return true;
  }
}

}  // namespace ringmaster::cli
