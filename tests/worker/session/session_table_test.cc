#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <string>

#include "tests/worker/session/session_driver.h"

namespace ringmaster::worker {
namespace {

using ::testing::TestWithParam;

// Every (phase, event) pair: generation 5 is the worker's, 4 is stale, 6 is new. A cell is "actions
// -> phase after"; pairs that are not listed must do nothing and stay.
struct Row {
  std::string event;
  std::function<Event(const SessionDriver&)> make;
  std::map<v1::Phase, std::string> cells;
};

DirectiveArrived D(v1::Directive directive) { return {std::move(directive)}; }

constexpr v1::Phase kPhases[] = {v1::PHASE_IDLE,    v1::PHASE_JOINING, v1::PHASE_CONNECTING,
                                 v1::PHASE_READY,   v1::PHASE_RUNNING, v1::PHASE_ABORTING,
                                 v1::PHASE_FINISHED};

std::map<v1::Phase, std::string> ActivePhases(const std::string& cell) {
  return {{v1::PHASE_JOINING, cell},
          {v1::PHASE_CONNECTING, cell},
          {v1::PHASE_READY, cell},
          {v1::PHASE_RUNNING, cell},
          {v1::PHASE_FINISHED, cell}};
}

std::map<v1::Phase, std::string> With(std::map<v1::Phase, std::string> cells,
                                      std::map<v1::Phase, std::string> more) {
  for (auto& [phase, cell] : more) cells[phase] = cell;
  return cells;
}

std::map<v1::Phase, std::string> AllPhases(const std::string& cell) {
  return With(ActivePhases(cell), {{v1::PHASE_IDLE, cell}, {v1::PHASE_ABORTING, cell}});
}

// SIGTERM or Drain; a rank that has finished waits to be let go.
std::map<v1::Phase, std::string> Leaving() {
  return {{v1::PHASE_IDLE, "Goodbye Exit(0) -> IDLE"},
          {v1::PHASE_JOINING, "AbandonRing -> ABORTING"},
          {v1::PHASE_CONNECTING, "AbandonRing -> ABORTING"},
          {v1::PHASE_READY, "AbandonRing -> ABORTING"},
          {v1::PHASE_RUNNING, "StopAfterStep -> RUNNING"}};
}

std::vector<Row> Rows() {
  using S = const SessionDriver&;
  const std::string unknown = "Fault -> ";
  return {
      {"form.stale",
       [](S s) { return D(s.Form(4)); },
       {{v1::PHASE_IDLE, "OpenTransport -> JOINING"}}},
      {"form.same",
       [](S s) { return D(s.Form(5)); },
       {{v1::PHASE_IDLE, "OpenTransport -> JOINING"}, {v1::PHASE_JOINING, "RingJoin -> JOINING"}}},
      {"form.next", [](S s) { return D(s.Form(6)); },
       With(ActivePhases("AbandonRing -> ABORTING"),
            {{v1::PHASE_IDLE, "OpenTransport -> JOINING"}})},
      {"form.other_job", [](S s) { return D(s.Form(1, "uid-b")); },
       With(ActivePhases("AbandonRing -> ABORTING"),
            {{v1::PHASE_IDLE, "OpenTransport -> JOINING"}})},
      {"connect.stale", [](S s) { return D(s.Connect(4)); }, {{v1::PHASE_IDLE, unknown + "IDLE"}}},
      {"connect.same",
       [](S s) { return D(s.Connect(5)); },
       {{v1::PHASE_IDLE, unknown + "IDLE"},
        {v1::PHASE_JOINING, "ConnectAndRestore -> CONNECTING"},
        {v1::PHASE_READY, "RingReady -> READY"}}},
      {"connect.unknown", [](S s) { return D(s.Connect(6)); },
       With({}, {{v1::PHASE_IDLE, "Fault -> IDLE"},
                 {v1::PHASE_JOINING, "Fault -> JOINING"},
                 {v1::PHASE_CONNECTING, "Fault -> CONNECTING"},
                 {v1::PHASE_READY, "Fault -> READY"},
                 {v1::PHASE_RUNNING, "Fault -> RUNNING"},
                 {v1::PHASE_ABORTING, "Fault -> ABORTING"},
                 {v1::PHASE_FINISHED, "Fault -> FINISHED"}})},
      {"start.stale", [](S s) { return D(s.Start(4)); }, {{v1::PHASE_IDLE, unknown + "IDLE"}}},
      {"start.same",
       [](S s) { return D(s.Start(5)); },
       {{v1::PHASE_IDLE, unknown + "IDLE"},
        {v1::PHASE_READY, "RunSteps -> RUNNING"},
        {v1::PHASE_FINISHED, "RingFinished -> FINISHED"}}},
      {"abort.stale", [](S s) { return D(s.Abort(4)); }, {{v1::PHASE_IDLE, "RingAborted -> IDLE"}}},
      {"abort.same", [](S s) { return D(s.Abort(5)); },
       With(ActivePhases("AbandonRing -> ABORTING"), {{v1::PHASE_IDLE, "RingAborted -> IDLE"}})},
      {"abort.other_job",
       [](S s) { return D(s.Abort(5, "uid-b")); },
       {{v1::PHASE_IDLE, "RingAborted -> IDLE"},
        {v1::PHASE_JOINING, "RingAborted -> JOINING"},
        {v1::PHASE_CONNECTING, "RingAborted -> CONNECTING"},
        {v1::PHASE_READY, "RingAborted -> READY"},
        {v1::PHASE_RUNNING, "RingAborted -> RUNNING"},
        {v1::PHASE_ABORTING, "RingAborted -> ABORTING"},
        {v1::PHASE_FINISHED, "RingAborted -> FINISHED"}}},
      {"release.stale", [](S s) { return D(s.Release(4)); }, {}},
      {"release.same", [](S s) { return D(s.Release(5)); },
       ActivePhases("AbandonRing -> ABORTING")},
      {"release.other_job", [](S s) { return D(s.Release(9, "uid-b")); }, {}},
      {"committed",
       [](S s) { return D(s.Committed(5, 3)); },
       {{v1::PHASE_JOINING, "WriteManifest -> JOINING"},
        {v1::PHASE_CONNECTING, "WriteManifest -> CONNECTING"},
        {v1::PHASE_READY, "WriteManifest -> READY"},
        {v1::PHASE_RUNNING, "WriteManifest -> RUNNING"},
        {v1::PHASE_ABORTING, "WriteManifest -> ABORTING"},
        {v1::PHASE_FINISHED, "WriteManifest -> FINISHED"}}},
      {"finish.stale", [](S s) { return D(s.FinishSteps(4)); }, {}},
      {"finish.same",
       [](S s) { return D(s.FinishSteps(5)); },
       {{v1::PHASE_RUNNING, "FinishAfterStep -> RUNNING"}}},
      {"finish.later", [](S s) { return D(s.FinishSteps(6)); }, {}},
      {"finish.other_job", [](S s) { return D(s.FinishSteps(5, "uid-b")); }, {}},
      {"delete.stale", [](S s) { return D(s.Delete(4)); }, {}},
      {"delete.same",
       [](S s) { return D(s.Delete(5)); },
       {{v1::PHASE_JOINING, "DeletePaths -> JOINING"},
        {v1::PHASE_CONNECTING, "DeletePaths -> CONNECTING"},
        {v1::PHASE_READY, "DeletePaths -> READY"},
        {v1::PHASE_RUNNING, "DeletePaths -> RUNNING"},
        {v1::PHASE_ABORTING, "DeletePaths -> ABORTING"},
        {v1::PHASE_FINISHED, "DeletePaths -> FINISHED"}}},
      {"drain",
       [](S s) {
         auto d = s.New();
         d.mutable_drain();
         return D(d);
       },
       Leaving()},
      {"stop", [](S) { return StopRequested{}; }, Leaving()},
      {"die",
       [](S s) {
         auto d = s.New();
         d.mutable_die();
         return D(d);
       },
       AllPhases("Exit(85) -> same")},
      {"stale_epoch.die",
       [](S s) {
         auto d = s.New();
         d.set_epoch(0);
         d.mutable_die();
         return D(d);
       },
       {{v1::PHASE_IDLE, "Exit(85) -> same"}}},
      {"unset_directive", [](S s) { return D(s.New()); }, {}},
      {"opened.stale", [](S s) { return s.Opened(4); }, {}},
      {"opened.same",
       [](S s) { return s.Opened(5); },
       {{v1::PHASE_JOINING, "RingJoin -> JOINING"}}},
      {"restored.stale", [](S s) { return s.RestoredAt(4); }, {}},
      {"restored.same",
       [](S s) { return s.RestoredAt(5); },
       {{v1::PHASE_CONNECTING, "RingReady -> READY"}}},
      {"restored.wrong_step",
       [](S s) { return s.RestoredAt(5, 9); },
       {{v1::PHASE_CONNECTING, "Fault AbandonRing -> ABORTING"}}},
      {"step.stale", [](S s) { return s.Step(4, 1); }, {}},
      {"step.same",
       [](S s) { return s.Step(5, 1); },
       {{v1::PHASE_RUNNING, "StepsDone -> RUNNING"}}},
      {"shard.stale", [](S s) { return s.Shard(4, 1); }, {}},
      {"shard.same",
       [](S s) { return s.Shard(5, 1); },
       {{v1::PHASE_RUNNING, "ShardWritten -> RUNNING"}}},
      {"finished.stale", [](S s) { return s.Finished(4); }, {}},
      {"finished.same",
       [](S s) { return s.Finished(5); },
       {{v1::PHASE_RUNNING, "RingFinished -> FINISHED"}}},
      {"stopped.stale", [](S s) { return s.Stopped(4); }, {}},
      {"stopped.same", [](S s) { return s.Stopped(5); },
       With(ActivePhases("RingAborted -> IDLE"), {{v1::PHASE_ABORTING, "RingAborted -> IDLE"}})},
      {"faulted.stale", [](S s) { return s.Faulted(4); }, {}},
      {"faulted.same", [](S s) { return s.Faulted(5); },
       With(ActivePhases("Fault RingAborted -> IDLE"),
            {{v1::PHASE_ABORTING, "Fault RingAborted -> IDLE"}})},
      {"tick.early", [](S) { return TimerTick{}; }, {}},
      {"stream_down", [](S) { return StreamDown{}; }, {}},
      {"stream_up", [](S) { return StreamUp{}; }, AllPhases("Hello -> same")},
  };
}

std::string ShortName(v1::Phase phase) {
  return v1::Phase_Name(phase).substr(std::string("PHASE_").size());
}

TEST(SessionTableTest, EveryEventInEveryPhase) {
  for (const Row& row : Rows()) {
    for (v1::Phase phase : kPhases) {
      SCOPED_TRACE(row.event + " in " + ShortName(phase));
      SessionDriver session;
      session.Reach(phase, 5);
      ASSERT_EQ(session.core().phase(), phase);
      const std::string actions = session.Do(row.make(session));
      std::string expected = " -> " + ShortName(phase);
      if (auto cell = row.cells.find(phase); cell != row.cells.end()) {
        expected = cell->second;
        if (expected.ends_with(" -> same"))
          expected.replace(expected.size() - 4, 4, ShortName(phase));
      }
      EXPECT_EQ(actions + " -> " + ShortName(session.core().phase()), expected);
    }
  }
}

}  // namespace
}  // namespace ringmaster::worker
