#include "coordinator/loop/event_loop.h"

#include <future>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/rpc_status.h"
#include "tests/coordinator/loop/fake_store.h"
#include "tests/testing/training_job.h"

namespace ringmaster::coordinator {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class FakeSink : public DirectiveSink {
 public:
  void Send(v1::Directive directive) override { directives.push_back(std::move(directive)); }
  void Close(const absl::Status& status) override { closed = status; }

  std::vector<v1::Directive> directives;
  std::optional<absl::Status> closed;
};

class FakeWatcher : public WatchSink {
 public:
  void Start(std::vector<WatchMessage> snapshot) override { messages = std::move(snapshot); }
  bool Offer(const WatchMessage& message) override {
    if (slow) return false;
    messages.push_back(message);
    return true;
  }
  void Close(const absl::Status& status) override { closed = status; }

  // "job NAME STATE", "deleted NAME", "synced", "heartbeat".
  std::vector<std::string> Events() const {
    std::vector<std::string> events;
    for (const WatchMessage& message : messages) {
      if (message->has_job()) {
        events.push_back(
            absl::StrCat("job ", message->job().name().substr(30), " ",
                         v1::TrainingJobStatus::State_Name(message->job().status().state())));
      } else if (message->has_synced()) {
        events.push_back("synced");
      } else if (message->has_heartbeat()) {
        events.push_back("heartbeat");
      } else {
        events.push_back(absl::StrCat("deleted ", message->deleted_name().substr(30)));
      }
    }
    return events;
  }

  bool slow = false;
  std::vector<WatchMessage> messages;
  std::optional<absl::Status> closed;
};

std::string Name(const std::string& id) { return "projects/default/trainingJobs/" + id; }

// The loop without its thread: RunOnce() by hand, a clock by hand.
class EventLoopTest : public ::testing::Test {
 protected:
  EventLoopTest() { Restart(); }

  void Restart(EventLoopOptions options = {}) {
    loop_.reset();
    CoreOptions core_options;
    core_options.shared_directory = "/shared";
    auto core = Core::Create(core_options, *store_.Load(), ++epoch_, now_, /*seed=*/1);
    ASSERT_TRUE(core.ok()) << core.status();
    options.now = [this] { return now_; };
    options.on_fatal = [this](const absl::Status& status) {
      fatal_ = status;
      throw std::runtime_error("fatal");  // It must not return.
    };
    loop_ = std::make_unique<EventLoop>(std::move(*core), &store_, &metrics_, options);
  }

  using Result = std::shared_ptr<std::optional<absl::StatusOr<ApiResponse>>>;

  Result Call(ApiMessage message, absl::Time deadline = absl::InfiniteFuture()) {
    auto result = std::make_shared<std::optional<absl::StatusOr<ApiResponse>>>();
    loop_->Call(std::move(message), std::nullopt, deadline,
                [result](absl::StatusOr<ApiResponse> reply) { *result = std::move(reply); });
    return result;
  }
  Result Create(const std::string& id) { return Call(SmallRequest(id)); }
  Result Cancel(const std::string& id) {
    v1::CancelTrainingJobRequest request;
    request.set_name(Name(id));
    return Call(request);
  }
  Result Get(const std::string& id) {
    v1::GetTrainingJobRequest request;
    request.set_name(Name(id));
    return Call(request);
  }
  static absl::StatusCode CodeOf(const Result& result) {
    return result->has_value() ? (*result)->status().code() : absl::StatusCode::kUnknown;
  }
  std::shared_ptr<FakeWatcher> Watch(const std::string& id = "") {
    auto watcher = std::make_shared<FakeWatcher>();
    v1::WatchTrainingJobsRequest request;
    if (!id.empty()) request.set_name(Name(id));
    loop_->Watch(request, watcher);
    return watcher;
  }
  // A worker's hello on a new stream.
  std::pair<uint64_t, std::shared_ptr<FakeSink>> Attach(const std::string& worker) {
    auto sink = std::make_shared<FakeSink>();
    const uint64_t stream = loop_->OpenStream(sink);
    v1::WorkerReport report;
    report.set_incarnation(std::string(32, 'a'));
    report.mutable_hello()->set_worker("workers/" + worker);
    report.mutable_hello()->mutable_hardware()->set_device(v1::CPU);
    loop_->Report(stream, report, [this] { ++taken_; });
    return {stream, sink};
  }

  absl::Time now_ = absl::FromUnixSeconds(1'700'000'000);
  int64_t epoch_ = 0;
  int taken_ = 0;
  FakeStore store_;
  Metrics metrics_;
  std::optional<absl::Status> fatal_;
  std::unique_ptr<EventLoop> loop_;
};

TEST_F(EventLoopTest, RepliesLeaveAfterOneCommitOfTheBatch) {
  std::vector<Result> results;
  for (int i = 0; i < 20; ++i) results.push_back(Create(absl::StrCat("job-", i)));
  EXPECT_FALSE(results[0]->has_value());
  loop_->RunOnce();
  for (const Result& result : results) EXPECT_EQ(CodeOf(result), absl::StatusCode::kOk);
  EXPECT_EQ(store_.commits, 1);
  EXPECT_EQ(store_.rows.size(), 20);
}

TEST_F(EventLoopTest, ReadsAndHeartbeatsCommitNothing) {
  auto [stream, sink] = Attach("w");
  const Result get = Get("nothing");
  loop_->RunOnce();
  v1::WorkerReport heartbeat;
  heartbeat.set_incarnation(std::string(32, 'a'));
  heartbeat.mutable_heartbeat()->set_sequence(1);
  loop_->Report(stream, heartbeat, [this] { ++taken_; });
  loop_->RunOnce();
  EXPECT_EQ(CodeOf(get), absl::StatusCode::kNotFound);
  EXPECT_EQ(store_.commits, 0);
  EXPECT_EQ(taken_, 2);
  ASSERT_EQ(sink->directives.size(), 2);
  EXPECT_TRUE(sink->directives[0].has_welcome());
  EXPECT_EQ(sink->directives[1].heartbeat_ack().sequence(), 1);
}

TEST_F(EventLoopTest, FullQueueRefusesAtOnceWithARetryDelay) {
  Restart({.queued_calls_max = 2});
  const Result first = Get("aaaa");
  const Result second = Get("aaaa");
  const Result third = Get("aaaa");
  ASSERT_EQ(CodeOf(third), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(Details((*third)->status()).retry_delay.has_value());
  EXPECT_FALSE(first->has_value());
  // Workers are heard all the same.
  Attach("w");
  loop_->RunOnce();
  EXPECT_EQ(CodeOf(second), absl::StatusCode::kNotFound);
  EXPECT_EQ(taken_, 1);
  EXPECT_EQ(CodeOf(Get("aaaa")), absl::StatusCode::kUnknown);  // Waits: there is room again.
}

TEST_F(EventLoopTest, CallsWhoseDeadlineIsPastAreNotHandled) {
  v1::GetTrainingJobRequest request;
  request.set_name(Name("aaaa"));
  const Result late = Call(request, now_ - absl::Milliseconds(1));
  const Result in_time = Call(request, now_ + absl::Milliseconds(1));
  loop_->RunOnce();
  EXPECT_EQ(CodeOf(late), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(CodeOf(in_time), absl::StatusCode::kNotFound);
}

TEST_F(EventLoopTest, LongQueueIsHandledInBatches) {
  Restart({.batch_max = 8});
  std::vector<Result> results;
  for (int i = 0; i < 20; ++i) results.push_back(Create(absl::StrCat("job-", i)));
  for (int round = 1; round <= 3; ++round) {
    loop_->RunOnce();
    EXPECT_EQ(store_.commits, round);
  }
  EXPECT_EQ(CodeOf(results[19]), absl::StatusCode::kOk);
}

TEST_F(EventLoopTest, FullStoreUndoesTheBatchAndGoesOnReading) {
  const Result kept = Create("kept");
  auto [stream, sink] = Attach("w");
  loop_->RunOnce();
  const auto watcher = Watch();
  loop_->RunOnce();
  ASSERT_EQ(CodeOf(kept), absl::StatusCode::kOk);

  store_.next = absl::ResourceExhaustedError("no space");
  const Result refused = Create("refused");
  const Result read = Get("kept");
  loop_->RunOnce();
  ASSERT_EQ(CodeOf(refused), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(Details((*refused)->status()).retry_delay.has_value());
  EXPECT_EQ(CodeOf(read), absl::StatusCode::kOk);
  EXPECT_FALSE(store_.reserved);
  // Workers attach again and say what they do.
  ASSERT_TRUE(sink->closed.has_value());
  EXPECT_EQ(sink->closed->code(), absl::StatusCode::kUnavailable);
  loop_->CloseStream(stream);
  auto [again, sink_again] = Attach("w");
  const Result gone = Get("refused");
  loop_->RunOnce();
  EXPECT_EQ(CodeOf(gone), absl::StatusCode::kNotFound);
  ASSERT_FALSE(sink_again->directives.empty());
  EXPECT_TRUE(sink_again->directives[0].has_welcome());
  for (const std::string& event : watcher->Events()) EXPECT_THAT(event, Not(HasSubstr("refused")));

  // There is room again: found out at the next trial.
  store_.next = absl::OkStatus();
  now_ += absl::Seconds(2);
  loop_->RunOnce();
  EXPECT_TRUE(store_.reserved);
  const Result accepted = Create("accepted");
  loop_->RunOnce();
  EXPECT_EQ(CodeOf(accepted), absl::StatusCode::kOk);
}

TEST_F(EventLoopTest, CancellationWorksOnAFullDiskWithTheReserve) {
  Create("kept");
  loop_->RunOnce();
  store_.next = absl::ResourceExhaustedError("no space");
  store_.reserve_helps = true;
  const Result create = Create("other");
  const Result cancel = Cancel("kept");
  loop_->RunOnce();
  EXPECT_EQ(CodeOf(create), absl::StatusCode::kUnavailable);
  ASSERT_EQ(CodeOf(cancel), absl::StatusCode::kOk) << (*cancel)->status();
  EXPECT_EQ(std::get<v1::TrainingJob>(***cancel).status().state(),
            v1::TrainingJobStatus::CANCELLED);
  Restart();
  const Result get = Get("kept");
  loop_->RunOnce();
  ASSERT_EQ(CodeOf(get), absl::StatusCode::kOk);
  EXPECT_EQ(std::get<v1::TrainingJob>(***get).status().state(), v1::TrainingJobStatus::CANCELLED);
}

// What a start on a full disk makes room for is not for new jobs.
TEST_F(EventLoopTest, AStartWithoutTheReserveIsAStartWithAFullStore) {
  Create("kept");
  loop_->RunOnce();
  store_.next = absl::ResourceExhaustedError("no space");
  store_.reserve_helps = true;
  store_.reserved = false;
  Restart();
  EXPECT_TRUE(loop_->snapshot()->store_full);
  const Result create = Create("other");
  const Result cancel = Cancel("kept");
  loop_->RunOnce();
  EXPECT_EQ(CodeOf(create), absl::StatusCode::kUnavailable);
  EXPECT_EQ(CodeOf(cancel), absl::StatusCode::kOk);
  EXPECT_THAT(metrics_.Text(), HasSubstr("ringmaster_store_full 1"));
  store_.next = absl::OkStatus();
  now_ += absl::Seconds(2);
  loop_->RunOnce();
  EXPECT_TRUE(store_.reserved);
  const Result accepted = Create("other");
  loop_->RunOnce();
  EXPECT_EQ(CodeOf(accepted), absl::StatusCode::kOk);
}

TEST_F(EventLoopTest, LockedStoreRefusesOnlyUntilItIsFree) {
  store_.next = absl::UnavailableError("locked");
  const Result refused = Create("aaaa");
  loop_->RunOnce();
  EXPECT_EQ(CodeOf(refused), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(store_.reserved);
  store_.next = absl::OkStatus();
  now_ += absl::Seconds(2);
  loop_->RunOnce();
  const Result accepted = Create("aaaa");
  loop_->RunOnce();
  EXPECT_EQ(CodeOf(accepted), absl::StatusCode::kOk);
}

TEST_F(EventLoopTest, BrokenStoreEndsTheProcessAndNothingIsSaid) {
  store_.next = absl::InternalError("fsync failed");
  const Result result = Create("aaaa");
  EXPECT_THROW(loop_->RunOnce(), std::runtime_error);
  ASSERT_TRUE(fatal_.has_value());
  EXPECT_EQ(fatal_->code(), absl::StatusCode::kInternal);
  EXPECT_FALSE(result->has_value());
}

TEST_F(EventLoopTest, WatchIsASnapshotThenChanges) {
  Create("aaaa");
  loop_->RunOnce();
  // In one batch: what comes before the watch is in its snapshot, what comes after too.
  Create("bbbb");
  const auto all = Watch();
  const auto one = Watch("aaaa");
  const auto missing = Watch("none");
  loop_->RunOnce();
  EXPECT_EQ(all->Events(),
            (std::vector<std::string>{"job aaaa QUEUED", "job bbbb QUEUED", "synced"}));
  EXPECT_EQ(one->Events(), (std::vector<std::string>{"job aaaa QUEUED", "synced"}));
  ASSERT_TRUE(missing->closed.has_value());
  EXPECT_EQ(missing->closed->code(), absl::StatusCode::kNotFound);

  Cancel("bbbb");
  loop_->RunOnce();
  EXPECT_EQ(all->Events().back(), "job bbbb CANCELLED");
  EXPECT_EQ(one->Events().size(), 2);
  int64_t version = 0;
  for (const WatchMessage& message : all->messages) {
    EXPECT_GE(message->resource_version(), version);
    version = message->resource_version();
  }
  v1::DeleteTrainingJobRequest request;
  request.set_name(Name("bbbb"));
  Call(request);
  loop_->RunOnce();
  EXPECT_EQ(all->Events().back(), "deleted bbbb");
  EXPECT_GT(all->messages.back()->resource_version(), version);
}

TEST_F(EventLoopTest, WatchersShareTheMessageOfAJobThatDidNotChange) {
  Create("aaaa");
  loop_->RunOnce();
  now_ += absl::Seconds(1);
  Create("bbbb");
  const auto first = Watch();
  loop_->RunOnce();
  Cancel("bbbb");
  loop_->RunOnce();
  const auto second = Watch();
  const auto one = Watch("bbbb");
  loop_->RunOnce();
  EXPECT_EQ(second->Events(),
            (std::vector<std::string>{"job aaaa QUEUED", "job bbbb CANCELLED", "synced"}));
  EXPECT_EQ(second->messages[0], first->messages[0]);
  EXPECT_EQ(second->messages[1], first->messages.back());
  EXPECT_EQ(one->messages[0], first->messages.back());
  for (const WatchMessage& message : second->messages) {
    EXPECT_LE(message->resource_version(), second->messages.back()->resource_version());
  }
  // What a batch that was undone has changed is shown again.
  const size_t told = second->messages.size();
  store_.next = absl::ResourceExhaustedError("no space");
  Cancel("aaaa");
  loop_->RunOnce();
  ASSERT_GT(second->messages.size(), told);
  EXPECT_EQ(second->Events().back(), "job aaaa QUEUED");
  const auto third = Watch();
  loop_->RunOnce();
  EXPECT_EQ(third->messages[0], second->messages.back());
}

TEST_F(EventLoopTest, SilentWatchGetsHeartbeatsAndASlowOneIsDropped) {
  const auto watcher = Watch();
  const auto slow = Watch();
  loop_->RunOnce();
  slow->slow = true;
  now_ += absl::Seconds(29);
  loop_->RunOnce();
  EXPECT_EQ(watcher->Events(), (std::vector<std::string>{"synced"}));
  EXPECT_LE(loop_->NextWake(), now_ + absl::Seconds(1));
  now_ += absl::Seconds(1);
  loop_->RunOnce();
  EXPECT_EQ(watcher->Events(), (std::vector<std::string>{"synced", "heartbeat"}));
  EXPECT_THAT(metrics_.Text(), HasSubstr("ringmaster_watch_evictions_total{reason=\"slow\"} 1"));
  EXPECT_THAT(metrics_.Text(), HasSubstr("ringmaster_watchers{kind=\"jobs\"} 1"));
  EXPECT_THAT(metrics_.Text(), HasSubstr("ringmaster_watchers{kind=\"job\"} 0"));
  slow->slow = false;
  Create("aaaa");
  loop_->RunOnce();
  EXPECT_EQ(slow->messages.size(), 1);
  loop_->Unwatch(watcher);
  loop_->RunOnce();
  Create("bbbb");
  loop_->RunOnce();
  EXPECT_EQ(watcher->Events().size(), 3);
}

TEST_F(EventLoopTest, DrainRefusesMutationsAndEndsStreams) {
  auto [stream, sink] = Attach("w");
  const auto watcher = Watch();
  bool drained = false;
  const Result accepted = Create("before");
  loop_->Drain([&] { drained = true; });
  const Result refused = Create("after");
  const Result read = Get("before");
  loop_->RunOnce();
  EXPECT_TRUE(drained);
  EXPECT_EQ(CodeOf(accepted), absl::StatusCode::kOk);
  EXPECT_EQ(CodeOf(refused), absl::StatusCode::kUnavailable);
  EXPECT_EQ(CodeOf(read), absl::StatusCode::kOk);
  ASSERT_TRUE(sink->closed.has_value() && watcher->closed.has_value());
  EXPECT_EQ(sink->closed->code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(watcher->closed->code(), absl::StatusCode::kUnavailable);
}

TEST_F(EventLoopTest, PublishesASnapshotAndMetrics) {
  Create("aaaa");
  Attach("w");
  loop_->RunOnce();
  now_ += absl::Seconds(1);
  EXPECT_LE(loop_->NextWake(), now_);
  loop_->RunOnce();
  const auto snapshot = loop_->snapshot();
  EXPECT_EQ(snapshot->jobs.at(v1::TrainingJobStatus::QUEUED) + 0, 1);
  const std::string text = metrics_.Text();
  EXPECT_THAT(text, HasSubstr("ringmaster_jobs{state=\"queued\"} 1"));
  EXPECT_THAT(text, HasSubstr("ringmaster_jobs_submitted_total 1"));
  EXPECT_THAT(text, HasSubstr("ringmaster_workers{state=\"idle\"} 1"));
  EXPECT_THAT(text, HasSubstr("ringmaster_loop_events_total{kind=\"call\"} 1"));
}

TEST_F(EventLoopTest, AgesGrowThoughNothingHappens) {
  Create("aaaa");
  loop_->RunOnce();
  now_ += absl::Seconds(1);
  loop_->RunOnce();
  now_ += absl::Seconds(59);
  loop_->RunOnce();
  EXPECT_THAT(metrics_.Text(), HasSubstr("ringmaster_queue_longest_wait_seconds 60"));
}

TEST_F(EventLoopTest, ThreadAnswersAndWaitersAreRefusedAtTheEnd) {
  loop_.reset();
  CoreOptions core_options;
  core_options.shared_directory = "/shared";
  auto core = Core::Create(core_options, *store_.Load(), ++epoch_, absl::Now(), 1);
  auto loop = std::make_unique<EventLoop>(std::move(*core), &store_, &metrics_,
                                          EventLoopOptions{.now = absl::Now});
  loop->Start();
  std::promise<void> done;
  v1::GetTrainingJobRequest request;
  request.set_name(Name("aaaa"));
  loop->Call(request, std::nullopt, absl::InfiniteFuture(), [&](absl::StatusOr<ApiResponse> reply) {
    EXPECT_EQ(reply.status().code(), absl::StatusCode::kNotFound);
    done.set_value();
  });
  done.get_future().wait();
  EXPECT_LT(loop->SinceLastTurn(), absl::Seconds(60));
  loop.reset();

  Restart();
  const Result waiting = Get("aaaa");
  loop_.reset();
  EXPECT_EQ(CodeOf(waiting), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace ringmaster::coordinator
