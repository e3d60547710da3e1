#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "worker/comm/communicator.h"
#include "worker/comm/in_process_exchange.h"

namespace ringmaster::worker {

// Where ranks of a scenario meet beside the transport under test: a board of named texts, served by
// the test's process. Each rank has its own connection, by thread or by process. Ranks that are
// gone are on the board as "gone/<rank>".
class BoardClient {
 public:
  explicit BoardClient(int fd) : fd_(fd) {}
  ~BoardClient();
  BoardClient(const BoardClient&) = delete;
  BoardClient& operator=(const BoardClient&) = delete;

  void Put(const std::string& key, const std::string& value);
  // Waits until somebody has put it.
  std::string Get(const std::string& key);

 private:
  std::string Answer();
  int fd_;
  std::string buffer_;
};

// How to get at memory that is not the host's.
struct DeviceMemory {
  void* (*allocate)(size_t bytes) = nullptr;
  void (*release)(void* memory) = nullptr;
  void (*copy)(void* to, const void* from, size_t bytes) = nullptr;
};

// Opens a rank of a real transport; null where there is only the in-process one.
using Opener = absl::StatusOr<std::unique_ptr<Communicator>> (*)(const std::string& transport,
                                                                 const CommunicatorOptions&);

// What one rank of a scenario has in hands.
class Rank {
 public:
  Rank(std::string transport, int rank, int size, int board_fd, InProcessHub* hub, Opener open,
       DeviceMemory memory)
      : transport_(std::move(transport)),
        rank_(rank),
        size_(size),
        board_(board_fd),
        hub_(hub),
        open_(open),
        memory_(memory) {}

  const std::string& transport() const { return transport_; }
  int rank() const { return rank_; }
  int size() const { return size_; }
  bool last() const { return rank_ == size_ - 1; }
  int next() const { return (rank_ + 1) % size_; }
  int previous() const { return (rank_ + size_ - 1) % size_; }
  // Empty for host memory.
  const DeviceMemory& memory() const { return memory_; }

  void Put(const std::string& key, const std::string& value = "x") { board_.Put(key, value); }
  std::string Get(const std::string& key) { return board_.Get(key); }
  // Every rank's value; all ranks must come.
  std::vector<std::string> Swap(const std::string& key, const std::string& value);

  absl::StatusOr<std::unique_ptr<Communicator>> Open(const CommunicatorOptions& options);
  // Opens and connects all ranks in one call.
  absl::StatusOr<std::unique_ptr<Communicator>> Form(int64_t generation,
                                                     absl::Duration hop_deadline);

  // kill -9 of this rank: its process is gone, or what stands for it in one process. Then the
  // scenario must return.
  void Die(int64_t generation);

 private:
  const std::string transport_;
  const int rank_;
  const int size_;
  BoardClient board_;
  InProcessHub* const hub_;
  const Opener open_;
  const DeviceMemory memory_;
};

// Memory of the kind that the rank's transport carries.
class Buffer {
 public:
  Buffer(const Rank& rank, size_t bytes);

  void* data() { return memory_.get(); }
  size_t bytes() const { return bytes_; }
  void Write(const std::vector<unsigned char>& content);
  std::vector<unsigned char> Read() const;

 private:
  DeviceMemory kind_;
  size_t bytes_;
  std::shared_ptr<void> memory_;
};

// A rank's part of a scenario. Anything but OK fails the test, and so does an EXPECT in it.
using Part = std::function<absl::Status(Rank&)>;

struct Scenario {
  std::string name;
  int ranks = 2;
  Part part;
  // Empty: all transports.
  std::vector<std::string> transports = {};
};

// Runs the scenarios as GoogleTest tests: over the transport that --transport names, with one
// process a rank; without an opener, in-process with one thread a rank. A program's main returns
// this.
int RunScenarios(int argc, char** argv, const std::vector<Scenario>& scenarios, Opener open,
                 DeviceMemory nccl_memory = {});

// For parts: an error that names the condition, and what follows it.
#define CHECK_OR_RETURN(condition, ...)                                                  \
  do {                                                                                   \
    if (!(condition)) {                                                                  \
      return absl::InternalError(absl::StrCat(__FILE__, ":", __LINE__, ": ", #condition, \
                                              ". " __VA_OPT__(, ) __VA_ARGS__));         \
    }                                                                                    \
  } while (false)

}  // namespace ringmaster::worker
