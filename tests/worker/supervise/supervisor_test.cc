#include "worker/supervise/supervisor.h"

#include <poll.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "base/steady_now.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/session/exit_codes.h"

namespace ringmaster::worker {
namespace {

// A supervisor in a process of its own. Whatever its children say comes here through a pipe, as
// lines.
class SupervisedProcess {
 public:
  // `life` is the worker's main: it gets how often it was started before.
  explicit SupervisedProcess(std::function<int(int start, int say)> life,
                             SupervisorOptions options = {}) {
    EXPECT_EQ(pipe(pipe_), 0);
    pid_ = fork();
    if (pid_ != 0) {
      close(pipe_[1]);
      return;
    }
    close(pipe_[0]);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    const int say = pipe_[1];
    // Children are copies; what they count together lies in shared memory.
    auto* starts = static_cast<int*>(
        mmap(nullptr, sizeof(int), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    options.run = [&life, say, starts](const std::string& incarnation) {
      const int start = (*starts)++;
      Say(say, absl::StrFormat("start %d %s %d", start, incarnation, getpid()));
      return life(start, say);
    };
    options.report = [say](const ChildExit& exit) {
      const bool late = SteadyNow() - exit.time > absl::Seconds(10);
      Say(say, absl::StrFormat("exit %s signal %d code %d late %d", exit.incarnation, exit.signal,
                               exit.exit_code, late));
    };
    _exit(Supervise(options));
  }

  ~SupervisedProcess() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    close(pipe_[0]);
  }

  static void Say(int say, const std::string& line) {
    const std::string text = line + "\n";
    ASSERT_EQ(write(say, text.data(), text.size()), static_cast<ssize_t>(text.size()));
  }

  // The next line, or "" when all writers are gone, or "silence" after 10 s.
  std::string Hear() {
    while (heard_.find('\n') == std::string::npos) {
      pollfd ready{.fd = pipe_[0], .events = POLLIN, .revents = 0};
      if (poll(&ready, 1, 10'000) <= 0) {
        return "silence";
      }
      char buffer[512];
      const ssize_t got = read(pipe_[0], buffer, sizeof(buffer));
      if (got <= 0) {
        return "";
      }
      heard_.append(buffer, static_cast<size_t>(got));
    }
    const std::string line = heard_.substr(0, heard_.find('\n'));
    heard_.erase(0, line.size() + 1);
    return line;
  }

  // The next line that begins with `word`; the two processes of a death and a restart race.
  std::string Hear(const std::string& word) {
    for (std::string line;;) {
      const auto found = std::find_if(put_back_.begin(), put_back_.end(),
                                      [&](const auto& text) { return text.rfind(word, 0) == 0; });
      if (found != put_back_.end()) {
        line = *found;
        put_back_.erase(found);
        return line;
      }
      line = Hear();
      if (line.empty() || line == "silence") {
        return line;
      }
      put_back_.push_back(line);
    }
  }

  pid_t pid() const { return pid_; }
  int Join() {
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

 private:
  int pipe_[2] = {-1, -1};
  pid_t pid_ = -1;
  std::string heard_;
  std::vector<std::string> put_back_;
};

struct Started {
  int start = 0;
  std::string incarnation;
  pid_t pid = 0;
};

Started ParseStart(const std::string& line) {
  std::istringstream in(line);
  std::string word;
  Started started;
  in >> word >> started.start >> started.incarnation >> started.pid;
  EXPECT_EQ(word, "start") << line;
  return started;
}

int WaitForEver() {
  while (true) {
    pause();
  }
}

TEST(SupervisorTest, RestartsAKilledChildAndReportsItsSignal) {
  SupervisedProcess process([](int, int) { return WaitForEver(); });
  std::set<std::string> incarnations;
  for (int i = 0; i < 3; ++i) {
    const Started started = ParseStart(process.Hear("start"));
    EXPECT_EQ(started.start, i);
    EXPECT_EQ(started.incarnation.size(), 32);
    EXPECT_TRUE(incarnations.insert(started.incarnation).second);
    kill(started.pid, SIGKILL);
    EXPECT_EQ(process.Hear("exit"),
              absl::StrFormat("exit %s signal 9 code 0 late 0", started.incarnation));
  }
  ParseStart(process.Hear("start"));
}

TEST(SupervisorTest, RestartsAfterExitRestartAndReportsTheCode) {
  SupervisedProcess process(
      [](int start, int) { return start == 0 ? kExitRestart : WaitForEver(); });
  const Started first = ParseStart(process.Hear("start"));
  EXPECT_EQ(process.Hear("exit"),
            absl::StrFormat("exit %s signal 0 code %d late 0", first.incarnation, kExitRestart));
  EXPECT_EQ(ParseStart(process.Hear("start")).start, 1);
}

TEST(SupervisorTest, GivesUpOnAUsageError) {
  SupervisedProcess process([](int, int) { return kExitUsage; });
  ParseStart(process.Hear("start"));
  EXPECT_EQ(process.Join(), kExitUsage);
  EXPECT_EQ(process.Hear(), "") << "neither a second start nor a report";
}

TEST(SupervisorTest, EndsWhenTheChildLeavesOnPurpose) {
  SupervisedProcess process([](int, int) { return kExitOk; });
  ParseStart(process.Hear("start"));
  EXPECT_EQ(process.Join(), 0);
}

// The child's own handling of SIGTERM: leave with 7, so that the code is seen to be passed on.
int WaitForTerm(int say) {
  sigset_t term;
  sigemptyset(&term);
  sigaddset(&term, SIGTERM);
  sigprocmask(SIG_BLOCK, &term, nullptr);
  SupervisedProcess::Say(say, "waiting");
  int signal = 0;
  sigwait(&term, &signal);
  return 7;
}

TEST(SupervisorTest, PassesSigtermOnAndReturnsTheChildsCode) {
  for (const int signal : {SIGTERM, SIGINT}) {
    SupervisedProcess process([](int, int say) { return WaitForTerm(say); });
    ASSERT_EQ(process.Hear("waiting"), "waiting");
    kill(process.pid(), signal);
    EXPECT_EQ(process.Join(), 7);
  }
}

TEST(SupervisorTest, TheChildDiesWithItsSupervisor) {
  SupervisedProcess process([](int, int) { return WaitForEver(); });
  ParseStart(process.Hear("start"));
  kill(process.pid(), SIGKILL);
  EXPECT_EQ(process.Join(), -SIGKILL);
  // End of file: the child, the last holder of the pipe, is gone.
  EXPECT_EQ(process.Hear(), "");
}

TEST(SupervisorTest, PausesOnlyAfterRapidFailuresInARow) {
  SupervisorOptions options;
  options.rapid_failures_free = 2;
  options.first_pause = absl::Hours(1);
  options.longest_pause = absl::Hours(1);
  SupervisedProcess process([](int, int) { return 1; }, options);
  for (int start = 0; start < 3; ++start) {
    EXPECT_EQ(ParseStart(process.Hear("start")).start, start);
    process.Hear("exit");
  }
  // In the pause it still obeys.
  kill(process.pid(), SIGTERM);
  EXPECT_EQ(process.Join(), 1);
  EXPECT_EQ(process.Hear("start"), "");
}

// As some parents start their children: the kernel would reap the worker without a word.
TEST(SupervisorTest, RestartsThoughItsParentIgnoredTheEndOfChildren) {
  const auto before = std::signal(SIGCHLD, SIG_IGN);
  SupervisedProcess process([](int, int) { return WaitForEver(); });
  std::signal(SIGCHLD, before);
  kill(ParseStart(process.Hear("start")).pid, SIGKILL);
  EXPECT_EQ(ParseStart(process.Hear("start")).start, 1);
}

// nohup, and `ringmaster-worker --supervise &` in a script.
TEST(SupervisorTest, ASignalThatWasIgnoredAtTheStartStaysIgnored) {
  for (const int signal : {SIGHUP, SIGINT}) {
    const auto before = std::signal(signal, SIG_IGN);
    SupervisedProcess process([](int, int) { return WaitForEver(); });
    std::signal(signal, before);
    const Started first = ParseStart(process.Hear("start"));
    kill(process.pid(), signal);
    kill(first.pid, SIGKILL);
    EXPECT_EQ(ParseStart(process.Hear("start")).start, 1) << "signal " << signal;
  }
}

TEST(SupervisorTest, ReapsOrphansThatItInherits) {
  SupervisedProcess process([](int start, int say) {
    // The grandchild outlives the child and becomes the supervisor's own, as under PID 1.
    const pid_t child = getpid();
    if (start == 0 && fork() == 0) {
      while (getppid() == child) {
        sched_yield();
      }
      SupervisedProcess::Say(say, absl::StrFormat("orphan %d", getpid()));
      _exit(0);
    }
    return start == 0 ? kExitRestart : WaitForEver();
  });
  const std::string line = process.Hear("orphan");
  ASSERT_EQ(line.rfind("orphan ", 0), 0) << line;
  const pid_t orphan = std::stoi(line.substr(7));
  // A zombie still answers to signal 0.
  int tries = 10'000;
  while (kill(orphan, 0) == 0 && --tries > 0) {
    poll(nullptr, 0, 1);
  }
  EXPECT_GT(tries, 0) << "process " << orphan << " was not reaped";
}

}  // namespace
}  // namespace ringmaster::worker
