#include "coordinator/loop/event_loop.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/rpc_status.h"
#include "spdlog/spdlog.h"

namespace ringmaster::coordinator {
namespace {

// The loop turns this often though there is nothing to do, so that a stuck one shows.
constexpr absl::Duration kIdleTurn = absl::Seconds(1);

// A row that was written several times in one batch is stored once, as it was last.
std::vector<RowChange> Coalesced(std::vector<RowChange> rows) {
  std::map<std::pair<Table, absl::string_view>, size_t> last;
  for (size_t i = 0; i < rows.size(); ++i) last[{rows[i].table, rows[i].key}] = i;
  if (last.size() == rows.size()) return rows;
  std::vector<bool> wanted(rows.size(), false);
  for (const auto& [key, index] : last) wanted[index] = true;
  std::vector<RowChange> result;
  result.reserve(last.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    if (wanted[i]) result.push_back(std::move(rows[i]));
  }
  return result;
}

template <typename T>
void MoveInto(std::vector<T>& target, std::vector<T>&& source) {
  target.insert(target.end(), std::make_move_iterator(source.begin()),
                std::make_move_iterator(source.end()));
}

void Append(Output& target, Output&& source) {
  MoveInto(target.rows, std::move(source.rows));
  MoveInto(target.replies, std::move(source.replies));
  MoveInto(target.directives, std::move(source.directives));
  MoveInto(target.changes, std::move(source.changes));
  MoveInto(target.episodes, std::move(source.episodes));
  MoveInto(target.queue_waits, std::move(source.queue_waits));
}

// The streams that sent it are closed when the core is reloaded, and workers say everything again.
bool FromStream(const Event& event) {
  return std::holds_alternative<WorkerReported>(event) ||
         std::holds_alternative<StreamClosed>(event);
}

const char* KindOf(const Event& event) {
  static constexpr const char* kNames[] = {"call", "report", "stream_closed", "worker_exit",
                                           "drain"};
  return kNames[event.index()];
}

}  // namespace

EventLoop::EventLoop(std::unique_ptr<Core> core, Store* store, Metrics* metrics,
                     EventLoopOptions options)
    : options_(std::move(options)), store_(store), metrics_(metrics), core_(std::move(core)) {
  last_turn_ = options_.now();
  CheckReserve(last_turn_);
  Publish(last_turn_);
}

EventLoop::~EventLoop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    came_.notify_one();
  }
  if (thread_.joinable()) thread_.join();
  const absl::Status stopped =
      Unavailable("SHUTTING_DOWN", "the coordinator is ending", options_.retry_delay);
  for (std::vector<Item> left = Take(); !left.empty(); left = Take()) {
    for (Item& item : left) Refuse(item, stopped);
  }
}

void EventLoop::Start() {
  thread_ = std::thread([this] { Run(); });
}

void EventLoop::Run() {
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      const absl::Duration wait =
          std::clamp(NextWake() - options_.now(), absl::ZeroDuration(), kIdleTurn);
      came_.wait_for(lock, absl::ToChronoNanoseconds(wait), [this] { return HasWork(); });
      if (stopping_) return;
    }
    RunOnce();
  }
}

absl::Time EventLoop::NextWake() const {
  return std::min({core_->NextTick(), hub_.NextTick(), next_store_trial_, next_publish_});
}

// ---- what comes in

void EventLoop::Enqueue(Item item) {
  std::lock_guard lock(mutex_);
  queue_.push_back(std::move(item));
  came_.notify_one();
}

void EventLoop::Call(ApiMessage message, std::optional<absl::StatusOr<ManifestFile>> manifest,
                     absl::Time deadline, ReplyCallback reply) {
  EnqueueCall({.event = ApiRequest{.message = std::move(message), .manifest = std::move(manifest)},
               .reply = std::move(reply),
               .deadline = deadline});
}

void EventLoop::WorkerEnded(v1::ReportFaultRequest request, absl::Time deadline,
                            ReplyCallback reply) {
  EnqueueCall({.event = WorkerExited{.request = std::move(request)},
               .reply = std::move(reply),
               .deadline = deadline});
}

void EventLoop::EnqueueCall(Item item) {
  {
    std::lock_guard lock(mutex_);
    if (queued_calls_ < options_.queued_calls_max) {
      ++queued_calls_;
      queue_.push_back(std::move(item));
      came_.notify_one();
      return;
    }
  }
  metrics_->Count(Metric::kLoopRejected, {"queue_full"});
  item.reply(Unavailable(
      "OVERLOADED", absl::StrCat(options_.queued_calls_max, " calls wait already; try again later"),
      options_.retry_delay));
}

uint64_t EventLoop::OpenStream(std::shared_ptr<DirectiveSink> sink) {
  std::lock_guard lock(mutex_);
  const uint64_t stream = next_stream_++;
  streams_.emplace(stream, std::move(sink));
  return stream;
}

void EventLoop::Report(uint64_t stream, v1::WorkerReport report, std::function<void()> taken) {
  Enqueue({.event = WorkerReported{.stream = stream, .report = std::move(report)},
           .after = std::move(taken)});
}

void EventLoop::CloseStream(uint64_t stream) {
  std::lock_guard lock(mutex_);
  streams_.erase(stream);
  queue_.push_back({.event = StreamClosed{.stream = stream}});
  came_.notify_one();
}

void EventLoop::Watch(v1::WatchTrainingJobsRequest request, std::shared_ptr<WatchSink> sink) {
  Enqueue({.after = [this, request = std::move(request), sink = std::move(sink)] {
    hub_.Add(options_.now(), *core_, request, sink);
  }});
}

void EventLoop::Unwatch(std::shared_ptr<WatchSink> sink) {
  Enqueue({.after = [this, sink = std::move(sink)] { hub_.Remove(sink.get()); }});
}

void EventLoop::Drain(std::function<void()> drained) {
  Enqueue({.event = DrainRequested{}, .after = [this, drained = std::move(drained)] {
             const absl::Status ended =
                 Unavailable("DRAINING", "the coordinator is stopping", options_.retry_delay);
             hub_.CloseAll(ended);
             for (const auto& sink : Sinks()) sink->Close(ended);
             drained();
           }});
}

std::vector<std::shared_ptr<DirectiveSink>> EventLoop::Sinks() const {
  std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<DirectiveSink>> sinks;
  for (const auto& [stream, sink] : streams_) sinks.push_back(sink);
  return sinks;
}

std::shared_ptr<const CoreSnapshot> EventLoop::snapshot() const {
  std::lock_guard lock(mutex_);
  return snapshot_;
}

absl::Duration EventLoop::SinceLastTurn() const {
  std::lock_guard lock(mutex_);
  return options_.now() - last_turn_;
}

// ---- one round

std::vector<EventLoop::Item> EventLoop::Take() {
  std::lock_guard lock(mutex_);
  std::vector<Item> batch;
  while (!queue_.empty() && batch.size() < options_.batch_max) {
    batch.push_back(std::move(queue_.front()));
    queue_.pop_front();
    if (batch.back().reply) --queued_calls_;
  }
  metrics_->Set(Metric::kLoopQueue, static_cast<double>(queue_.size()));
  return batch;
}

void EventLoop::RunOnce() {
  const absl::Time now = options_.now();
  {
    std::lock_guard lock(mutex_);
    last_turn_ = now;
  }
  std::vector<Item> batch = Take();
  for (Item& item : batch) {
    if (item.reply && item.deadline < now) {
      Refuse(item, absl::DeadlineExceededError("the deadline passed before the call was handled"));
    }
  }
  if (absl::Status status = Attempt(now, batch); !status.ok()) {
    Recover(now, status);
    // What must be possible on a full disk gets a second chance, with the reserve released and
    // creations refused.
    std::erase_if(batch, [](Item& item) {
      if (!item.event.has_value() || !FromStream(*item.event)) return false;
      if (item.after) item.after();
      return true;
    });
    if (absl::Status again = Attempt(now, batch); !again.ok()) {
      Recover(now, again);
      const absl::Status refusal =
          Unavailable("STORE_FULL", absl::StrCat("nothing can be stored: ", again.message()),
                      options_.retry_delay);
      for (Item& item : batch) Refuse(item, refusal);
    }
  }
  for (Item& item : batch) {
    if (item.after) item.after();
  }
  if (now >= next_store_trial_) TryStoreAgain(now);
  metrics_->Count(Metric::kWatchEvictions, {"slow"}, hub_.Tick(now, *core_));
  if (now >= next_publish_) {
    CheckReserve(now);
    Publish(now);
  }
  if (!batch.empty()) next_publish_ = std::min(next_publish_, now + options_.publish_interval);
  metrics_->Observe(Metric::kTickSeconds, absl::ToDoubleSeconds(options_.now() - now));
}

absl::Status EventLoop::Attempt(absl::Time now, std::vector<Item>& batch) {
  Output output = Handle(now, batch);
  if (const absl::Time due = core_->NextTick(); now >= due) {
    metrics_->Set(Metric::kTickLagSeconds, absl::ToDoubleSeconds(now - due));
    Append(output, core_->Tick(now));
  }
  return CommitAndRelease(now, std::move(output));
}

Output EventLoop::Handle(absl::Time now, std::vector<Item>& batch) {
  calls_.clear();
  std::vector<const Event*> events;
  for (Item& item : batch) {
    if (!item.event.has_value()) continue;
    if (item.reply) {
      const uint64_t call = next_call_++;
      if (auto* request = std::get_if<ApiRequest>(&*item.event)) request->call = call;
      if (auto* exited = std::get_if<WorkerExited>(&*item.event)) exited->call = call;
      calls_[call] = &item.reply;
    }
    metrics_->Count(Metric::kLoopEvents, {KindOf(*item.event)});
    events.push_back(&*item.event);
  }
  return core_->Handle(now, events);
}

absl::Status EventLoop::CommitAndRelease(absl::Time now, Output output) {
  const std::vector<RowChange> rows = Coalesced(std::move(output.rows));
  if (!rows.empty()) {
    const absl::Time begin = options_.now();
    absl::Status status = store_->Commit(rows);
    if (!status.ok()) return status;
    metrics_->Observe(Metric::kCommitSeconds, absl::ToDoubleSeconds(options_.now() - begin));
    metrics_->Observe(Metric::kCommitRows, static_cast<double>(rows.size()));
  }
  Release(output);
  metrics_->Count(Metric::kWatchEvictions, {"slow"}, hub_.Publish(now, *core_, output.changes));
  return absl::OkStatus();
}

void EventLoop::Release(const Output& output) {
  for (const Reply& reply : output.replies) {
    const auto call = calls_.find(reply.call);
    if (call == calls_.end() || !*call->second) continue;
    ReplyCallback callback = std::exchange(*call->second, nullptr);
    callback(reply.response);
  }
  for (const DirectiveTo& to : output.directives) {
    std::shared_ptr<DirectiveSink> sink;
    {
      std::lock_guard lock(mutex_);
      if (const auto it = streams_.find(to.stream); it != streams_.end()) sink = it->second;
    }
    if (sink == nullptr) continue;
    if (to.directive.has_value()) sink->Send(*to.directive);
    if (to.close) sink->Close(to.close_status);
  }
  CoreMetrics::Observe(output, *metrics_);
}

void EventLoop::Refuse(Item& item, const absl::Status& status) {
  item.event.reset();
  if (item.reply) std::exchange(item.reply, nullptr)(status);
}

// ---- when the store has no room

void EventLoop::Recover(absl::Time now, const absl::Status& why) {
  if (!CanGoOn(why)) options_.on_fatal(why);
  if (!store_full_) SPDLOG_ERROR("{}: submissions are refused until there is room", why.ToString());
  if (absl::IsResourceExhausted(why)) store_->ReleaseReserve();
  store_full_ = true;
  next_store_trial_ = now + options_.retry_delay;
  absl::StatusOr<StoredState> stored = store_->Load();
  if (!stored.ok()) options_.on_fatal(stored.status());
  absl::StatusOr<Output> output = core_->Reload(now, *stored);
  if (!output.ok()) options_.on_fatal(output.status());
  calls_.clear();
  Release(*output);
  metrics_->Count(Metric::kWatchEvictions, {"slow"}, hub_.Publish(now, *core_, output->changes));
}

void EventLoop::CheckReserve(absl::Time now) {
  if (store_full_ || store_->HasReserve()) return;
  SPDLOG_ERROR("store: its reserve is gone: submissions are refused until there is room");
  store_full_ = true;
  next_store_trial_ = now + options_.retry_delay;
  calls_.clear();
  if (absl::Status status = CommitAndRelease(now, core_->SetStoreFull(now, true)); !status.ok()) {
    Recover(now, status);
  }
}

void EventLoop::TryStoreAgain(absl::Time now) {
  next_store_trial_ = now + options_.retry_delay;
  if (!store_->RestoreReserve()) return;
  store_full_ = false;
  next_store_trial_ = absl::InfiniteFuture();
  calls_.clear();
  if (absl::Status status = CommitAndRelease(now, core_->SetStoreFull(now, false)); !status.ok()) {
    Recover(now, status);
    return;
  }
  SPDLOG_INFO("store: there is room again; submissions are accepted");
}

void EventLoop::Publish(absl::Time now) {
  auto snapshot = std::make_shared<const CoreSnapshot>(core_->Snapshot(now));
  core_metrics_.Publish(*snapshot, *metrics_);
  metrics_->Set(Metric::kWatchers, static_cast<double>(hub_.Count(/*of_one_job=*/true)), {"job"});
  metrics_->Set(Metric::kWatchers, static_cast<double>(hub_.Count(false)), {"jobs"});
  metrics_->Set(Metric::kStoreBytes, static_cast<double>(store_->SizeBytes()));
  // Ages grow though nothing happens.
  next_publish_ = now + kIdleTurn;
  std::lock_guard lock(mutex_);
  snapshot_ = std::move(snapshot);
}

}  // namespace ringmaster::coordinator
