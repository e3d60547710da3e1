#include "tests/worker/driver/ring_scene.h"

#include <filesystem>
#include <fstream>
#include <set>
#include <thread>
#include <utility>

#include "absl/strings/str_format.h"
#include "base/steady_now.h"
#include "gtest/gtest.h"
#include "tests/worker/train/resolved_spec.h"

namespace ringmaster::worker {

struct RingScene::Worker {
  Worker(RingScene& scene, const std::string& name, std::string id, const std::string& fault)
      : incarnation(std::move(id)), job_log(std::make_shared<JobLog>("workers/" + name)) {
    SessionLoopOptions options;
    options.identity = {.worker = "workers/" + name, .incarnation = incarnation};
    options.limits = scene.limits_;
    options.ring.incarnation = incarnation;
    options.ring.fault = FaultInjection::Parse(fault).value();
    options.ring.open_communicator = [&scene](const std::string&, const CommunicatorOptions& open) {
      return scene.hub_.Open(open);
    };
    options.ring.die = [](const std::string& reason) { ADD_FAILURE() << reason; };
    options.ring.metrics = &metrics;
    options.ring.job_log = job_log.get();
    options.ring.shared_directory = scene.shared_directory_;
    loop = std::make_unique<SessionLoop>(
        ChannelFactory::Create({.target = scene.coordinator_.address()}).value(), &queue,
        std::move(options));
    thread = std::thread([this] { end = loop->Run(); });
  }
  ~Worker() {
    if (thread.joinable()) {
      // The one way to make Run return whatever it does.
      v1::Directive die;
      die.set_epoch(int64_t{1} << 60);
      die.mutable_die()->set_reason("the test ends it");
      queue.Push(DirectiveArrived{die});
      thread.join();
    }
  }
  const std::string incarnation;
  EventQueue queue;
  WorkerMetrics metrics;
  const std::shared_ptr<JobLog> job_log;
  std::unique_ptr<SessionLoop> loop;
  SessionEnd end;
  std::thread thread;
  int stream = 0;
};

RingScene::RingScene(int64_t steps) {
  {
    std::ofstream text(folder_ + "/text");
    for (int i = 0; i < 12000; ++i) {
      text << i * i % 997 << ' ';
    }
  }
  spec_ = ResolvedSpec();
  spec_.mutable_data()->set_paths(0, folder_ + "/text");
  spec_.mutable_data()->set_sequence_length(288);
  spec_.mutable_batch()->set_global_sequences(1);
  spec_.mutable_parallel()->set_ring_size(2);
  spec_.mutable_parallel()->set_replicas(1);
  spec_.mutable_validation()->set_interval_steps(3);
  spec_.mutable_checkpoint()->set_interval_steps(-1);
  spec_.set_steps(steps);
}

RingScene::~RingScene() { workers_.clear(); }

void RingScene::StartWorker(const std::string& name, const std::string& fault) {
  auto& worker = workers_[name];
  worker.reset();
  worker = std::make_unique<Worker>(*this, name, absl::StrFormat("%032x", ++incarnations_), fault);
  PumpUntil([&] { return worker->stream > 0; }, "Hello of " + name);
}

void RingScene::KillWorker(const std::string& name) { workers_.erase(name); }

void RingScene::StopWorker(const std::string& name) {
  workers_.at(name)->queue.Push(StopRequested{});
}

SessionEnd RingScene::JoinWorker(const std::string& name) {
  workers_.at(name)->thread.join();
  return workers_.at(name)->end;
}

std::shared_ptr<JobLog> RingScene::job_log(const std::string& name) {
  return workers_.at(name)->job_log;
}

v1::RestorePlan RingScene::FormRing(int64_t generation, const std::vector<std::string>& members,
                                    const v1::Checkpoint* checkpoint) {
  generation_ = generation;
  members_ = members;
  joins_.clear();
  ready_.clear();
  v1::Directive form = New();
  *form.mutable_form_ring()->mutable_spec() = spec_;
  form.mutable_form_ring()->set_directory(directory());
  form.mutable_form_ring()->set_transport("in-process");
  for (size_t rank = 0; rank < members.size(); ++rank) {
    v1::RankAssignment* one = form.mutable_form_ring()->add_ranks();
    one->set_rank(static_cast<int32_t>(rank));
    one->set_worker("workers/" + members[rank]);
    one->set_incarnation(workers_.at(members[rank])->incarnation);
  }
  ToMembers(form, [](v1::Directive& d) { return d.mutable_form_ring()->mutable_ring(); });
  PumpUntil([&] { return joins_.size() == members.size() || !faults_.empty(); }, "RingJoin");
  v1::Directive connect = New();
  for (size_t rank = 0; rank < members.size(); ++rank) {
    connect.mutable_connect_ring()->add_transport_addresses(
        joins_[static_cast<int>(rank)].transport_address());
  }
  *connect.mutable_connect_ring()->mutable_restore() = Plan(checkpoint);
  ToMembers(connect, [](v1::Directive& d) { return d.mutable_connect_ring()->mutable_ring(); });
  PumpUntil([&] { return ready_.size() == members.size() || !faults_.empty(); }, "RingReady");
  return connect.connect_ring().restore();
}

void RingScene::StartSteps(const v1::ExistingCheckpoints* existing) {
  v1::Directive start = New();
  if (existing != nullptr) {
    *start.mutable_start_steps()->mutable_existing_checkpoints() = *existing;
  }
  ToMembers(start, [](v1::Directive& d) { return d.mutable_start_steps()->mutable_ring(); });
}

void RingScene::StartPair() {
  StartWorker("a");
  StartWorker("b");
  FormRing(1, {"a", "b"});
  StartSteps();
}

void RingScene::Abort() {
  ToMembers(New(), [](v1::Directive& d) { return d.mutable_abort_ring()->mutable_ring(); });
}

void RingScene::Release() {
  v1::Directive release = New();
  release.mutable_release_job()->set_training_job_uid(kUid);
  release.mutable_release_job()->set_generation(generation_);
  for (const std::string& name : members_) {
    coordinator_.Send(workers_.at(name)->stream, release);
  }
}

void RingScene::Drain(const std::string& name) {
  v1::Directive drain = New();
  drain.mutable_drain();
  coordinator_.Send(workers_.at(name)->stream, drain);
}

void RingScene::Commit(const v1::Checkpoint& checkpoint) {
  v1::Directive committed = New();
  *committed.mutable_checkpoint_committed()->mutable_ring() = Ring(0);
  *committed.mutable_checkpoint_committed()->mutable_checkpoint() = checkpoint;
  coordinator_.Send(workers_.at(members_[0])->stream, committed);
}

void RingScene::Delete(const v1::Checkpoint& checkpoint) {
  v1::Directive deletion = New();
  *deletion.mutable_delete_files()->mutable_ring() = Ring(0);
  for (const v1::CheckpointShard& shard : checkpoint.shards()) {
    deletion.mutable_delete_files()->add_paths(shard.path());
  }
  coordinator_.Send(workers_.at(members_[0])->stream, deletion);
}

void RingScene::PumpUntil(const std::function<bool()>& done, const std::string& what) {
  const absl::Time deadline = SteadyNow() + absl::Seconds(30);
  while (!done()) {
    const auto heard = coordinator_.Next();
    ASSERT_TRUE(heard.has_value() && SteadyNow() < deadline) << "still waiting for " << what;
    Take(*heard);
  }
}

void RingScene::PumpUntilFinished() {
  PumpUntil([&] { return finished_.size() == members_.size() || !faults_.empty(); },
            "RingFinished");
}

v1::Checkpoint RingScene::CheckpointOf(int64_t step) const {
  v1::Checkpoint checkpoint;
  checkpoint.set_name("checkpoint");
  checkpoint.set_step(step);
  checkpoint.set_generation(generation_);
  std::set<std::string> paths;
  for (const v1::ShardWritten& shard : shards_) {
    if (shard.step() == step && shard.error().empty() &&
        paths.insert(shard.shard().path()).second) {
      *checkpoint.add_shards() = shard.shard();
      checkpoint.set_directory(std::filesystem::path(shard.shard().path()).parent_path().string());
    }
  }
  return checkpoint;
}

v1::Directive RingScene::New() const {
  v1::Directive directive;
  directive.set_epoch(1);
  return directive;
}

v1::RingRef RingScene::Ring(int rank) const {
  v1::RingRef ring;
  ring.set_training_job("projects/p/trainingJobs/j");
  ring.set_training_job_uid(kUid);
  ring.set_generation(generation_);
  ring.set_rank(rank);
  return ring;
}

void RingScene::ToMembers(v1::Directive directive,
                          const std::function<v1::RingRef*(v1::Directive&)>& ring) {
  for (size_t rank = 0; rank < members_.size(); ++rank) {
    const auto found = workers_.find(members_[rank]);
    if (found != workers_.end()) {
      *ring(directive) = Ring(static_cast<int>(rank));
      coordinator_.Send(found->second->stream, directive);
    }
  }
}

v1::RestorePlan RingScene::Plan(const v1::Checkpoint* checkpoint) {
  v1::RestorePlan plan;
  int donor = -1;
  for (const auto& [rank, join] : joins_) {
    const v1::HeldState& held = join.state();
    if (held.present() && held.clean() &&
        (donor < 0 || held.step() > joins_[donor].state().step())) {
      donor = rank;
    }
  }
  if (donor < 0) {
    plan.set_source(checkpoint == nullptr ? v1::RecoveryEpisode::FRESH
                                          : v1::RecoveryEpisode::CHECKPOINT);
    if (checkpoint != nullptr) {
      plan.set_step(checkpoint->step());
      *plan.mutable_checkpoint() = *checkpoint;
    }
    return plan;
  }
  plan.set_step(joins_[donor].state().step());
  plan.set_digest(joins_[donor].state().digest());
  plan.set_donor_rank(donor);
  for (const auto& [rank, join] : joins_) {
    if (!join.state().clean() || join.state().digest() != plan.digest()) {
      plan.add_receiver_ranks(rank);
    }
  }
  plan.set_source(plan.receiver_ranks().empty() ? v1::RecoveryEpisode::OWN
                                                : v1::RecoveryEpisode::PEER);
  return plan;
}

RingScene::Worker* RingScene::ByIncarnation(const std::string& incarnation) {
  for (auto& [name, worker] : workers_) {
    if (worker != nullptr && worker->incarnation == incarnation) {
      return worker.get();
    }
  }
  return nullptr;
}

void RingScene::Take(const FakeCoordinator::Heard& heard) {
  const v1::WorkerReport& report = heard.report;
  Worker* const worker = ByIncarnation(report.incarnation());
  if (worker == nullptr) {
    return;
  }
  switch (report.report_case()) {
    case v1::WorkerReport::kHello: {
      worker->stream = heard.stream;
      v1::Directive welcome = New();
      welcome.mutable_welcome()->mutable_lease_ttl()->set_seconds(60);
      welcome.mutable_welcome()->mutable_heartbeat_interval()->set_nanos(50'000'000);
      return coordinator_.Send(heard.stream, welcome);
    }
    case v1::WorkerReport::kHeartbeat: {
      v1::Directive ack = New();
      ack.mutable_heartbeat_ack()->set_sequence(report.heartbeat().sequence());
      return coordinator_.Send(heard.stream, ack);
    }
    case v1::WorkerReport::kRingJoin:
      joins_[report.ring_join().ring().rank()] = report.ring_join();
      return;
    case v1::WorkerReport::kRingReady:
      ready_[report.ring_ready().ring().rank()] = report.ring_ready();
      return;
    case v1::WorkerReport::kRingAborted:
      aborted_[report.ring_aborted().ring().rank()] = report.ring_aborted();
      return;
    case v1::WorkerReport::kStepsDone:
      for (const v1::StepRecord& record : report.steps_done().records()) {
        records_[record.step()] = record;
      }
      return;
    case v1::WorkerReport::kShardWritten:
      shards_.push_back(report.shard_written());
      return;
    case v1::WorkerReport::kFilesDeleted:
      deleted_.push_back(report.files_deleted());
      return;
    case v1::WorkerReport::kRingFinished:
      finished_[report.ring_finished().ring().rank()] = report.ring_finished();
      return;
    case v1::WorkerReport::kFault:
      faults_.push_back(report.fault());
      return;
    case v1::WorkerReport::kGoodbye:
      goodbyes_.push_back(report.incarnation());
      return;
    default:
      return;
  }
}

}  // namespace ringmaster::worker
