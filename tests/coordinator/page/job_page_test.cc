#include "coordinator/page/job_page.h"

#include <string>

#include "coordinator/core/times.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ringmaster::coordinator {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kEvil[] = "<img src=x onerror=alert(1)>";
const absl::Time kNow = absl::FromUnixSeconds(1'770'000'000);

class JobPageTest : public ::testing::Test {
 protected:
  JobPageTest() {
    details_.job.set_name("projects/vision/trainingJobs/bible");
    details_.job.mutable_spec()->set_steps(1000);
    details_.job.mutable_spec()->set_queue("fast");
    details_.job.mutable_status()->set_state(v1::TrainingJobStatus::RUNNING);
    *details_.job.mutable_create_time() = ToProto(kNow - absl::Hours(5));
    details_.steps = std::vector<v1::StepRecord>();
  }

  std::string Page() const { return JobPage({snapshot_, "", kNow}, details_); }

  CoreSnapshot snapshot_;
  JobDetails details_;
};

TEST_F(JobPageTest, ShowsTheWholeJob) {
  v1::TrainingJobStatus* status = details_.job.mutable_status();
  status->set_generation(4);
  status->set_episodes_count(2);
  for (int rank = 0; rank < 2; ++rank) {
    v1::RankAssignment* assigned = status->add_ranks();
    assigned->set_rank(rank);
    assigned->set_worker(rank == 0 ? "workers/first" : "workers/second");
    assigned->set_incarnation("0123456789abcdef");
  }
  status->add_episodes()->set_message("the older fault");
  status->add_episodes()->set_message("the newer fault");
  status->mutable_progress()->set_step(321);
  status->mutable_progress()->set_validation_loss(2.5);
  *status->mutable_progress()->mutable_step_time() = ToProto(kNow);
  (*details_.job.mutable_labels())["team"] = "ml";
  details_.checkpoints.add_checkpoints()->set_step(300);
  details_.checkpoints.mutable_checkpoints(0)->set_directory("/shared/bible/step-300");
  for (int step = 1; step < 10; ++step) {
    details_.steps->emplace_back().set_step(step);
    details_.steps->back().set_loss(step);
  }
  const std::string page = Page();
  for (const char* part :
       {"<h1>vision/bible</h1>", "<svg", "generation 4", "first", "second", "01234567", "2 so far",
        "2.500000", "team=ml", "/shared/bible/step-300", "321 of 1,000", "5.0 h ago",
        "fast, priority 0", "&quot;steps&quot;: &quot;1000&quot;"}) {
    EXPECT_THAT(page, HasSubstr(part));
  }
  EXPECT_LT(page.find("the newer fault"), page.find("the older fault"));
}

TEST_F(JobPageTest, SaysWhyThereIsNoCurve) {
  details_.steps = absl::UnavailableError("the disk sleeps");
  EXPECT_THAT(Page(), HasSubstr("the disk sleeps"));
  EXPECT_THAT(Page(), Not(HasSubstr("<svg")));
}

TEST_F(JobPageTest, NobodysTextIsMarkup) {
  v1::TrainingJob& job = details_.job;
  job.set_uid(kEvil);
  job.mutable_spec()->set_directory(kEvil);
  job.mutable_spec()->mutable_data()->add_paths(kEvil);
  job.mutable_spec()->set_queue(kEvil);
  (*job.mutable_labels())[kEvil] = kEvil;
  job.mutable_status()->set_state_reason(kEvil);
  job.mutable_status()->mutable_pending_reason()->set_message(kEvil);
  job.mutable_status()->add_resume_overrides(kEvil);
  job.mutable_status()->add_episodes()->set_message(kEvil);
  job.mutable_status()->add_ranks()->set_worker(kEvil);
  job.mutable_status()->mutable_ranks(0)->set_host(kEvil);
  details_.checkpoints.add_checkpoints()->set_directory(kEvil);
  EXPECT_THAT(Page(), Not(HasSubstr("<img")));
  // In the spec, JSON has escaped it once more.
  EXPECT_THAT(Page(), HasSubstr("&lt;img src=x"));
  details_.steps = absl::UnavailableError(kEvil);
  EXPECT_THAT(Page(), Not(HasSubstr("<img")));
}

TEST_F(JobPageTest, ALongSpecIsCutBetweenCharacters) {
  v1::DataSpec* data = details_.job.mutable_spec()->mutable_data();
  data->add_paths("/short");
  EXPECT_THAT(Page(), Not(HasSubstr("bytes more")));
  for (int shift = 0; shift < 3; ++shift) {
    std::string path = "/" + std::string(shift, 'a');
    for (int i = 0; i < 500'000; ++i) path += "ä";
    data->set_paths(0, path);
    const std::string page = Page();
    EXPECT_LT(page.size(), 200u << 10);
    EXPECT_THAT(page, HasSubstr("ä\n… and 93"));
    EXPECT_THAT(page, HasSubstr(" bytes more</pre>"));
  }
}

}  // namespace
}  // namespace ringmaster::coordinator
