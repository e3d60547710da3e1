#include "base/read_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "absl/cleanup/cleanup.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace ringmaster {

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  const auto failed = [&path] {
    return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot be read"));
  };
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) {
    return failed();
  }
  const absl::Cleanup closer = [file] { close(file); };
  std::string text;
  std::array<char, 16 << 10> block;
  while (true) {
    const ssize_t got = read(file, block.data(), block.size());
    if (got < 0 && errno != EINTR) {
      return failed();
    }
    if (got == 0) {
      return text;
    }
    text.append(block.data(), got > 0 ? static_cast<size_t>(got) : 0);
  }
}

}  // namespace ringmaster
