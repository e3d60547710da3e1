#include "worker/driver/ring_roll.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <set>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "base/steady_now.h"
#include "worker/checkpoint/checkpoint_files.h"
#include "worker/comm/accused_ranks.h"

namespace ringmaster::worker {
namespace {

namespace fs = std::filesystem;

constexpr absl::Duration kLookAgain = absl::Milliseconds(20);

std::string Folder(const v1::FormRing& form) { return form.directory() + "/ring"; }

std::string FileName(int64_t generation, int rank, const std::string& incarnation) {
  return absl::StrCat("g", generation, "-r", rank, "-", incarnation);
}

// Listing the folder asks the server anew; asking for one name may be answered from a cache.
std::set<std::string> Names(const std::string& folder) {
  std::set<std::string> names;
  std::error_code error;
  fs::directory_iterator entry(folder, error);
  for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
    names.insert(entry->path().filename().string());
  }
  return names;
}

}  // namespace

absl::Status SignRingRoll(const v1::FormRing& form, const std::string& incarnation) {
  // Checkpoints will lie beside it.
  RETURN_IF_ERROR(MakeDirectories(Folder(form)));
  const std::string path = absl::StrCat(
      Folder(form), "/", FileName(form.ring().generation(), form.ring().rank(), incarnation));
  const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0644);
  if (file < 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot write to the job's directory: ", path));
  }
  close(file);
  return absl::OkStatus();
}

absl::Status CheckRingRoll(const v1::FormRing& form, absl::Duration patience,
                           absl::FunctionRef<bool()> cancelled) {
  const absl::Time deadline = SteadyNow() + patience;
  while (true) {
    const std::set<std::string> names = Names(Folder(form));
    std::vector<std::string> missing;
    std::vector<int> accused;
    for (const v1::RankAssignment& rank : form.ranks()) {
      if (!names.contains(FileName(form.ring().generation(), rank.rank(), rank.incarnation()))) {
        accused.push_back(rank.rank());
        missing.push_back(absl::StrCat("rank ", rank.rank(), " (", rank.worker(), ")"));
      }
    }
    if (missing.empty()) {
      return absl::OkStatus();
    }
    if (cancelled()) {
      return absl::CancelledError(absl::StrCat("waiting for files in ", Folder(form)));
    }
    if (SteadyNow() >= deadline) {
      return Accuse(
          absl::FailedPreconditionError(absl::StrCat(
              "the files of ", absl::StrJoin(missing, ", "), " are not in ", Folder(form),
              " as this worker sees it: all workers must share one file system at this path")),
          accused);
    }
    absl::SleepFor(kLookAgain);
  }
}

void LeaveRingRoll(const v1::FormRing& form, const std::string& incarnation) {
  const std::string folder = Folder(form) + "/";
  unlink((folder + FileName(form.ring().generation(), form.ring().rank(), incarnation)).c_str());
  if (form.ring().rank() != 0) {
    return;
  }
  for (const std::string& name : Names(folder)) {
    int64_t generation = 0;
    if (absl::StartsWith(name, "g") &&
        absl::SimpleAtoi(name.substr(1, name.find('-') - 1), &generation) &&
        generation < form.ring().generation()) {
      unlink((folder + name).c_str());
    }
  }
}

}  // namespace ringmaster::worker
