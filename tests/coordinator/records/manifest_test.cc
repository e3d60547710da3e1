#include "coordinator/records/manifest.h"

#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/temporary_directory.h"

namespace ringmaster::coordinator {
namespace {

using ::testing::HasSubstr;

constexpr char kManifest[] = R"({
  "format": "ringmaster-checkpoint-1", "writer": "w", "training_job": "projects/default/trainingJobs/bible",
  "training_job_uid": "7f0c", "step": 500, "generation": 3, "world_size": 2, "bytes": 11,
  "create_time": "2026-01-31T12:00:00.123456Z",
  "shards": [{"file": "a.safetensors", "rank": 0, "bytes": 5, "xxh3": "0123456789abcdef"},
             {"file": "b.safetensors", "rank": 1, "bytes": 6, "xxh3": "0123456789abcdee"}],
  "spec": {"model": {"preset": "tiny"}, "steps": "1000", "of_a_newer_version": 1}, "unknown": []
})";

class ManifestTest : public ::testing::Test {
 protected:
  ManifestTest() {
    Write("a.safetensors", "12345");
    Write("b.safetensors", "123456");
  }
  void Write(const std::string& name, const std::string& text) {
    std::ofstream(temporary_.path() + "/" + name, std::ios::binary) << text;
  }

  const TemporaryDirectory temporary_;
};

TEST_F(ManifestTest, ReadsDirectoryOrFile) {
  Write("manifest.json", kManifest);
  for (const char* suffix : {"", "/", "/manifest.json"}) {
    const absl::StatusOr<ManifestFile> manifest = ReadManifest(temporary_.path() + suffix);
    ASSERT_TRUE(manifest.ok()) << manifest.status();
    const v1::Checkpoint& checkpoint = manifest->checkpoint;
    EXPECT_EQ(checkpoint.directory(), temporary_.path());
    EXPECT_EQ(checkpoint.step(), 500);
    EXPECT_EQ(checkpoint.generation(), 3);
    EXPECT_EQ(checkpoint.bytes(), 11);
    EXPECT_EQ(checkpoint.create_time().nanos(), 123456000);
    ASSERT_EQ(checkpoint.shards_size(), 2);
    EXPECT_EQ(checkpoint.shards(1).path(), temporary_.path() + "/b.safetensors");
    EXPECT_EQ(checkpoint.shards(1).rank(), 1);
    EXPECT_EQ(checkpoint.shards(1).xxh3(), "0123456789abcdee");
    ASSERT_TRUE(manifest->spec.has_value());
    EXPECT_EQ(manifest->spec->model().preset(), "tiny");
    EXPECT_EQ(manifest->spec->steps(), 1000);
  }
}

TEST_F(ManifestTest, SaysWhatIsWrong) {
  const struct {
    const char* name;
    std::string text;
    absl::StatusCode code;
    const char* message;
  } kCases[] = {
      {"not JSON", "{\"format\":", absl::StatusCode::kInvalidArgument, "not a JSON object"},
      {"a list", "[1]", absl::StatusCode::kInvalidArgument, "not a JSON object"},
      {"another format", "{\"format\":\"x\"}", absl::StatusCode::kInvalidArgument, "format"},
      {"step is text", absl::StrReplaceAll(kManifest, {{"500", "\"500\""}}),
       absl::StatusCode::kInvalidArgument, "step"},
      {"no time", absl::StrReplaceAll(kManifest, {{"2026-01-31T", "yesterday"}}),
       absl::StatusCode::kInvalidArgument, "create_time"},
      {"no shards", absl::StrReplaceAll(kManifest, {{"\"shards\"", "\"other\""}}),
       absl::StatusCode::kInvalidArgument, "no shards"},
      {"another size", absl::StrReplaceAll(kManifest, {{"\"bytes\": 6", "\"bytes\": 7"}}),
       absl::StatusCode::kInvalidArgument, "has 6 bytes, the manifest says 7"},
      {"missing shard", absl::StrReplaceAll(kManifest, {{"b.safetensors", "c.safetensors"}}),
       absl::StatusCode::kNotFound, "c.safetensors"},
      {"shard elsewhere", absl::StrReplaceAll(kManifest, {{"b.safetensors", "../b.safetensors"}}),
       absl::StatusCode::kInvalidArgument, "no file name"},
      {"deeply nested spec",
       absl::StrReplaceAll(kManifest, {{"\"of_a_newer_version\": 1",
                                        absl::StrCat("\"x\": ", std::string(1'000'000, '['))}}),
       absl::StatusCode::kInvalidArgument, "nested deeper than 32"},
      {"bad spec", absl::StrReplaceAll(kManifest, {{"\"1000\"", "\"many\""}}),
       absl::StatusCode::kInvalidArgument, "spec"},
  };
  for (const auto& c : kCases) {
    Write("manifest.json", c.text);
    const absl::Status status = ReadManifest(temporary_.path()).status();
    EXPECT_EQ(status.code(), c.code) << c.name << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.message)) << c.name;
  }
  EXPECT_EQ(ReadManifest(temporary_.path() + "/nowhere").status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(ReadManifest("relative/path").status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace ringmaster::coordinator
