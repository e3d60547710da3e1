#include "worker/client/coordinator_client.h"

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/client/fake_coordinator.h"

namespace ringmaster::worker {
namespace {

// What the client told, as words: "up 1", "heartbeat_ack 5", "down".
class Journal {
 public:
  CoordinatorClient::Events Events() {
    return {.up = [this](int64_t stream) { Add(absl::StrCat("up ", stream)); },
            .directive =
                [this](v1::Directive directive) {
                  Add(absl::StrCat("ack ", directive.heartbeat_ack().sequence()));
                },
            .down =
                [this](const absl::Status& reason) {
                  Add("down");
                  Add(absl::StrCat("down ", reason.ToString()));
                }};
  }
  // False after 10 s.
  bool WaitFor(const std::string& word) {
    absl::MutexLock lock(&mutex_);
    const auto there = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return std::find(words_.begin(), words_.end(), word) != words_.end();
    };
    return mutex_.AwaitWithTimeout(absl::Condition(&there), absl::Seconds(10));
  }
  std::vector<std::string> words() {
    absl::MutexLock lock(&mutex_);
    return words_;
  }

 private:
  void Add(const std::string& word) {
    absl::MutexLock lock(&mutex_);
    words_.push_back(word);
  }
  absl::Mutex mutex_;
  std::vector<std::string> words_ ABSL_GUARDED_BY(mutex_);
};

ChannelFactory Channels(const std::string& target) {
  return ChannelFactory::Create({.target = target}).value();
}

v1::WorkerReport Heartbeat(int64_t sequence) {
  v1::WorkerReport report;
  report.mutable_heartbeat()->set_sequence(sequence);
  return report;
}

v1::Directive Ack(int64_t sequence) {
  v1::Directive directive;
  directive.mutable_heartbeat_ack()->set_sequence(sequence);
  return directive;
}

TEST(CoordinatorClientTest, GoesThroughNoProxyInTheClear) {
  FakeCoordinator coordinator;
  const FakeCoordinator no_proxy;
  setenv("http_proxy", ("http://" + no_proxy.address()).c_str(), /*overwrite=*/1);
  setenv("no_grpc_proxy", "", 1);
  Journal journal;
  {
    CoordinatorClient client(Channels(coordinator.address()), journal.Events());
    EXPECT_TRUE(journal.WaitFor("up 1"));
  }
  unsetenv("http_proxy");
  unsetenv("no_grpc_proxy");
}

TEST(CoordinatorClientTest, CarriesReportsAndDirectivesInOrder) {
  FakeCoordinator coordinator;
  Journal journal;
  CoordinatorClient client(Channels(coordinator.address()), journal.Events());
  ASSERT_TRUE(journal.WaitFor("up 1"));
  for (int64_t i = 1; i <= 100; ++i) {
    client.Send(1, Heartbeat(i));
  }
  for (int64_t i = 1; i <= 100; ++i) {
    const auto heard = coordinator.Next();
    ASSERT_TRUE(heard.has_value());
    EXPECT_EQ(heard->report.heartbeat().sequence(), i);
    coordinator.Send(heard->stream, Ack(i));
  }
  ASSERT_TRUE(journal.WaitFor("ack 100"));
  const std::vector<std::string> words = journal.words();
  ASSERT_EQ(words.size(), 101);
  for (int64_t i = 1; i <= 100; ++i) {
    EXPECT_EQ(words[i], absl::StrCat("ack ", i));
  }
}

TEST(CoordinatorClientTest, OpensABrokenStreamAgainAndDropsReportsOfTheOldOne) {
  FakeCoordinator coordinator;
  Journal journal;
  CoordinatorClient client(Channels(coordinator.address()), journal.Events());
  ASSERT_TRUE(journal.WaitFor("up 1"));
  client.Send(1, Heartbeat(1));
  ASSERT_TRUE(coordinator.Next().has_value());
  coordinator.BreakStreams();
  ASSERT_TRUE(journal.WaitFor("up 2"));
  EXPECT_THAT(journal.words(), testing::ElementsAre("up 1", "down", testing::_, "up 2"));
  client.Send(1, Heartbeat(2));
  client.Send(2, Heartbeat(3));
  const auto heard = coordinator.Next();
  ASSERT_TRUE(heard.has_value());
  EXPECT_EQ(heard->stream, 2);
  EXPECT_EQ(heard->report.heartbeat().sequence(), 3);
}

TEST(CoordinatorClientTest, PausesWhenEveryStreamIsRefused) {
  FakeCoordinator coordinator;
  coordinator.Refuse({grpc::StatusCode::ABORTED, "this one is stale"});
  Journal journal;
  const absl::Time start = absl::Now();
  CoordinatorClient client(Channels(coordinator.address()), journal.Events());
  ASSERT_TRUE(journal.WaitFor("up 7"));
  // 20 + 40 + 80 + 160 + 320 ms, less the jitter.
  EXPECT_GT(absl::Now() - start, absl::Milliseconds(450));
  EXPECT_TRUE(journal.WaitFor("down ABORTED: this one is stale"));
}

TEST(CoordinatorClientTest, FindsARestartedCoordinator) {
  FakeCoordinator coordinator;
  Journal journal;
  CoordinatorClient client(Channels(coordinator.address()), journal.Events());
  ASSERT_TRUE(journal.WaitFor("up 1"));
  coordinator.Stop();
  ASSERT_TRUE(journal.WaitFor("down"));
  coordinator.Restart();
  ASSERT_TRUE(journal.WaitFor("up 2"));
}

TEST(CoordinatorClientTest, FinishDeliversWhatIsQueued) {
  FakeCoordinator coordinator;
  Journal journal;
  {
    CoordinatorClient client(Channels(coordinator.address()), journal.Events());
    ASSERT_TRUE(journal.WaitFor("up 1"));
    for (int64_t i = 1; i <= 1000; ++i) {
      client.Send(1, Heartbeat(i));
    }
    client.Finish(absl::Seconds(10));
  }
  for (int64_t i = 1; i <= 1000; ++i) {
    const auto heard = coordinator.Next();
    ASSERT_TRUE(heard.has_value()) << "after " << i - 1;
    EXPECT_EQ(heard->report.heartbeat().sequence(), i);
  }
}

TEST(CoordinatorClientTest, EndsQuicklyWithoutACoordinator) {
  std::string nobody;
  {
    FakeCoordinator gone;
    nobody = gone.address();
  }
  Journal journal;
  const absl::Time start = absl::Now();
  {
    CoordinatorClient client(Channels(nobody), journal.Events());
    client.Finish(absl::Seconds(10));
  }
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
  EXPECT_THAT(journal.words(), testing::IsEmpty());
}

TEST(ChannelFactoryTest, NamesWhatIsWrong) {
  EXPECT_EQ(ChannelFactory::Create({}).status().code(), absl::StatusCode::kInvalidArgument);
  const auto missing =
      ChannelFactory::Create({.target = "localhost:1", .tls_ca = "/nowhere/ca.pem"});
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(missing.status().message(), testing::HasSubstr("/nowhere/ca.pem"));
  const auto directory = ChannelFactory::Create({.target = "localhost:1", .tls_ca = "/"});
  EXPECT_EQ(directory.status().code(), absl::StatusCode::kInvalidArgument);
  // Not silently in plain text.
  const auto no_ca =
      ChannelFactory::Create({.target = "localhost:1", .tls_cert = "/c", .tls_key = "/k"});
  EXPECT_THAT(no_ca.status().message(), testing::HasSubstr("--tls-ca"));
  const auto no_key = ChannelFactory::Create({.target = "localhost:1", .tls_cert = "/c"});
  EXPECT_THAT(no_key.status().message(), testing::HasSubstr("--tls-key"));
}

}  // namespace
}  // namespace ringmaster::worker
