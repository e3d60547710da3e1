#include "tests/worker/comm/rank_harness.h"

#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/status_macros.h"
#include "gtest/gtest.h"

extern char** environ;

namespace ringmaster::worker {

namespace {

bool WriteLine(int fd, const std::string& line) {
  const std::string text = line + "\n";
  return send(fd, text.data(), text.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(text.size());
}

// False at the end of the stream.
bool ReadLine(int fd, std::string& buffer, std::string& line) {
  size_t end = 0;
  while ((end = buffer.find('\n')) == std::string::npos) {
    std::array<char, 4096> chunk;
    const ssize_t count = read(fd, chunk.data(), chunk.size());
    if (count <= 0) {
      return false;
    }
    buffer.append(chunk.data(), count);
  }
  line = buffer.substr(0, end);
  buffer.erase(0, end + 1);
  return true;
}

class Board {
 public:
  // Serves one rank until it hangs up.
  void Serve(int fd, int rank) {
    std::string buffer;
    std::string line;
    while (ReadLine(fd, buffer, line)) {
      const std::vector<std::string> words = absl::StrSplit(line, absl::MaxSplits(' ', 2));
      if (words[0] == "put") {
        Put(words[1], words[2]);
      } else if (!WriteLine(fd, Get(words[1]))) {
        break;
      }
    }
    Put(absl::StrCat("gone/", rank), "");
    close(fd);
  }

 private:
  void Put(const std::string& key, const std::string& value) {
    const std::lock_guard lock(mutex_);
    values_[key] = value;
    changed_.notify_all();
  }
  std::string Get(const std::string& key) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(60), [&] { return values_.contains(key); })
               ? values_[key]
               : absl::StrCat("nobody put ", key);
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, std::string> values_;
};

std::array<int, 2> SocketPair() {
  std::array<int, 2> fds;
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()) != 0) {
    std::abort();
  }
  return fds;
}

// ranks as threads
void RunInThreads(const Scenario& scenario) {
  Board board;
  InProcessHub hub;
  std::vector<std::thread> threads;
  for (int index = 0; index < scenario.ranks; ++index) {
    const auto [ours, theirs] = SocketPair();
    threads.emplace_back([&board, fd = ours, index] { board.Serve(fd, index); });
    threads.emplace_back([&scenario, &hub, fd = theirs, index] {
      Rank rank("in-process", index, scenario.ranks, fd, &hub, nullptr, {});
      const absl::Status status = scenario.part(rank);
      EXPECT_TRUE(status.ok()) << "rank " << index << ": " << status;
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
}

// The child finds its end of the board here.
constexpr int kBoardFd = 3;

pid_t SpawnRank(const Scenario& scenario, const std::string& transport, int rank, int fd) {
  std::vector<std::string> arguments = {"/proc/self/exe", absl::StrCat("--transport=", transport),
                                        absl::StrCat("--scenario=", scenario.name),
                                        absl::StrCat("--rank=", rank)};
  // Several NCCL ranks on one GPU count as hosts of their own that talk over loopback.
  std::vector<std::string> environment = {absl::StrCat("NCCL_HOSTID=rank", rank),
                                          "NCCL_SOCKET_IFNAME=lo", "NCCL_IB_DISABLE=1"};
  for (char** variable = environ; *variable != nullptr; ++variable) {
    environment.emplace_back(*variable);
  }
  const auto pointers = [](std::vector<std::string>& strings) {
    std::vector<char*> result;
    for (std::string& text : strings) {
      result.push_back(text.data());
    }
    result.push_back(nullptr);
    return result;
  };
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, fd, kBoardFd);
  pid_t pid = -1;
  const int error = posix_spawn(&pid, arguments[0].c_str(), &actions, nullptr,
                                pointers(arguments).data(), pointers(environment).data());
  posix_spawn_file_actions_destroy(&actions);
  EXPECT_EQ(error, 0) << "cannot start a rank";
  return pid;
}

void RunInProcesses(const Scenario& scenario, const std::string& transport) {
  Board board;
  std::vector<std::thread> servers;
  std::vector<pid_t> children;
  for (int rank = 0; rank < scenario.ranks; ++rank) {
    const auto [ours, theirs] = SocketPair();
    children.push_back(SpawnRank(scenario, transport, rank, theirs));
    close(theirs);
    servers.emplace_back([&board, fd = ours, rank] { board.Serve(fd, rank); });
  }
  for (int rank = 0; rank < scenario.ranks; ++rank) {
    int status = 0;
    waitpid(children[rank], &status, 0);
    // A rank that a scenario kills ends so; a rank that fails says why and exits with 1.
    const bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    EXPECT_TRUE(killed || (WIFEXITED(status) && WEXITSTATUS(status) == 0))
        << "rank " << rank << " ended with wait status " << status;
  }
  for (std::thread& server : servers) {
    server.join();
  }
}

class ScenarioTest : public testing::Test {
 public:
  ScenarioTest(const Scenario& scenario, std::string transport)
      : scenario_(scenario), transport_(std::move(transport)) {}
  void TestBody() override {
    if (transport_ == "in-process") {
      RunInThreads(scenario_);
    } else {
      RunInProcesses(scenario_, transport_);
    }
  }

 private:
  const Scenario& scenario_;
  const std::string transport_;
};

int RunChild(const Scenario& scenario, const std::string& transport, int index, Opener open,
             DeviceMemory memory) {
  Rank rank(transport, index, scenario.ranks, kBoardFd, nullptr, open, memory);
  const absl::Status status = scenario.part(rank);
  if (!status.ok()) {
    std::fprintf(stderr, "%s: rank %d: %s\n", scenario.name.c_str(), index,
                 status.ToString().c_str());
  }
  return status.ok() && !testing::Test::HasFailure() ? 0 : 1;
}

std::string Flag(int argc, char** argv, const std::string& name, const std::string& otherwise) {
  for (int index = 1; index < argc; ++index) {
    const std::string argument = argv[index];
    if (argument.rfind("--" + name + "=", 0) == 0) {
      return argument.substr(name.size() + 3);
    }
  }
  return otherwise;
}

}  // namespace

BoardClient::~BoardClient() { close(fd_); }

void BoardClient::Put(const std::string& key, const std::string& value) {
  WriteLine(fd_, absl::StrCat("put ", key, " ", value));
}

std::string BoardClient::Get(const std::string& key) {
  std::string line;
  WriteLine(fd_, absl::StrCat("get ", key));
  return ReadLine(fd_, buffer_, line) ? line : "the board is gone";
}

std::vector<std::string> Rank::Swap(const std::string& key, const std::string& value) {
  Put(absl::StrCat(key, "/", rank_), value);
  std::vector<std::string> values;
  for (int other = 0; other < size_; ++other) {
    values.push_back(Get(absl::StrCat(key, "/", other)));
  }
  return values;
}

absl::StatusOr<std::unique_ptr<Communicator>> Rank::Open(const CommunicatorOptions& options) {
  return hub_ != nullptr ? hub_->Open(options) : open_(transport_, options);
}

absl::StatusOr<std::unique_ptr<Communicator>> Rank::Form(int64_t generation,
                                                         absl::Duration hop_deadline) {
  ASSIGN_OR_RETURN(auto communicator, Open({.generation = generation,
                                            .rank = rank_,
                                            .world_size = size_,
                                            .hop_deadline = hop_deadline}));
  const std::vector<std::string> addresses =
      Swap(absl::StrCat("form/", generation), communicator->address());
  RETURN_IF_ERROR(communicator->Connect(addresses, absl::Seconds(30)));
  return communicator;
}

void Rank::Die(int64_t generation) {
  if (hub_ == nullptr) {
    raise(SIGKILL);
  }
  hub_->Kill(generation, rank_);
}

Buffer::Buffer(const Rank& rank, size_t bytes) : kind_(rank.memory()), bytes_(bytes) {
  const size_t some = bytes > 0 ? bytes : 1;
  memory_ = kind_.allocate == nullptr ? std::shared_ptr<void>(std::malloc(some), std::free)
                                      : std::shared_ptr<void>(kind_.allocate(some), kind_.release);
}

void Buffer::Write(const std::vector<unsigned char>& content) {
  if (kind_.copy == nullptr) {
    std::copy(content.begin(), content.end(), static_cast<unsigned char*>(memory_.get()));
  } else {
    kind_.copy(memory_.get(), content.data(), content.size());
  }
}

std::vector<unsigned char> Buffer::Read() const {
  std::vector<unsigned char> content(bytes_);
  if (kind_.copy == nullptr) {
    const auto* begin = static_cast<const unsigned char*>(memory_.get());
    std::copy(begin, begin + bytes_, content.begin());
  } else {
    kind_.copy(content.data(), memory_.get(), bytes_);
  }
  return content;
}

int RunScenarios(int argc, char** argv, const std::vector<Scenario>& scenarios, Opener open,
                 DeviceMemory nccl_memory) {
  const std::string transport =
      open == nullptr ? "in-process" : Flag(argc, argv, "transport", "ucx");
  const std::string child = Flag(argc, argv, "scenario", "");
  int rank = 0;
  static_cast<void>(absl::SimpleAtoi(Flag(argc, argv, "rank", "0"), &rank));
  testing::InitGoogleTest(&argc, argv);
  for (const Scenario& scenario : scenarios) {
    const auto& only = scenario.transports;
    if (!only.empty() && std::find(only.begin(), only.end(), transport) == only.end()) {
      continue;
    }
    if (scenario.name == child) {
      return RunChild(scenario, transport, rank, open,
                      transport == "nccl" ? nccl_memory : DeviceMemory{});
    }
    testing::RegisterTest("Conformance", scenario.name.c_str(), nullptr, transport.c_str(),
                          __FILE__, __LINE__, [&scenario, transport]() -> testing::Test* {
                            return new ScenarioTest(scenario, transport);
                          });
  }
  return RUN_ALL_TESTS();
}

}  // namespace ringmaster::worker
