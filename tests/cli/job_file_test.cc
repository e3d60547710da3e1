#include "cli/job_file.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ringmaster::cli {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr char kJob[] = R"(
name: bible
labels: {team: nlp}
model:
  preset: tiny
  positions: xpos
attention: {segment_lengths: [2048, 4096], dilation_rates: [1, 2]}
data:
  paths: [/data/a.txt, "/data/*.md"]
  sequence_length: 8192
optimizer: {lr: 3e-4}
recovery: {hop_deadline: 1.5s}
steps: 200
)";

TEST(JobFileTest, FillsEveryKindOfField) {
  const auto job = ParseJobFile(kJob, "job.yaml", {});
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->id, "bible");
  EXPECT_EQ(job->labels.at("team"), "nlp");
  EXPECT_EQ(job->spec.model().preset(), "tiny");
  EXPECT_EQ(job->spec.model().positions(), v1::XPOS);
  EXPECT_THAT(job->spec.attention().segment_lengths(), ElementsAre(2048, 4096));
  EXPECT_THAT(job->spec.data().paths(), ElementsAre("/data/a.txt", "/data/*.md"));
  EXPECT_DOUBLE_EQ(job->spec.optimizer().lr(), 3e-4);
  EXPECT_EQ(job->spec.recovery().hop_deadline().seconds(), 1);
  EXPECT_EQ(job->spec.recovery().hop_deadline().nanos(), 500000000);
  EXPECT_EQ(job->spec.steps(), 200);
}

TEST(JobFileTest, LaterOverridesWinAndReplaceLists) {
  const auto job = ParseJobFile(
      kJob, "job.yaml",
      {"optimizer.lr=1e-3", "optimizer.lr=2e-3", "attention.dilation_rates=[4, 8]", "name=other"});
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_DOUBLE_EQ(job->spec.optimizer().lr(), 2e-3);
  EXPECT_THAT(job->spec.attention().dilation_rates(), ElementsAre(4, 8));
  EXPECT_THAT(job->spec.attention().segment_lengths(), ElementsAre(2048, 4096));
  EXPECT_EQ(job->id, "other");
}

TEST(JobFileTest, AnOverrideReplacesTheOtherStart) {
  const auto job = ParseJobFile("init_from: /a\n", "job.yaml", {"resume_from=/b", "steps=7"});
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_FALSE(job->spec.has_init_from());
  EXPECT_EQ(job->spec.resume_from(), "/b");
  EXPECT_EQ(job->spec.steps(), 7);
}

TEST(JobFileTest, TakesTextOfEveryLanguage) {
  const std::string text = "/d\u00E4ta/\u8BAD\u7EC3/\U0001F600.txt";
  const auto job = ParseJobFile("data: {paths: [\"" + text + "\"]}\n", "job.yaml", {});
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_THAT(job->spec.data().paths(), ElementsAre(text));
}

TEST(JobFileTest, UnreadablePathsAreUserErrors) {
  for (const char* path : {"/nonexistent/job.yaml", "/"}) {
    const auto job = ReadJobFile(path, {});
    EXPECT_EQ(job.status().code(), absl::StatusCode::kInvalidArgument) << path;
    EXPECT_THAT(std::string(job.status().message()), HasSubstr("cannot be read: ")) << path;
  }
}

struct Mistake {
  std::string name;
  std::string yaml;
  std::vector<std::string> overrides;
  std::string message;
};

class JobFileMistakeTest : public testing::TestWithParam<Mistake> {};

TEST_P(JobFileMistakeTest, NamesPlaceAndRemedy) {
  const auto job = ParseJobFile(GetParam().yaml, "job.yaml", GetParam().overrides);
  ASSERT_EQ(job.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(job.status().message()), HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    All, JobFileMistakeTest,
    testing::Values(
        Mistake{"TopLevelKey",
                "steps: 1\nmodle: {}\n",
                {},
                "job.yaml:2: modle: unknown key (did you mean \"model\"?)"},
        Mistake{"NestedKey",
                "optimizer:\n  learning_rate: 1\n",
                {},
                "job.yaml:2: optimizer.learning_rate: unknown key"},
        Mistake{"EnumValue",
                "precision: fp23\n",
                {},
                "\"fp23\" is not one of fp32, bf16, fp64 (did you mean \"fp32\"?)"},
        Mistake{"TextForNumber", "steps: many\n", {}, "steps: \"many\" is not a whole number"},
        Mistake{"FractionForNumber", "steps: 1.5\n", {}, "\"1.5\" is not a whole number"},
        Mistake{"TooLarge", "model: {layers: 3000000000}\n", {}, "does not fit into 32 bits"},
        Mistake{"NegativeSeed", "seed: -1\n", {}, "\"-1\" is not a whole number >= 0"},
        Mistake{"ScalarForList", "data: {paths: /a}\n", {}, "data.paths: expected a list"},
        Mistake{"ListForScalar", "steps: [1]\n", {}, "expected a whole number, found a list"},
        Mistake{"Duration", "recovery: {hop_deadline: 30}\n", {}, "\"30\" is not a duration"},
        Mistake{"EndlessDuration",
                "recovery: {hop_deadline: -inf}\n",
                {},
                "\"-inf\" is not a duration"},
        Mistake{"KeyTwice", "steps: 1\nseed: 2\nsteps: 3\n", {}, "job.yaml:3: steps: is set twice"},
        Mistake{"NestedKeyTwice",
                "optimizer:\n  lr: 1\n  lr: 2\n",
                {},
                "job.yaml:3: optimizer.lr: is set twice"},
        Mistake{"LabelTwice", "labels: {a: b, a: c}\n", {}, "labels.a: is set twice"},
        Mistake{"TwoStarts",
                "init_from: /a\nresume_from: /b\n",
                {},
                "job.yaml:2: resume_from: cannot be set beside init_from"},
        Mistake{"TwoDocuments", "steps: 1\n---\nsteps: 2\n", {}, "job.yaml: holds 2 documents"},
        Mistake{"NotUtf8", "name: \"\xFF\xFE\"\n", {}, "job.yaml:1: name: is not UTF-8 text"},
        Mistake{"OverlongSlash", "name: \"\xC0\xAF\"\n", {}, "name: is not UTF-8 text"},
        Mistake{"Surrogate", "labels: {a: \"\xED\xA0\x80\"}\n", {}, "labels.a: is not UTF-8 text"},
        Mistake{"Empty", "", {}, "a job file is a map"},
        Mistake{"NotYaml", "steps: [1\n", {}, "not valid YAML"},
        Mistake{"NotAMap", "- 1\n", {}, "a job file is a map"},
        Mistake{"OverrideForm", "steps: 1\n", {"steps"}, "--set: \"steps\" is not of the form"},
        Mistake{"OverrideKey",
                "steps: 1\n",
                {"optimiser.lr=1"},
                "--set: optimiser: unknown key (did you mean \"optimizer\"?)"}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace ringmaster::cli
