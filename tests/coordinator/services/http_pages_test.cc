// The pages of a coordinator with jobs.
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/match.h"
#include "gmock/gmock.h"
#include "tests/coordinator/services/access_server.h"

namespace ringmaster::coordinator {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;
using v1::Token;

class HttpPagesTest : public AccessTest {
 protected:
  std::string Page(const std::string& path, const std::string& token) const {
    return HttpGet(server_->http_address(), path, "Bearer " + token);
  }
  std::string Page(const std::string& path) const { return Page(path, admin_); }

  v1::TrainingJob CreateIn(const std::string& project, const std::string& id) {
    v1::CreateTrainingJobRequest request = CreateRequest(id);
    request.set_parent("projects/" + project);
    v1::TrainingJob job;
    const absl::Status status =
        CallAs(admin_, &v1::JobService::Stub::CreateTrainingJob, jobs_, request, &job);
    EXPECT_TRUE(status.ok()) << status;
    return job;
  }
};

TEST_F(HttpPagesTest, OverviewShowsJobsOfAllProjects) {
  CreateIn("vision", "bible");
  CreateIn("speech", "novel");
  const std::string page = Page("/");
  EXPECT_THAT(page, StartsWith("HTTP/1.1 200 OK"));
  EXPECT_THAT(page, AllOf(HasSubstr(">vision/bible</a>"), HasSubstr(">speech/novel</a>")));
  EXPECT_THAT(page, HasSubstr("\r\nContent-Security-Policy: default-src 'none';"));
  EXPECT_THAT(Page("/?project=vision"),
              AllOf(HasSubstr(">vision/bible</a>"), Not(HasSubstr("novel"))));
  EXPECT_THAT(Page("/?project=-"),
              AllOf(HasSubstr(">vision/bible</a>"), HasSubstr(">speech/novel</a>"),
                    HasSubstr("<a href=\"/workers\">"), Not(HasSubstr("project=-"))));
  EXPECT_THAT(Page("/page.css"), HasSubstr("Content-Type: text/css"));
  EXPECT_THAT(Page("/page.js"), HasSubstr("Content-Type: text/javascript"));
}

TEST_F(HttpPagesTest, ProjectsTokenSeesItsProjectOnly) {
  CreateIn("vision", "bible");
  CreateIn("speech", "novel");
  const std::string token = Secret(Token::VIEWER, "projects/vision");
  for (const char* path : {"/", "/jobs", "/jobs?group=waiting", "/?project=vision"}) {
    EXPECT_THAT(Page(path, token), AllOf(HasSubstr(">vision/bible</a>"), Not(HasSubstr("novel"))))
        << path;
  }
  EXPECT_THAT(Page("/jobs/vision/bible", token), HasSubstr("<h1>vision/bible</h1>"));
  EXPECT_THAT(Page("/jobs/vision/absent", token), StartsWith("HTTP/1.1 404"));
  const std::string refused = Page("/jobs/speech/novel", token);
  EXPECT_THAT(refused, StartsWith("HTTP/1.1 403"));
  for (const char* path : {"/jobs/speech/absent", "/?project=speech", "/jobs?project=-",
                           "/jobs?project=speech", "/workers", "/jobs/-/novel"}) {
    EXPECT_EQ(Page(path, token), refused) << path;
  }
}

TEST_F(HttpPagesTest, ManyJobsComeInPages) {
  for (int i = 0; i < 120; ++i) CreateIn("vision", absl::StrCat("job-", i));
  EXPECT_THAT(Page("/"), AllOf(HasSubstr(">vision/job-119</a>"), Not(HasSubstr(">vision/job-60<")),
                               HasSubstr("the newest 50 of them")));
  const std::string first = Page("/jobs?group=waiting");
  EXPECT_THAT(first, AllOf(HasSubstr(">vision/job-20</a>"), Not(HasSubstr(">vision/job-19<"))));
  const size_t link = first.find("page=");
  ASSERT_NE(link, std::string::npos);
  const std::string token = first.substr(link, first.find('"', link) - link);
  EXPECT_THAT(Page("/jobs?group=waiting&" + token),
              AllOf(HasSubstr(">vision/job-19</a>"), HasSubstr(">vision/job-0</a>"),
                    Not(HasSubstr(">more</a>"))));
  EXPECT_THAT(Page("/jobs?group=all&" + token), StartsWith("HTTP/1.1 400"));
  EXPECT_THAT(Page("/jobs?group=none"), StartsWith("HTTP/1.1 404"));
  EXPECT_THAT(Page("/jobs?group=running"), Not(HasSubstr("vision/job")));
}

TEST_F(HttpPagesTest, JobsPageDrawsItsStepLog) {
  const v1::TrainingJob job = CreateIn("vision", "bible");
  EXPECT_THAT(Page("/jobs/vision/bible"), HasSubstr("no steps to draw yet"));
  std::filesystem::create_directories(job.spec().directory());
  std::ofstream file(job.spec().directory() + "/steps.jsonl");
  for (int step = 1; step <= 100; ++step) {
    file << "{\"step\":" << step << ",\"generation\":1,\"loss\":" << step
         << ",\"training_job_uid\":\"" << job.uid() << "\"}\n";
  }
  file.close();
  EXPECT_THAT(Page("/jobs/vision/bible"), HasSubstr("<polyline class=\"loss\""));
  for (const char* path : {"/jobs/vision/", "/jobs//bible", "/jobs/vision/bible/", "/jobs/"}) {
    EXPECT_THAT(Page(path), Not(StartsWith("HTTP/1.1 200"))) << path;
  }
}

// It would hold the thread that opens it; drawings are no reason for probes to fail.
TEST_F(HttpPagesTest, AStepLogThatIsNoFileHoldsNobody) {
  const v1::TrainingJob job = CreateIn("vision", "bible");
  std::filesystem::create_directories(job.spec().directory());
  ASSERT_EQ(mkfifo((job.spec().directory() + "/steps.jsonl").c_str(), 0600), 0);
  EXPECT_THAT(Page("/jobs/vision/bible"), HasSubstr("no steps to draw yet"));
}

TEST_F(HttpPagesTest, PagesGoOnWhileItDrains) {
  CreateIn("vision", "bible");
  server_->Drain();
  EXPECT_THAT(Page("/"), HasSubstr(">vision/bible</a>"));
  // It is in the next snapshot, within a second.
  const absl::Time end = absl::Now() + absl::Seconds(30);
  while (!absl::StrContains(Page("/"), "draining") && absl::Now() < end) continue;
  EXPECT_THAT(Page("/"), HasSubstr("draining"));
}

}  // namespace
}  // namespace ringmaster::coordinator
