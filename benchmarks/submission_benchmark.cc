// How many jobs a coordinator stores a second, each durable before its reply: submission_benchmark ADDRESS COUNT WINDOW
// keeps WINDOW calls open and prints one JSON object. Window 1 is what one commit a job would give.

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "grpcpp/grpcpp.h"
#include "ringmaster/v1/job_service.grpc.pb.h"

namespace {

using Clock = std::chrono::steady_clock;
namespace v1 = ringmaster::v1;

struct Call {
  grpc::ClientContext context;
  v1::CreateTrainingJobRequest request;
  v1::TrainingJob reply;
  Clock::time_point start;
};

class Submitter {
 public:
  Submitter(const std::string& address, int count)
      : stub_(v1::JobService::NewStub(
            grpc::CreateChannel(address, grpc::InsecureChannelCredentials()))),
        count_(count) {}

  // Returns the latencies in seconds, ascending; ends the program when a call fails.
  std::vector<double> Run(int window) {
    for (int i = 0; i < window; ++i) Next();
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(
        +[](Submitter* self) { return self->done_ == self->count_; }, this));
    std::sort(latencies_.begin(), latencies_.end());
    return latencies_;
  }

 private:
  void Next() {
    {
      absl::MutexLock lock(&mutex_);
      if (started_ == count_) return;
      ++started_;
    }
    auto* call = new Call;
    // More workers than there are: the job is stored and stays queued.
    v1::TrainingJobSpec& spec = *call->request.mutable_training_job()->mutable_spec();
    spec.mutable_model()->set_preset("tiny");
    spec.mutable_data()->add_paths("/dev/null");
    spec.mutable_data()->set_sequence_length(8192);
    spec.mutable_parallel()->set_ring_size(2);
    spec.set_steps(1);
    call->start = Clock::now();
    stub_->async()->CreateTrainingJob(
        &call->context, &call->request, &call->reply, [this, call](const grpc::Status& status) {
          if (!status.ok()) {
            std::cerr << "submission_benchmark: " << status.error_message() << "\n";
            std::_Exit(1);
          }
          const std::chrono::duration<double> seconds = Clock::now() - call->start;
          delete call;
          Next();
          absl::MutexLock lock(&mutex_);
          latencies_.push_back(seconds.count());
          ++done_;
        });
  }

  std::unique_ptr<v1::JobService::Stub> stub_;
  const int count_;
  absl::Mutex mutex_;
  int started_ ABSL_GUARDED_BY(mutex_) = 0;
  int done_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<double> latencies_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: submission_benchmark ADDRESS COUNT WINDOW\n";
    return 2;
  }
  const int count = std::atoi(argv[2]);
  Submitter submitter(argv[1], count);
  const auto start = Clock::now();
  const std::vector<double> latencies = submitter.Run(std::atoi(argv[3]));
  const std::chrono::duration<double> seconds = Clock::now() - start;
  std::cout << absl::StrFormat(
      R"({"submissions_per_second": %.1f, "p50_ms": %.3f, "p99_ms": %.3f})", count / seconds.count(),
      1e3 * latencies[latencies.size() / 2], 1e3 * latencies[latencies.size() * 99 / 100])
            << "\n";
  return 0;
}
