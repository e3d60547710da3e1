// How fast the coordinator's core places jobs of rings of 1 to 8 workers, while others wait, and
// takes new ones: placement_benchmark [JOBS WORKERS] (10000 1000) prints one JSON object for each
// number of queues. Workers are on hosts of 8, of 16 hosts a zone; events come to the core in
// batches, as the event loop hands them on. Seconds are of the process's CPU: nothing here waits.
// Storing and sending are not in them (see submission_benchmark).

#include <algorithm>
#include <array>
#include <ctime>
#include <deque>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "coordinator/core/core.h"
#include "tests/testing/held_state.h"
#include "tests/testing/training_job.h"

namespace {

using namespace ringmaster;               // NOLINT(build/namespaces)
using namespace ringmaster::coordinator;  // NOLINT(build/namespaces)

constexpr int kWorkersOfHost = 8;
constexpr int kHostsOfZone = 16;
constexpr std::array<int, 4> kRings = {1, 2, 4, 8};
// Rings that end at once: what comes in while the event loop commits.
constexpr int kRingsOfBatch = 32;

double CpuSeconds() {
  timespec time;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// A fleet and its coordinator's core.
class Fleet {
 public:
  Fleet() {
    CoreOptions options;
    options.shared_directory = "/shared";
    options.unfinished_jobs_max = 1'000'000;
    core_ = *Core::Create(options, {}, 1, now_, 7);
  }

  void CreateQueue(const std::string& id) {
    v1::CreateQueueRequest request;
    request.set_queue_id(id);
    Handle({Event(ApiRequest{++calls_, request, {}})});
  }

  void Attach(int worker) {
    v1::WorkerReport report;
    v1::Hello& hello = *report.mutable_hello();
    hello.set_worker(absl::StrCat("workers/", worker));
    hello.set_version("1.0.0");
    hello.set_phase(v1::PHASE_IDLE);
    v1::Hardware& hardware = *hello.mutable_hardware();
    hardware.set_device(v1::CPU);
    hardware.set_memory_bytes(int64_t{8} << 30);
    hardware.set_host(absl::StrCat("host-", worker / kWorkersOfHost));
    hardware.set_zone(absl::StrCat("zone-", worker / kWorkersOfHost / kHostsOfZone));
    hardware.set_cpu_capability("avx2");
    hardware.set_threads(4);
    hardware.add_transports("ucx/1.13");
    Report(worker, std::move(report));
    Flush();
  }

  // The next job of `queue`.
  Event Submission(const std::string& queue) {
    const int number = static_cast<int>(jobs_++);
    v1::CreateTrainingJobRequest request = SmallRequest(
        absl::StrCat("job-", number), kRings[static_cast<size_t>(number) % kRings.size()]);
    request.mutable_training_job()->mutable_spec()->set_queue(queue);
    return ApiRequest{++calls_, request, {}};
  }

  // Those placed since the last call begin to train.
  void FormPlaced() {
    for (const std::string& name : std::exchange(placed_, {})) {
      const v1::TrainingJob& job = *core_->FindJob(name);
      for (int rank = 0; rank < job.status().ranks_size(); ++rank) {
        v1::WorkerReport report;
        *report.mutable_ring_join()->mutable_ring() = Ring(job, rank);
        report.mutable_ring_join()->set_transport_address("address");
        Report(WorkerAt(job, rank), std::move(report));
      }
      for (int rank = 0; rank < job.status().ranks_size(); ++rank) {
        v1::WorkerReport report;
        *report.mutable_ring_ready()->mutable_ring() = Ring(job, rank);
        *report.mutable_ring_ready()->mutable_state() = HeldAt(0, 7, true);
        Report(WorkerAt(job, rank), std::move(report));
      }
      running_.push_back(name);
    }
    Flush();
  }

  // The longest running ones, at most `count`, finish their last step; their workers are idle then.
  void FinishOldest(int count) {
    for (; count > 0 && !running_.empty(); --count) {
      Finish(*core_->FindJob(running_.front()));
      running_.pop_front();
    }
    Flush();
  }

  // Time passes as the core takes it, so that what it does once a second is in the figures.
  void Handle(const std::vector<Event>& events) {
    std::vector<const Event*> all;
    for (const Event& event : events) all.push_back(&event);
    const double begin = CpuSeconds();
    const Output output = core_->Handle(now_, all);
    const Output timers = core_->NextTick() <= now_ ? core_->Tick(now_) : Output();
    const double took = CpuSeconds() - begin;
    seconds_ += took;
    now_ += std::max(absl::Seconds(took), absl::Microseconds(1));
    Note(output);
    Note(timers);
  }

  double TakeSeconds() { return std::exchange(seconds_, 0); }
  int64_t placements() const { return placements_; }

 private:
  static v1::RingRef Ring(const v1::TrainingJob& job, int rank) {
    v1::RingRef ring;
    ring.set_training_job(job.name());
    ring.set_training_job_uid(job.uid());
    ring.set_generation(job.status().generation());
    ring.set_rank(rank);
    return ring;
  }

  static int WorkerAt(const v1::TrainingJob& job, int rank) {
    int worker = 0;
    const std::string& name = job.status().ranks(rank).worker();
    if (!absl::SimpleAtoi(name.substr(name.find('/') + 1), &worker)) std::abort();
    return worker;
  }

  void Finish(const v1::TrainingJob& job) {
    const int64_t step = job.spec().steps();
    v1::WorkerReport steps;
    *steps.mutable_steps_done()->mutable_ring() = Ring(job, 0);
    v1::StepRecord* record = steps.mutable_steps_done()->add_records();
    record->set_step(step);
    record->set_loss(1);
    record->set_seconds(0.1);
    Report(WorkerAt(job, 0), std::move(steps));
    for (int rank = 0; rank < job.status().ranks_size(); ++rank) {
      v1::WorkerReport report;
      v1::ShardWritten* written = report.mutable_shard_written();
      *written->mutable_ring() = Ring(job, rank);
      written->set_step(step);
      written->mutable_shard()->set_path(absl::StrCat(job.spec().directory(), "/checkpoints/step-",
                                                      step, "/shard-", rank, "-g",
                                                      job.status().generation()));
      written->mutable_shard()->set_bytes(100);
      Report(WorkerAt(job, rank), std::move(report));
    }
    for (int rank = 0; rank < job.status().ranks_size(); ++rank) {
      v1::WorkerReport report;
      *report.mutable_ring_finished()->mutable_state() = HeldAt(step, 7, true);
      *report.mutable_ring_finished()->mutable_ring() = Ring(job, rank);
      Report(WorkerAt(job, rank), std::move(report));
    }
  }

  void Report(int worker, v1::WorkerReport report) {
    report.set_incarnation(absl::StrFormat("%032d", worker));
    report.set_epoch(report.has_hello() ? 0 : 1);
    pending_.push_back(WorkerReported{static_cast<uint64_t>(worker) + 1, std::move(report)});
  }

  void Flush() { Handle(std::exchange(pending_, {})); }

  void Note(const Output& output) {
    for (const DirectiveTo& to : output.directives) {
      if (!to.directive.has_value() || !to.directive->has_form_ring()) continue;
      const v1::RingRef& ring = to.directive->form_ring().ring();
      if (ring.rank() != 0) continue;
      placed_.push_back(ring.training_job());
      ++placements_;
    }
    for (const Reply& reply : output.replies) {
      if (reply.response.ok()) continue;
      std::cerr << reply.response.status() << "\n";
      std::exit(1);
    }
  }

  absl::Time now_ = absl::FromUnixSeconds(1'700'000'000);
  std::unique_ptr<Core> core_;
  uint64_t calls_ = 0;
  int64_t jobs_ = 0;
  int64_t placements_ = 0;
  double seconds_ = 0;
  std::vector<Event> pending_;
  std::vector<std::string> placed_;
  std::deque<std::string> running_;
};

void Run(int jobs, int workers, int queues) {
  Fleet fleet;
  std::vector<std::string> names = {"default"};
  for (int i = 1; i < queues; ++i) {
    names.push_back(absl::StrCat("queue-", i));
    fleet.CreateQueue(names.back());
  }
  for (int i = 0; i < workers; ++i) fleet.Attach(i);
  fleet.TakeSeconds();
  const auto submit = [&](int count) {
    std::vector<Event> events;
    for (int i = 0; i < count; ++i)
      events.push_back(fleet.Submission(names[static_cast<size_t>(i) % names.size()]));
    fleet.Handle(events);
  };
  for (int i = 0; i < jobs; i += kRingsOfBatch) submit(kRingsOfBatch);
  const double submitted = fleet.TakeSeconds();
  fleet.FormPlaced();

  // As many come as end, so that as many wait all the time.
  fleet.TakeSeconds();
  const int64_t before = fleet.placements();
  double seconds = 0;
  double slowest = 0;
  while (fleet.placements() - before < 1000) {
    submit(kRingsOfBatch);
    fleet.FinishOldest(kRingsOfBatch);
    fleet.FormPlaced();
    const double round = fleet.TakeSeconds();
    seconds += round;
    slowest = std::max(slowest, round);
  }
  std::cout << absl::StreamFormat(
      "{\"benchmark\": \"placement\", \"jobs\": %d, \"workers\": %d, \"queues\": %d, "
      "\"submissions_per_second\": %.0f, "
      "\"admissions_per_second\": %.0f, \"slowest_round_ms\": %.1f}\n",
      jobs, workers, queues, jobs / submitted, (fleet.placements() - before) / seconds,
      1e3 * slowest);
}

}  // namespace

int main(int argc, char** argv) {
  int jobs = 10'000;
  int workers = 1'000;
  if (argc > 1 &&
      (argc != 3 || !absl::SimpleAtoi(argv[1], &jobs) || !absl::SimpleAtoi(argv[2], &workers))) {
    std::cerr << "usage: placement_benchmark [JOBS WORKERS]\n";
    return 2;
  }
  for (const int queues : {1, 2, 8}) Run(jobs, workers, queues);
}
