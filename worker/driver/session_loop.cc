#include "worker/driver/session_loop.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "base/steady_now.h"
#include "proto/rpc_status.h"
#include "spdlog/spdlog.h"
#include "worker/driver/ring_runner.h"
#include "worker/session/exit_codes.h"

namespace ringmaster::worker {
namespace {

// Goodbye must have left before the process does.
constexpr absl::Duration kGoodbyePatience = absl::Seconds(1);
constexpr absl::Duration kLongestWait = absl::Seconds(60);

RingContext WithPost(RingContext context, EventQueue* queue) {
  context.post = [queue](Event event) { queue->Push(std::move(event)); };
  return context;
}

}  // namespace

struct SessionLoop::Implementation {
  Implementation(ChannelFactory channels, EventQueue* queue_in, SessionLoopOptions options)
      : queue(queue_in),
        core(options.identity, options.limits),
        metrics(options.ring.metrics),
        runner(options.device, WithPost(std::move(options.ring), queue_in)),
        client(std::move(channels),
               {.up = [queue_in](int64_t stream) { queue_in->Push(StreamUp{}, stream); },
                .directive =
                    [queue_in](v1::Directive directive) {
                      queue_in->Push(DirectiveArrived{std::move(directive)});
                    },
                .down =
                    [queue_in](const absl::Status& reason) {
                      SPDLOG_WARN("the stream to the coordinator broke: {}", reason.ToString());
                      const bool taken = Details(reason).reason == "WORKER_NAME_TAKEN";
                      queue_in->Push(StreamDown{.name_taken = taken ? std::string(reason.message())
                                                                    : std::string()});
                    }}) {}

  void Observe(const EventQueue::Entry& entry) {
    if (std::holds_alternative<StreamUp>(entry.event)) {
      stream = entry.stream;
      metrics->OnStream(true);
      SPDLOG_INFO("attached to the coordinator");
    } else if (std::holds_alternative<StreamDown>(entry.event)) {
      metrics->OnStream(false);
    }
  }

  void Handle(const Event& event) {
    for (const Action& action : core.Handle(SteadyNow(), event)) {
      std::visit([this](const auto& one) { Do(one); }, action);
    }
  }

  void Do(const SendReport& action) {
    v1::WorkerReport report = action.report;
    if (report.has_heartbeat()) {
      report.mutable_heartbeat()->set_memory_used_bytes(metrics->MemoryUsedBytes());
    }
    client.Send(stream, std::move(report));
  }
  void Do(const SetPublishing& action) {
    if (!action.publishing) {
      SPDLOG_WARN("the lease is over: training goes on, but nothing is shown as current");
    }
    metrics->SetPublishing(action.publishing);
  }
  void Do(const ExitProcess& action) {
    end = SessionEnd{action.code, action.reason};
    if (action.code == kExitOk) {
      client.Finish(kGoodbyePatience);
    }
  }
  template <typename RingAction>
  void Do(const RingAction& action) {
    runner.Do(action);
  }

  EventQueue* const queue;
  SessionCore core;
  WorkerMetrics* const metrics;
  int64_t stream = 0;
  std::optional<SessionEnd> end;
  RingRunner runner;
  // After the runner, so that nothing is sent by a client that is gone.
  CoordinatorClient client;
};

SessionLoop::SessionLoop(ChannelFactory channels, EventQueue* queue, SessionLoopOptions options)
    : implementation_(
          std::make_unique<Implementation>(std::move(channels), queue, std::move(options))) {}

SessionLoop::~SessionLoop() = default;

SessionEnd SessionLoop::Run() {
  Implementation& self = *implementation_;
  while (!self.end.has_value()) {
    const absl::Duration wait = self.core.NextTimer() - SteadyNow();
    const auto entry = self.queue->Pop(std::clamp(wait, absl::ZeroDuration(), kLongestWait));
    if (entry.has_value()) {
      self.Observe(*entry);
      self.Handle(entry->event);
    }
    if (!self.end.has_value() && SteadyNow() >= self.core.NextTimer()) {
      self.Handle(TimerTick{});
    }
  }
  return *self.end;
}

}  // namespace ringmaster::worker
