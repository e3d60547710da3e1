#include "cli/output.h"

#include <sstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "ringmaster/v1/job.pb.h"
#include "yaml-cpp/yaml.h"

namespace ringmaster::cli {
namespace {

TEST(OutputTest, TableAlignsColumnsWithoutTrailingBlanks) {
  std::ostringstream out;
  PrintTable(out, {"NAME", "STATE"}, {{"a", "running"}, {"longer", "-"}});
  EXPECT_EQ(out.str(), "NAME    STATE\na       running\nlonger  -\n");
}

TEST(OutputTest, JsonAndYamlParseBackWithProtoNames) {
  v1::TrainingJob job;
  job.mutable_spec()->mutable_data()->set_sequence_length(8192);
  job.mutable_spec()->mutable_data()->add_paths("/a: b");
  std::ostringstream json;
  PrintMessages(json, {&job, &job}, OutputFormat::kJson);
  EXPECT_EQ(nlohmann::json::parse(json.str())[1]["spec"]["data"]["sequence_length"], "8192");
  std::ostringstream yaml;
  PrintMessage(yaml, job, OutputFormat::kYaml);
  const YAML::Node node = YAML::Load(yaml.str());
  EXPECT_EQ(node["spec"]["data"]["paths"][0].as<std::string>(), "/a: b");
}

TEST(OutputTest, YamlQuotesTextThatReadsAsSomethingElse) {
  const std::vector<std::string> quoted = {"",           "1.10", "0x10", "1e3",  "-",
                                           "1:30",       "~",    ".inf", "true", "No",
                                           "2026-11-26", "NULL", "y",    "+1"};
  const std::vector<std::string> plain = {"truest", "a b", "/data/1", "v1.10"};
  v1::TrainingJob job;
  for (const auto& texts : {quoted, plain}) {
    for (const std::string& text : texts) {
      (*job.mutable_labels())["k" + text] = text;
    }
  }
  (*job.mutable_labels())["1.10"] = "key";
  job.mutable_spec()->set_steps(200);
  job.mutable_spec()->mutable_attention()->add_segment_lengths(32);
  job.mutable_spec()->set_dropout(0.5);
  job.mutable_spec()->mutable_optimizer()->set_lr(1e-5);
  std::ostringstream yaml;
  PrintMessage(yaml, job, OutputFormat::kYaml);
  const YAML::Node node = YAML::Load(yaml.str());
  // The parser's mark of quotes.
  for (const std::string& text : quoted) EXPECT_EQ(node["labels"]["k" + text].Tag(), "!") << text;
  for (const std::string& text : plain) EXPECT_EQ(node["labels"]["k" + text].Tag(), "?") << text;
  EXPECT_THAT(yaml.str(), testing::HasSubstr("  \"1.10\": key\n"));
  EXPECT_EQ(node["spec"]["steps"].Tag(), "?");
  EXPECT_EQ(node["spec"]["attention"]["segment_lengths"][0].Tag(), "?");
  EXPECT_EQ(node["spec"]["dropout"].Tag(), "?");
  // In YAML 1.1 a number with an exponent has a point.
  EXPECT_THAT(yaml.str(), testing::HasSubstr(" lr: 1.0e-05\n"));
  for (const auto& label : job.labels()) {
    EXPECT_EQ(node["labels"][label.first].Scalar(), label.second);
  }
}

TEST(OutputTest, EmptyListIsAnEmptyJsonArray) {
  std::ostringstream out;
  PrintMessages(out, {}, OutputFormat::kJson);
  EXPECT_EQ(out.str(), "[]\n");
}

TEST(OutputTest, HumanForms) {
  EXPECT_EQ(HumanDuration(absl::Seconds(59)), "59s");
  EXPECT_EQ(HumanDuration(absl::Seconds(125)), "2m05s");
  EXPECT_EQ(HumanDuration(absl::Hours(76)), "3d04h");
  EXPECT_EQ(HumanCount(85500000), "85.5M");
  EXPECT_EQ(HumanCount(999), "999");
  EXPECT_EQ(ShortName("projects/p/trainingJobs/j"), "j");
}

TEST(OutputTest, RefusesUnknownFormat) {
  EXPECT_EQ(ParseOutputFormat("xml").status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace ringmaster::cli
