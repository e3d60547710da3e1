#include "cli/output.h"

#include <sstream>

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

TEST(OutputTest, EmptyListIsAnEmptyJsonArray) {
  std::ostringstream out;
  PrintMessages(out, {}, OutputFormat::kJson);
  EXPECT_EQ(out.str(), "[]\n");
}

TEST(OutputTest, HumanForms) {
  EXPECT_EQ(HumanDuration(absl::Seconds(59)), "59s");
  EXPECT_EQ(HumanDuration(absl::Seconds(125)), "2m05s");
  EXPECT_EQ(HumanDuration(absl::Hours(76)), "3d04h");
  EXPECT_EQ(HumanBytes(1536), "1.5 KiB");
  EXPECT_EQ(HumanBytes(12), "12 B");
  EXPECT_EQ(HumanCount(85500000), "85.5M");
  EXPECT_EQ(HumanCount(999), "999");
  EXPECT_EQ(ShortName("projects/p/trainingJobs/j"), "j");
}

TEST(OutputTest, RefusesUnknownFormat) {
  EXPECT_EQ(ParseOutputFormat("xml").status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace ringmaster::cli
