#include "coordinator/store/data_directory.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace ringmaster::coordinator {
namespace {

absl::Status SystemError(absl::string_view what, const std::string& path, int error) {
  const std::string message = absl::StrCat("store: ", what, " ", path, ": ", std::strerror(error));
  return error == ENOSPC || error == EDQUOT ? absl::ResourceExhaustedError(message)
                                            : absl::InternalError(message);
}

std::string ReadShort(int file) {
  char text[32] = {};
  const ssize_t size = pread(file, text, sizeof(text) - 1, 0);
  return std::string(absl::StripAsciiWhitespace(absl::string_view(text, size > 0 ? size : 0)));
}

}  // namespace

absl::StatusOr<std::unique_ptr<DataDirectory>> DataDirectory::Open(const std::string& path) {
  std::error_code error;
  const std::filesystem::path parent = std::filesystem::path(path).parent_path();
  if (!parent.empty()) std::filesystem::create_directories(parent, error);
  if (error) return SystemError("make the directory", parent.string(), error.value());
  if (mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
    return SystemError("make the directory", path, errno);
  }
  const std::string lock_path = path + "/lock";
  const int lock = open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (lock < 0) return SystemError("open", lock_path, errno);
  // Of the open file, not of the process: it lasts as long as the descriptor and works within one
  // process too.
  struct flock whole = {};
  whole.l_type = F_WRLCK;
  whole.l_whence = SEEK_SET;
  if (fcntl(lock, F_OFD_SETLK, &whole) != 0) {
    const int why = errno;
    const std::string holder = ReadShort(lock);
    close(lock);
    if (why != EAGAIN && why != EACCES) return SystemError("lock", lock_path, why);
    return absl::FailedPreconditionError(absl::StrCat("another coordinator (process ", holder,
                                                      ") uses the data directory ", path,
                                                      ": stop it, or choose another --data-dir"));
  }
  const std::string text = absl::StrCat(getpid(), "\n");
  if (ftruncate(lock, 0) != 0 || pwrite(lock, text.data(), text.size(), 0) < 0) {
    // The process id is there for people only; a full disk must not keep the coordinator from
    // starting.
  }
  return std::unique_ptr<DataDirectory>(new DataDirectory(path, lock));
}

DataDirectory::~DataDirectory() { close(lock_); }

absl::Status DataDirectory::Sync() const {
  const int directory = open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory < 0) return SystemError("open", path_, errno);
  const int error = fsync(directory) == 0 ? 0 : errno;
  close(directory);
  return error == 0 ? absl::OkStatus() : SystemError("flush", path_, error);
}

absl::Status DataDirectory::Reserve(int64_t bytes, int64_t spare) {
  const std::string path = File("reserve");
  const int file = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0) return SystemError("open", path, errno);
  struct stat before = {};
  const bool had = fstat(file, &before) == 0 && before.st_size >= bytes;
  int error = posix_fallocate(file, 0, bytes + spare);
  if ((error == 0 || had) && ftruncate(file, bytes) != 0) error = errno;
  close(file);
  if (error == 0) return absl::OkStatus();
  if (!had) unlink(path.c_str());
  return SystemError("set space aside in", path, error);
}

bool DataDirectory::HasReserve() const { return access(File("reserve").c_str(), F_OK) == 0; }

bool DataDirectory::ReleaseReserve() { return unlink(File("reserve").c_str()) == 0; }

absl::Status WriteFileAtomically(const std::string& path, const std::string& text, mode_t mode) {
  const std::string temporary = path + ".new";
  // One that a killed process left may have another mode.
  unlink(temporary.c_str());
  const int file = open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
  if (file < 0) return SystemError("write", temporary, errno);
  const ssize_t written = write(file, text.data(), text.size());
  const bool whole = written == static_cast<ssize_t>(text.size());
  const bool durable = whole && fsync(file) == 0;
  const int error = written >= 0 && !whole ? ENOSPC : errno;
  close(file);
  if (!durable) {
    unlink(temporary.c_str());
    return SystemError("write", temporary, error);
  }
  if (rename(temporary.c_str(), path.c_str()) != 0) return SystemError("replace", path, errno);
  return absl::OkStatus();
}

}  // namespace ringmaster::coordinator
