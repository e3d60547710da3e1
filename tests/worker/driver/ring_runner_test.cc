#include "worker/driver/ring_runner.h"

#include <array>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/match.h"
#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "spdlog/sinks/base_sink.h"
#include "spdlog/spdlog.h"
#include "tests/testing/temporary_directory.h"
#include "tests/worker/train/resolved_spec.h"
#include "worker/checkpoint/checkpoint_files.h"

namespace ringmaster::worker {
namespace {

using ::testing::HasSubstr;

// Nobody connects.
class LoneCommunicator final : public Communicator {
 public:
  explicit LoneCommunicator(std::atomic<bool>* aborted) : aborted_(aborted) {}
  const std::string& address() const override { return address_; }
  absl::Status Connect(absl::Span<const std::string>, absl::Duration) override {
    return absl::UnavailableError("alone");
  }
  attention::GroupedExchange& world() override { std::abort(); }
  int cuda_device() const override { return -1; }
  absl::Status Settle() override { return absl::OkStatus(); }
  absl::Status Close() override { return absl::OkStatus(); }
  void Abort(const std::string&) override { *aborted_ = true; }
  absl::Status AwaitReleased(absl::Duration) override { return absl::OkStatus(); }

 private:
  const std::string address_ = "alone";
  std::atomic<bool>* const aborted_;
};

// Shows each message to `see` while it is being logged.
class WatchedLog final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  explicit WatchedLog(std::function<void(absl::string_view)> see) : see_(std::move(see)) {}

 private:
  void sink_it_(const spdlog::details::log_msg& message) override {
    see_({message.payload.data(), message.payload.size()});
  }
  void flush_() override {}

  const std::function<void(absl::string_view)> see_;
};

class RingRunnerTest : public ::testing::Test {
 protected:
  RingRunnerTest() {
    std::ofstream(directory_ + "/text") << std::string(4000, 'x');
    *form_.mutable_spec() = ResolvedSpec();
    form_.mutable_spec()->mutable_data()->set_paths(0, directory_ + "/text");
    form_.set_directory(directory_ + "/job");
    form_.set_transport("ucx");
    form_.mutable_ring()->set_training_job_uid("uid");
    form_.mutable_ring()->set_generation(1);
  }

  RingContext Context() {
    RingContext context;
    context.incarnation = std::string(32, 'a');
    context.open_communicator = [this](const std::string&, const CommunicatorOptions& options) {
      host_ = options.host;
      return std::make_unique<LoneCommunicator>(&aborted_);
    };
    context.post = [this](const Event& event) {
      if (std::holds_alternative<TransportOpened>(event) && !opened_.HasBeenNotified()) {
        opened_.Notify();
      }
      if (const auto* deleted = std::get_if<PathsDeleted>(&event)) {
        deleted_.emplace_back(deleted->report.paths().begin(), deleted->report.paths().end());
      }
    };
    context.die = [](const std::string& reason) { ADD_FAILURE() << reason; };
    context.metrics = &metrics_;
    return context;
  }

  const TemporaryDirectory temporary_;
  const std::string directory_ = temporary_.path();
  v1::FormRing form_;
  std::atomic<bool> aborted_{false};
  absl::Notification opened_;
  // What the transport was opened at.
  std::string host_;
  // What each PathsDeleted named; to be read when the runner is gone.
  std::vector<std::vector<std::string>> deleted_;
  WorkerMetrics metrics_;
};

// The log lies in the shared directory, which may hang; peers wait for the abort.
TEST_F(RingRunnerTest, ARingIsAbortedBeforeTheLogHearsOfIt) {
  bool aborted_before = false;
  auto& sinks = spdlog::default_logger()->sinks();
  sinks.push_back(std::make_shared<WatchedLog>([&](absl::string_view message) {
    if (absl::StrContains(message, "giving up: as told")) {
      aborted_before = aborted_;
    }
  }));
  {
    RingRunner runner("cpu", Context());
    runner.Do(OpenTransport{form_});
    ASSERT_TRUE(opened_.WaitForNotificationWithTimeout(absl::Seconds(10)));
    EXPECT_FALSE(aborted_);
    runner.Do(AbandonRing{form_.ring(), "as told"});
  }
  sinks.pop_back();
  EXPECT_TRUE(aborted_before);
}

TEST_F(RingRunnerTest, PeersAreToldTheAdvertisedAddressOrTheRoutes) {
  for (const auto& [advertised, coordinator, expected] :
       {std::array{"192.0.2.1", "127.0.0.1:7077", "192.0.2.1"},
        std::array{"", "127.0.0.1:7077", "127.0.0.1"},
        std::array{"", "unix:/socket", "127.0.0.1"}}) {
    absl::Notification opened;
    RingContext context = Context();
    context.advertise_host = advertised;
    context.coordinator = coordinator;
    context.post = [&](const Event& event) {
      if (std::holds_alternative<TransportOpened>(event)) opened.Notify();
    };
    RingRunner runner("cpu", context);
    runner.Do(OpenTransport{form_});
    ASSERT_TRUE(opened.WaitForNotificationWithTimeout(absl::Seconds(30)));
    EXPECT_EQ(host_, expected) << coordinator;
    runner.Do(AbandonRing{form_.ring(), "as told"});
  }
}

// Nothing is asked of the resolver any more once it has answered; until then its failing may pass.
TEST_F(RingRunnerTest, AnAddressThatIsNotFoundFailsOneRing) {
  RingContext context = Context();
  context.coordinator = "127.0.0.1:no such port";
  absl::Notification failed;
  v1::Fault fault;
  context.post = [&](const Event& event) {
    const auto* told = std::get_if<RingStopped>(&event);
    if (told != nullptr && !failed.HasBeenNotified()) {
      fault = told->fault;
      failed.Notify();
    }
  };
  RingRunner runner("cpu", context);
  runner.Do(OpenTransport{form_});
  ASSERT_TRUE(failed.WaitForNotificationWithTimeout(absl::Seconds(30)));
  EXPECT_FALSE(fault.deterministic());
  EXPECT_THAT(fault.message(), HasSubstr("127.0.0.1 is not resolved"));
}

// Else the coordinator forgets a file that is still there.
TEST_F(RingRunnerTest, OnlyWhatIsGoneIsConfirmed) {
  const std::string checkpoints = form_.directory() + "/checkpoints";
  std::filesystem::create_directories(checkpoints + "/step-00000001");
  std::filesystem::create_directory_symlink(directory_, checkpoints + "/link");
  const std::string gone = checkpoints + "/step-00000001/shard";
  std::ofstream(gone) << "x";
  const auto files = [](const std::vector<std::string>& paths) {
    v1::DeleteFiles files;
    *files.mutable_paths() = {paths.begin(), paths.end()};
    return files;
  };
  {
    RingRunner runner("cpu", Context());
    runner.Do(DeletePaths{form_.directory(), files({checkpoints + "/link/text", gone})});
    runner.Do(DeletePaths{form_.directory(), files({checkpoints + "/link/text"})});
  }
  EXPECT_EQ(deleted_, (std::vector<std::vector<std::string>>{{gone}}));
  EXPECT_TRUE(std::filesystem::exists(directory_ + "/text"));
}

TEST_F(RingRunnerTest, AManifestIsWrittenOnce) {
  v1::Checkpoint checkpoint;
  checkpoint.set_directory(form_.directory() + "/checkpoints/step-00000001");
  checkpoint.set_step(1);
  checkpoint.set_generation(1);
  checkpoint.add_shards()->set_path(checkpoint.directory() + "/shard");
  checkpoint.mutable_shards(0)->set_bytes(1);
  std::filesystem::create_directories(checkpoint.directory());
  std::ofstream(checkpoint.shards(0).path()) << "x";
  const auto told = [&] {
    {
      RingRunner runner("cpu", Context());
      runner.Do(OpenTransport{form_});
      runner.Do(WriteManifest{form_.directory(), checkpoint});
    }
    const auto manifest = ReadManifestFile(checkpoint.directory());
    return manifest.ok() ? manifest->checkpoint.generation() : -1;
  };
  const std::string file = checkpoint.directory() + "/manifest.json";
  EXPECT_EQ(told(), 1);
  std::ofstream(file, std::ios::app) << "\n\n";
  const auto size = std::filesystem::file_size(file);
  EXPECT_EQ(told(), 1);
  EXPECT_EQ(std::filesystem::file_size(file), size) << "told again, it was written again";
  // The step was done again: this is another checkpoint.
  checkpoint.set_generation(2);
  EXPECT_EQ(told(), 2);
}

// The control thread is the caller of Do.
TEST_F(RingRunnerTest, TheTrainersThreadAsksForTheDevicesMemory) {
  absl::Notification asked;
  std::thread::id by;
  metrics_.SetDeviceMemory([&]() -> std::optional<WorkerMetrics::DeviceMemory> {
    if (!asked.HasBeenNotified()) {
      by = std::this_thread::get_id();
      asked.Notify();
    }
    return WorkerMetrics::DeviceMemory{.reserved_bytes = 7};
  });
  {
    RingRunner runner("cpu", Context());
    runner.Do(OpenTransport{form_});
    ASSERT_TRUE(asked.WaitForNotificationWithTimeout(absl::Seconds(10)));
  }
  EXPECT_NE(by, std::this_thread::get_id());
  EXPECT_EQ(metrics_.MemoryUsedBytes(), 7);
}

// No CUDA device here, or none that this program can use.
TEST_F(RingRunnerTest, ADeviceThatCannotBeWarmedUpEndsTheProcess) {
  std::string last_words;
  {
    RingContext context = Context();
    context.die = [&last_words](const std::string& reason) { last_words = reason; };
    const RingRunner runner("cuda", std::move(context));
  }
  EXPECT_THAT(last_words, HasSubstr("the device is lost: warming up cuda"));
}

}  // namespace
}  // namespace ringmaster::worker
