// Specs are stored, listed and shown: paths that nothing could open are refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <utility>

#include "tests/coordinator/core/core_driver.h"

namespace ringmaster::coordinator {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using Edit = std::function<void(v1::TrainingJobSpec&)>;

absl::Status Refusal(const Edit& edit) {
  CoreDriver d;
  v1::CreateTrainingJobRequest request = d.CreateRequest("job-a");
  edit(*request.mutable_training_job()->mutable_spec());
  const absl::Status status = d.Call<v1::TrainingJob>(request).status();
  EXPECT_TRUE(status.ok() || d.rows().empty());
  return status;
}

TEST(PathLimitsTest, APathHasAtMost4096Bytes) {
  for (const auto& [field, set] :
       {std::pair<const char*, void (*)(v1::TrainingJobSpec&, const std::string&)>{
            "training_job.spec.data.paths[0]",
            [](v1::TrainingJobSpec&s, const std::string&path) {
              s.mutable_data()->set_paths(0, path);
            }},
        {"training_job.spec.directory",
         [](v1::TrainingJobSpec&s, const std::string&path) { s.set_directory(path); }},
        {"training_job.spec.init_from",
         [](v1::TrainingJobSpec&s, const std::string&path) { s.set_init_from(path); }}}) {
    SCOPED_TRACE(field);
    const auto refusal = [set = set](size_t bytes) {
      std::string path(bytes, 'a');
      path[0] = '/';
      return Refusal([&](v1::TrainingJobSpec& s) { set(s, path); });
    };
    const ErrorDetails details = Details(refusal(4097));
    ASSERT_EQ(details.fields.size(), 1u);
    EXPECT_EQ(details.fields[0].field, field);
    EXPECT_THAT(details.fields[0].description, HasSubstr("at most 4096"));
    // What it is to start from, nobody has read here.
    EXPECT_THAT(std::string(refusal(4096).message()), Not(HasSubstr("at most 4096")));
  }
}

TEST(PathLimitsTest, DataIsOfAtMost1024Paths) {
  const auto refusal = [](int paths) {
    return Refusal([paths](v1::TrainingJobSpec& s) {
      while (s.data().paths_size() < paths) s.mutable_data()->add_paths("/a");
    });
  };
  const ErrorDetails details = Details(refusal(1025));
  ASSERT_EQ(details.fields.size(), 1u);
  EXPECT_EQ(details.fields[0].field, "training_job.spec.data.paths");
  EXPECT_TRUE(refusal(1024).ok());
}

}  // namespace
}  // namespace ringmaster::coordinator
