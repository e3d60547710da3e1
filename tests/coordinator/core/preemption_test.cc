#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/coordinator/core/core_driver.h"

namespace ringmaster::coordinator {
namespace {

using ::testing::HasSubstr;
using Names = std::vector<std::string>;

void Submit(CoreDriver& d, const std::string& id, int32_t priority, int ring) {
  v1::CreateTrainingJobRequest request = CoreDriver::CreateRequest(id, ring);
  request.mutable_training_job()->mutable_spec()->set_priority(priority);
  d.Sleep(absl::Milliseconds(1));
  ASSERT_TRUE(d.Call<v1::TrainingJob>(request).ok());
}

// With workers of its own, of which `first` is the first's name.
void RunJob(CoreDriver& d, const std::string& id, int32_t priority, int ring, char first) {
  for (int i = 0; i < ring; ++i) {
    const char name = static_cast<char>(first + i);
    d.Hello(std::string(1, name), name);
  }
  Submit(d, id, priority, ring);
  d.Form(id);
  d.Step(id, 1);
  ASSERT_EQ(d.StateOf(id), "RUNNING");
}

void Reprioritise(CoreDriver& d, const std::string& id, int32_t priority) {
  v1::UpdateTrainingJobRequest request;
  request.mutable_training_job()->set_name(d.Job(id).name());
  request.mutable_training_job()->mutable_spec()->set_priority(priority);
  request.mutable_update_mask()->add_paths("spec.priority");
  ASSERT_TRUE(d.Call<v1::TrainingJob>(request).ok());
}

void Cancel(CoreDriver& d, const std::string& id) {
  v1::CancelTrainingJobRequest request;
  request.set_name(d.Job(id).name());
  ASSERT_TRUE(d.Call<v1::TrainingJob>(request).ok());
}

Names Pausing(CoreDriver& d) {
  Names names;
  for (const v1::TrainingJob* job : d.Core().Jobs("projects/-")) {
    if (job->status().state() != v1::TrainingJobStatus::PAUSING) continue;
    names.push_back(job->name().substr(job->name().rfind('/') + 1));
  }
  return names;
}

TEST(PreemptionTest, TheLowerJobWritesACheckpointAndGoesOnFromThereLater) {
  CoreDriver d;
  RunJob(d, "lower", -1, 2, 'a');
  d.Heard("a");
  Submit(d, "higher", 0, 2);
  EXPECT_EQ(d.StateOf("lower"), "PAUSING");
  EXPECT_THAT(d.Job("lower").status().state_reason(),
              HasSubstr("trainingJobs/higher of priority 0 takes its place"));
  EXPECT_EQ(d.Heard("a"), "FinishSteps");
  d.FinishRing("lower", 2);
  EXPECT_EQ(d.StateOf("lower"), "QUEUED");
  EXPECT_THAT(d.Job("lower").status().state_reason(), HasSubstr("trainingJobs/higher"));
  EXPECT_EQ(d.Job("lower").status().progress().step(), 2);
  EXPECT_EQ(d.Job("lower").status().episodes_count(), 0);
  EXPECT_EQ(d.StateOf("higher"), "STARTING");
  d.Form("higher");
  Cancel(d, "higher");
  for (int rank : {0, 1}) d.Aborted("higher", rank);
  EXPECT_EQ(d.StateOf("lower"), "STARTING");
  d.Form("lower", CoreDriver::Held(2));
  EXPECT_EQ(d.StateOf("lower"), "RUNNING");
  EXPECT_EQ(d.Job("lower").status().progress().step(), 2);
}

TEST(PreemptionTest, WhoIsStopped) {
  struct Running {
    int32_t priority;
    int ring;
  };
  struct Row {
    const char* name;
    // From the oldest, called job-a, on.
    std::vector<Running> running;
    int idle;
    Running waits;
    Names stopped;
  };
  const std::vector<Row> rows = {
      {"the lowest", {{1, 1}, {0, 1}, {1, 1}}, 0, {2, 1}, {"job-b"}},
      {"of them the youngest", {{0, 1}, {0, 1}, {1, 1}}, 0, {2, 1}, {"job-b"}},
      {"as many as it takes", {{0, 1}, {1, 1}, {2, 1}}, 0, {3, 2}, {"job-a", "job-b"}},
      {"idle ones count", {{0, 1}, {1, 1}}, 1, {3, 2}, {"job-a"}},
      {"none in vain", {{0, 1}, {1, 2}}, 0, {3, 2}, {"job-b"}},
      {"not one that is alike", {{1, 1}}, 0, {1, 1}, {}},
      {"nor a higher one", {{2, 1}, {1, 1}}, 0, {1, 1}, {}},
      {"nor when it is not enough", {{0, 1}, {2, 1}}, 0, {1, 2}, {}},
  };
  for (const Row& row : rows) {
    CoreDriver d;
    char worker = 'a', job = 'a';
    for (const Running& running : row.running) {
      RunJob(d, std::string("job-") + job++, running.priority, running.ring, worker);
      worker = static_cast<char>(worker + running.ring);
    }
    for (int i = 0; i < row.idle; ++i, ++worker) d.Hello(std::string(1, worker), worker);
    Submit(d, "waits", row.waits.priority, row.waits.ring);
    EXPECT_EQ(Pausing(d), row.stopped) << row.name;
  }
}

TEST(PreemptionTest, WorkersThatComeFreeAreCountedOn) {
  CoreDriver d;
  RunJob(d, "job-a", 0, 1, 'a');
  RunJob(d, "job-b", 0, 1, 'b');
  RunJob(d, "job-c", 0, 1, 'c');
  v1::PauseTrainingJobRequest pause;
  pause.set_name(d.Job("job-a").name());
  ASSERT_TRUE(d.Call<v1::TrainingJob>(pause).ok());
  Submit(d, "first", 2, 1);
  EXPECT_EQ(Pausing(d), Names({"job-a"}));
  Submit(d, "second", 1, 1);
  EXPECT_EQ(Pausing(d), Names({"job-a", "job-c"}));
  d.Advance(absl::Seconds(10));
  EXPECT_EQ(Pausing(d), Names({"job-a", "job-c"})) << "nobody is stopped twice for one";
  d.FinishRing("job-c", 2);
  EXPECT_EQ(d.StateOf("first"), "STARTING") << "whichever comes first";
  EXPECT_EQ(Pausing(d), Names({"job-a"}));
  d.FinishRing("job-a", 2);
  EXPECT_EQ(d.StateOf("second"), "STARTING");
  EXPECT_EQ(d.StateOf("job-b"), "RUNNING");
}

TEST(PreemptionTest, AJobBehindOneThatWaitsOnStopsNobody) {
  CoreDriver d;
  RunJob(d, "job-a", 0, 1, 'a');
  RunJob(d, "job-b", 9, 1, 'b');
  Submit(d, "large", 2, 2);
  Submit(d, "small", 1, 1);
  EXPECT_EQ(Pausing(d), Names()) << "what it stopped would be kept for the large one";
  Cancel(d, "large");
  EXPECT_EQ(Pausing(d), Names({"job-a"}));
}

TEST(PreemptionTest, AChangeOfPriorityStops) {
  CoreDriver d;
  RunJob(d, "job-a", 0, 1, 'a');
  RunJob(d, "job-b", 2, 1, 'b');
  Submit(d, "waits", 0, 1);
  EXPECT_EQ(Pausing(d), Names());
  Reprioritise(d, "waits", 1);
  EXPECT_EQ(Pausing(d), Names({"job-a"}));
  d.FinishRing("job-a", 2);
  EXPECT_EQ(d.StateOf("waits"), "STARTING");
  EXPECT_EQ(Pausing(d), Names());
  Reprioritise(d, "job-b", -1);
  EXPECT_EQ(Pausing(d), Names({"job-b"}));
}

TEST(PreemptionTest, WhenNobodyTakesThePlaceItIsItsOwnAgain) {
  CoreDriver d;
  RunJob(d, "job-a", 0, 1, 'a');
  Submit(d, "waits", 1, 1);
  Cancel(d, "waits");
  d.FinishRing("job-a", 2);
  EXPECT_EQ(d.StateOf("job-a"), "STARTING");
  d.Form("job-a", CoreDriver::Held(2));
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
}

TEST(PreemptionTest, ARingThatBreaksBeforeStandsAndStopsAgain) {
  CoreDriver d;
  RunJob(d, "job-a", 0, 2, 'a');
  Submit(d, "waits", 1, 2);
  d.Hello("c", 'c');
  d.Exit(d.WorkerAt("job-a", 1), 9);
  d.Aborted("job-a", 0, CoreDriver::Held(1));
  EXPECT_EQ(d.WorkerAt("job-a", 1), "c") << "a broken ring goes before the queue";
  d.Form("job-a", CoreDriver::Held(1));
  EXPECT_EQ(Pausing(d), Names({"job-a"}));
  EXPECT_THAT(d.Job("job-a").status().state_reason(), HasSubstr("waits of priority 1"));
  d.FinishRing("job-a", 2);
  EXPECT_EQ(d.StateOf("waits"), "STARTING");
}

TEST(PreemptionTest, AJobThatCannotWriteACheckpointGoesOnUntilItHasWrittenOne) {
  CoreDriver d;
  RunJob(d, "job-a", 0, 1, 'a');
  Submit(d, "waits", 1, 1);
  d.FinishRing("job-a", 2, "no space left");
  d.Aborted("job-a", 0, CoreDriver::Held(2));
  d.Form("job-a", CoreDriver::Held(2));
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  EXPECT_THAT(d.Job("job-a").status().episodes(0).message(), HasSubstr("no space left"));
  d.Step("job-a", 3);
  d.Advance(absl::Minutes(1));
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  d.Checkpoint("job-a", 3);
  EXPECT_EQ(Pausing(d), Names({"job-a"}));
}

TEST(PreemptionTest, WhileTheStoreIsFullNobodyIsStopped) {
  CoreDriver d;
  d.Hello("a", 'a');
  Submit(d, "job-a", 0, 1);
  Submit(d, "waits", 1, 1);
  d.Core().SetStoreFull(d.now(), true);
  d.Form("job-a");
  d.Advance(absl::Seconds(1));
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  d.Core().SetStoreFull(d.now(), false);
  EXPECT_EQ(Pausing(d), Names({"job-a"}));
}

// Its ring breaks while it stops, and nobody waits for its place any more when it stands again;
// then somebody does.
TEST(PreemptionTest, WhoStoppedForNobodyAfterAllIsStoppedAgain) {
  CoreDriver d;
  RunJob(d, "job-a", 0, 2, 'a');
  Submit(d, "waits", 1, 2);
  ASSERT_EQ(Pausing(d), Names({"job-a"}));
  v1::PauseTrainingJobRequest pause;
  pause.set_name(d.Job("waits").name());
  ASSERT_TRUE(d.Call<v1::TrainingJob>(pause).ok());
  d.Hello("c", 'c');
  d.Exit(d.WorkerAt("job-a", 1), 9);
  d.Aborted("job-a", 0, CoreDriver::Held(1));
  d.Form("job-a", CoreDriver::Held(1));
  ASSERT_EQ(d.StateOf("job-a"), "RUNNING");
  v1::ResumeTrainingJobRequest resume;
  resume.set_name(d.Job("waits").name());
  ASSERT_TRUE(d.Call<v1::TrainingJob>(resume).ok());
  EXPECT_EQ(Pausing(d), Names({"job-a"}));
}

TEST(PreemptionTest, NobodyIsStoppedUnlessOperatorsSwitchItOn) {
  CoreOptions options = CoreDriver::Options();
  options.preemption = CoreOptions().preemption;
  CoreDriver d(options);
  RunJob(d, "job-a", 0, 1, 'a');
  Submit(d, "waits", 1000, 1);
  EXPECT_EQ(Pausing(d), Names());
}

}  // namespace
}  // namespace ringmaster::coordinator
