#include "base/command_line.h"

#include "absl/strings/string_view.h"

namespace ringmaster {

std::vector<const char*> SplitEmptyValues(int argc, char** argv) {
  std::vector<const char*> arguments;
  for (int i = 0; i < argc; ++i) {
    arguments.push_back(argv[i]);
    const absl::string_view text = argv[i];
    if (text == "--") {
      // What follows are no flags.
      arguments.insert(arguments.end(), argv + i + 1, argv + argc);
      break;
    }
    if (text.size() > 3 && text.substr(0, 2) == "--" && text.find('=') == text.size() - 1) {
      argv[i][text.size() - 1] = '\0';
      arguments.push_back("");
    }
  }
  return arguments;
}

}  // namespace ringmaster
