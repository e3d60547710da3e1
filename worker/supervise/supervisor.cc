#include "worker/supervise/supervisor.h"

#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_format.h"
#include "base/steady_now.h"
#include "spdlog/spdlog.h"
#include "worker/session/exit_codes.h"

namespace ringmaster::worker {
namespace {

// For the life of the object the signals that the supervisor lives on are delivered by Next() only.
// What the parent chose to ignore is inherited: nohup's SIGHUP and a background command's SIGINT
// stay ignored, but with SIGCHLD ignored the kernel would reap the worker without a word.
class SignalInbox {
 public:
  SignalInbox() {
    std::signal(SIGCHLD, SIG_DFL);
    sigemptyset(&signals_);
    sigaddset(&signals_, SIGCHLD);
    sigaddset(&signals_, SIGTERM);
    for (const int signal : {SIGINT, SIGHUP}) {
      struct sigaction inherited {};
      sigaction(signal, nullptr, &inherited);
      if (inherited.sa_handler != SIG_IGN) {
        sigaddset(&signals_, signal);
      }
    }
    sigprocmask(SIG_BLOCK, &signals_, &before_);
  }
  ~SignalInbox() { Restore(); }
  void Restore() const { sigprocmask(SIG_SETMASK, &before_, nullptr); }

  // The next signal, or 0 after `patience`.
  int Next(absl::Duration patience) const {
    if (patience == absl::InfiniteDuration()) {
      const int signal = sigwaitinfo(&signals_, nullptr);
      return signal < 0 ? 0 : signal;
    }
    const timespec timeout = absl::ToTimespec(std::max(patience, absl::ZeroDuration()));
    const int signal = sigtimedwait(&signals_, nullptr, &timeout);
    return signal < 0 ? 0 : signal;
  }

 private:
  sigset_t signals_;
  sigset_t before_;
};

class Supervisor {
 public:
  explicit Supervisor(const SupervisorOptions& options) : options_(options) {}

  int Run() {
    Start();
    while (true) {
      const bool paused = child_ == 0;
      const int signal = inbox_.Next(paused ? StartTime() - SteadyNow() : absl::InfiniteDuration());
      if (signal == SIGCHLD) {
        Reap();
      } else if (signal != 0) {
        stopping_ = true;
        if (child_ != 0) {
          kill(child_, SIGTERM);
        }
      }
      if (child_ != 0) {
        continue;
      }
      if (ended_for_good_ || stopping_) {
        return code_;
      }
      if (SteadyNow() >= StartTime()) {
        Start();
      }
    }
  }

 private:
  // Runs `body` in a child process and returns its pid.
  pid_t Fork(const std::function<int()>& body) {
    const pid_t pid = fork();
    if (pid != 0) {
      return pid;
    }
    // Ctrl-C in a terminal reaches the supervisor only, which passes it on once.
    setpgid(0, 0);
    inbox_.Restore();
    const int code = body();
    std::fflush(nullptr);
    // Not exit(): destructors of statics belong to the parent's life.
    _exit(code);
  }

  void Start() {
    incarnation_ = NewIncarnation();
    started_ = SteadyNow();
    const pid_t self = getpid();
    child_ = Fork([this, self] {
      // A worker that nobody watches must not go on.
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      return getppid() == self ? options_.run(incarnation_) : kExitRestart;
    });
    if (child_ < 0) {
      SPDLOG_ERROR("cannot start the worker process: {}", std::strerror(errno));
      child_ = 0;
      Penalize();
      return;
    }
    SPDLOG_INFO("started worker process {}, incarnation {}", child_, incarnation_);
  }

  void Reap() {
    int status = 0;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
      if (pid == child_) {
        OnChildExit(status);
      } else if (pid == reporter_) {
        reporter_ = 0;
      }
    }
  }

  void OnChildExit(int status) {
    ChildExit exit{.incarnation = incarnation_, .time = SteadyNow()};
    if (WIFSIGNALED(status)) {
      exit.signal = WTERMSIG(status);
      code_ = 128 + exit.signal;
    } else {
      exit.exit_code = WEXITSTATUS(status);
      code_ = exit.exit_code;
    }
    const pid_t pid = std::exchange(child_, 0);
    ended_ = exit.time;
    ended_for_good_ = exit.signal == 0 && (code_ == kExitOk || code_ == kExitUsage);
    if (!ended_for_good_) {
      // The report first: the survivors of the ring wait for it, and it tells more than the new
      // process's arrival.
      reporter_ = Fork([this, &exit] {
        options_.report(exit);
        return 0;
      });
    }
    SPDLOG_INFO("worker process {} ended by {} {} after {}", pid,
                exit.signal != 0 ? "signal" : "exit code",
                exit.signal != 0 ? exit.signal : exit.exit_code,
                absl::FormatDuration(exit.time - started_));
    if (exit.time - started_ >= options_.rapid) {
      rapid_failures_ = 0;
      start_again_ = exit.time;
    } else {
      Penalize();
    }
  }

  absl::Time StartTime() const {
    return reporter_ > 0 ? std::max(start_again_, ended_ + options_.report_first) : start_again_;
  }

  void Penalize() {
    ++rapid_failures_;
    absl::Duration pause = absl::ZeroDuration();
    const int paid = rapid_failures_ - options_.rapid_failures_free;
    if (paid > 0) {
      pause =
          std::min(options_.longest_pause, options_.first_pause * (1 << std::min(paid - 1, 20)));
      SPDLOG_WARN("{} rapid failures in a row: the next start is in {}", rapid_failures_,
                  absl::FormatDuration(pause));
    }
    start_again_ = SteadyNow() + pause;
  }

  const SupervisorOptions& options_;
  const SignalInbox inbox_;
  // 0: none runs.
  pid_t child_ = 0;
  // The newest report under way; 0: none.
  pid_t reporter_ = 0;
  std::string incarnation_;
  absl::Time started_;
  absl::Time ended_;
  absl::Time start_again_;
  int rapid_failures_ = 0;
  bool stopping_ = false;
  bool ended_for_good_ = false;
  int code_ = kExitRestart;
};

}  // namespace

int Supervise(const SupervisorOptions& options) { return Supervisor(options).Run(); }

std::string NewIncarnation() {
  char bytes[16];
  size_t have = 0;
  while (have < sizeof(bytes)) {
    const ssize_t got = getrandom(bytes + have, sizeof(bytes) - have, 0);
    if (got > 0) {
      have += static_cast<size_t>(got);
    }
  }
  return absl::BytesToHexString(absl::string_view(bytes, sizeof(bytes)));
}

}  // namespace ringmaster::worker
