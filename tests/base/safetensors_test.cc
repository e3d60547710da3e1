#include "base/safetensors.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <random>

#include "absl/strings/str_cat.h"

namespace ringmaster::safetensors {
namespace {

using ::testing::HasSubstr;

// A file's bytes from header text and data.
std::string FileBytes(const std::string& json, const std::string& data) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(json.size() >> (8 * i) & 0xff));
  return bytes + json + data;
}

absl::StatusOr<Header> Parse(const std::string& bytes) { return ParseHeader(bytes, bytes.size()); }

class TemporaryFile {
 public:
  TemporaryFile() : path_(testing::TempDir() + "/safetensors_XXXXXX") {
    descriptor_ = mkstemp(path_.data());
  }
  ~TemporaryFile() {
    close(descriptor_);
    unlink(path_.c_str());
  }
  const std::string& path() const { return path_; }
  int descriptor() const { return descriptor_; }

 private:
  std::string path_;
  int descriptor_;
};

std::vector<TensorSpec> SomeTensors() {
  return {{"mask", Type::kBool, {3}},    {"weight", Type::kF32, {2, 3}},
          {"empty", Type::kF64, {0, 7}}, {"half \"q\"", Type::kBF16, {5}},
          {"step", Type::kI64, {}},      {"raw", Type::kU8, {4}},
          {"ids", Type::kI32, {2}},      {"scores", Type::kF16, {1, 1, 1}},
          {"doubles", Type::kF64, {2}}};
}

TEST(SafetensorsTest, WhatIsWrittenIsReadBack) {
  const Header header = *LayOut(SomeTensors(), {{"format", "pt"}, {"note", "caf\xc3\xa9 \"x\"\n"}});
  EXPECT_EQ(header.data_begin % 64, 0u);
  std::string data(header.tensors.back().end, '\0');
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i * 37 + 1);

  TemporaryFile out;
  Writer writer(out.descriptor(), header);
  // Pieces that end in the middle of tensors and reach over several.
  for (size_t at = 0; at < data.size(); at += 11) {
    ASSERT_TRUE(writer.Append(absl::MakeSpan(data).subspan(at, 11)).ok());
  }
  const absl::StatusOr<Writer::Result> result = writer.Finish();
  ASSERT_TRUE(result.ok()) << result.status();

  const absl::StatusOr<File> file = File::Open(out.path());
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->header().metadata, header.metadata);
  EXPECT_EQ(file->header().file_bytes, result->file_bytes);
  ASSERT_EQ(file->header().tensors.size(), SomeTensors().size());
  for (const TensorSpec& spec : SomeTensors()) {
    const Tensor* tensor = file->header().Find(spec.name);
    ASSERT_NE(tensor, nullptr) << spec.name;
    EXPECT_EQ(tensor->type, spec.type);
    EXPECT_EQ(tensor->shape, spec.shape);
    const auto bytes = file->Bytes(*tensor);
    EXPECT_EQ(std::string(bytes.begin(), bytes.end()), data.substr(tensor->begin, tensor->bytes()));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(bytes.data()) % TypeBytes(spec.type), 0u) << spec.name;
  }
  EXPECT_EQ(file->header().Find("absent"), nullptr);
}

TEST(SafetensorsTest, HashesDoNotDependOnThePieces) {
  const Header header = *LayOut(SomeTensors(), {});
  const std::string data(header.tensors.back().end, 'x');
  std::vector<Writer::Result> results;
  for (size_t piece : {size_t{1}, size_t{7}, data.size()}) {
    TemporaryFile out;
    Writer writer(out.descriptor(), header);
    for (size_t at = 0; at < data.size(); at += piece) {
      ASSERT_TRUE(writer.Append(absl::MakeSpan(data).subspan(at, piece)).ok());
    }
    results.push_back(*writer.Finish());
    EXPECT_EQ(results.back().xxh3, results.front().xxh3);
    EXPECT_EQ(results.back().tensor_xxh3s, results.front().tensor_xxh3s);
    EXPECT_EQ(results.back().tensor_xxh3s.size(), header.tensors.size());
  }
}

TEST(SafetensorsTest, AFileWithoutTensorsIsAFile) {
  TemporaryFile out;
  Writer writer(out.descriptor(), *LayOut({}, {}));
  ASSERT_TRUE(writer.Finish().ok());
  const absl::StatusOr<File> file = File::Open(out.path());
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE(file->header().tensors.empty());
}

TEST(SafetensorsTest, TheWriterHoldsTheCallerToTheHeader) {
  const Header header = *LayOut({{"a", Type::kU8, {4}}}, {});
  TemporaryFile out;
  Writer less(out.descriptor(), header);
  ASSERT_TRUE(less.Append({"abc", 3}).ok());
  EXPECT_EQ(less.Finish().status().code(), absl::StatusCode::kFailedPrecondition);
  Writer more(out.descriptor(), header);
  EXPECT_EQ(more.Append({"abcde", 5}).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(more.Finish().status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(SafetensorsTest, AFullDiskIsResourceExhausted) {
  const int full = open("/dev/full", O_WRONLY);
  ASSERT_GE(full, 0);
  Writer writer(full, *LayOut({{"a", Type::kU8, {4}}}, {}));
  EXPECT_EQ(writer.Append({"abcd", 4}).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(writer.Finish().status().code(), absl::StatusCode::kResourceExhausted);
  close(full);
}

TEST(SafetensorsTest, LayOutRefusesWhatCannotBeWritten) {
  EXPECT_THAT(LayOut({{"a", Type::kU8, {1}}, {"a", Type::kF32, {1}}}, {}).status().message(),
              HasSubstr("'a'"));
  EXPECT_FALSE(LayOut({{"__metadata__", Type::kU8, {1}}}, {}).ok());
  EXPECT_FALSE(LayOut({{"a\xff", Type::kU8, {1}}}, {}).ok());
  EXPECT_FALSE(LayOut({}, {{"key", "\xc3"}}).ok());
  EXPECT_FALSE(LayOut({{"a", Type::kU8, {-1}}}, {}).ok());
  EXPECT_FALSE(LayOut({{"a", Type::kF64, {int64_t{1} << 40, int64_t{1} << 40}}}, {}).ok());
  EXPECT_FALSE(
      LayOut({{"a", Type::kU8, {int64_t{1} << 62}}, {"b", Type::kU8, {int64_t{1} << 62}}}, {})
          .ok());
}

TEST(SafetensorsTest, RefusesBrokenFilesAndSaysWhatIsWrong) {
  const std::string good = R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})";
  ASSERT_TRUE(Parse(FileBytes(good, "abcd")).ok());
  ASSERT_TRUE(Parse(FileBytes(good + "   ", "abcd")).ok());
  const auto one = [](const std::string& fields) { return "{\"a\":{" + fields + "}}"; };
  const struct {
    const char* name;
    std::string bytes;
    const char* message;
  } kRows[] = {
      {"empty file", "", "0 bytes"},
      {"seven bytes", "1234567", "7 bytes"},
      {"length above the limit", std::string(8, '\xff'), "the limit is"},
      {"length beyond the file", FileBytes(good, "").substr(0, 30), "truncated"},
      {"no header", FileBytes("", "abcd"), "start with '{'"},
      {"leading space", FileBytes(" " + good, "abcd"), "start with '{'"},
      {"not JSON", FileBytes("{\"a\"", ""), "not JSON"},
      {"text after the JSON", FileBytes(good + "{}", "abcd"), "not JSON"},
      {"invalid UTF-8", FileBytes("{\"\xff\":{}}", ""), "not JSON"},
      {"data missing", FileBytes(good, "abc"), "truncated"},
      {"data left over", FileBytes(good, "abcde"), "has 5"},
      {"unknown dtype", FileBytes(one(R"("dtype":"F8","shape":[4],"data_offsets":[0,4])"), "abcd"),
       "'F8'"},
      {"lying shape", FileBytes(one(R"("dtype":"U8","shape":[5],"data_offsets":[0,4])"), "abcd"),
       "make 5"},
      {"overflowing shape",
       FileBytes(one(R"("dtype":"F64","shape":[4294967296,4294967296],"data_offsets":[0,0])"), ""),
       "overflows"},
      {"huge number",
       FileBytes(one(R"("dtype":"U8","shape":[9223372036854775808],"data_offsets":[0,0])"), ""),
       "2^63"},
      {"larger number",
       FileBytes(one(R"("dtype":"U8","shape":[99999999999999999999],"data_offsets":[0,0])"), ""),
       "the number"},
      {"negative size", FileBytes(one(R"("dtype":"U8","shape":[-4],"data_offsets":[0,4])"), "abcd"),
       "negative"},
      {"fraction", FileBytes(one(R"("dtype":"U8","shape":[4.0],"data_offsets":[0,4])"), "abcd"),
       "4.0"},
      {"offsets swapped",
       FileBytes(one(R"("dtype":"U8","shape":[4],"data_offsets":[4,0])"), "abcd"), "ascending"},
      {"three offsets",
       FileBytes(one(R"("dtype":"U8","shape":[4],"data_offsets":[0,4,4])"), "abcd"), "ascending"},
      {"offsets beyond", FileBytes(one(R"("dtype":"U8","shape":[4],"data_offsets":[4,8])"), "abcd"),
       "begins at"},
      {"no shape", FileBytes(one(R"("dtype":"U8","data_offsets":[0,4])"), "abcd"), "lacks"},
      {"unknown key",
       FileBytes(one(R"("dtype":"U8","shape":[4],"data_offsets":[0,4],"x":1)"), "abcd"), "'x'"},
      {"key twice",
       FileBytes(one(R"("dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4])"), "abcd"),
       "twice"},
      {"tensor twice",
       FileBytes(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                 R"("a":{"dtype":"U8","shape":[0],"data_offsets":[4,4]}})",
                 "abcd"),
       "twice"},
      {"overlap",
       FileBytes(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                 R"("b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})",
                 "abcdef"),
       "begins at byte 2"},
      {"hole",
       FileBytes(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                 R"("b":{"dtype":"U8","shape":[2],"data_offsets":[4,6]}})",
                 "abcdef"),
       "begins at byte 4"},
      {"metadata with a number", FileBytes(R"({"__metadata__":{"a":1}})", ""), "the number"},
      {"nested shape", FileBytes(one(R"("dtype":"U8","shape":[[4]],"data_offsets":[0,4])"), "abcd"),
       "an array"},
      {"tensor is a list", FileBytes(R"({"a":[]})", ""), "an array"},
      {"dtype is null", FileBytes(one(R"("dtype":null,"shape":[4],"data_offsets":[0,4])"), "abcd"),
       "null"},
  };
  for (const auto& row : kRows) {
    const absl::StatusOr<Header> header = Parse(row.bytes);
    EXPECT_EQ(header.status().code(), absl::StatusCode::kInvalidArgument) << row.name;
    EXPECT_THAT(header.status().message(), HasSubstr(row.message)) << row.name;
  }
}

TEST(SafetensorsTest, ADeeplyNestedHeaderIsRefusedAtOnce) {
  std::string json = R"({"a":)" + std::string(1 << 20, '[');
  EXPECT_FALSE(Parse(FileBytes(json, "")).ok());
  json = "";
  for (int i = 0; i < 100000; ++i) json += R"({"a":)";
  EXPECT_FALSE(Parse(FileBytes(json, "")).ok());
}

TEST(SafetensorsTest, OpenNamesThePathItCannotRead) {
  const absl::StatusOr<File> absent = File::Open("/nonexistent/x.safetensors");
  EXPECT_EQ(absent.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(absent.status().message(), HasSubstr("/nonexistent/x.safetensors"));
  EXPECT_THAT(File::Open("/tmp").status().message(), HasSubstr("not a regular file"));
  TemporaryFile empty;
  EXPECT_THAT(File::Open(empty.path()).status().message(), HasSubstr(empty.path()));
}

// Whatever bytes come: either an error, or a header whose every tensor lies inside the file.
TEST(SafetensorsTest, RandomMutationsNeverLeadOutsideTheFile) {
  const uint64_t seed = 20260218;
  RecordProperty("seed", std::to_string(seed));
  std::mt19937_64 random(seed);
  const Header header = *LayOut(SomeTensors(), {{"k", "v"}});
  const std::string good = EncodeHeader(header) + std::string(header.tensors.back().end, 'd');
  const std::string alphabet = "{}[]\",:0123456789-eE.u \\\xff";
  int accepted = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string bytes = good;
    for (int edits = 1 + random() % 3; edits > 0 && !bytes.empty(); --edits) {
      const size_t at = random() % std::min<size_t>(bytes.size(), header.data_begin + 4);
      switch (random() % 5) {
        case 0:
          bytes[at] = static_cast<char>(random());
          break;
        case 1:
          bytes[at] = alphabet[random() % alphabet.size()];
          break;
        case 2:
          bytes.erase(at, 1 + random() % 8);
          break;
        case 3:
          bytes.insert(at, bytes.substr(random() % bytes.size(), random() % 40));
          break;
        default:
          bytes.resize(at);
          break;
      }
    }
    // An exact allocation, so that a sanitizer sees a read past the end.
    const std::vector<char> exact(bytes.begin(), bytes.end());
    const absl::StatusOr<Header> parsed = ParseHeader(exact, exact.size());
    if (!parsed.ok()) {
      EXPECT_FALSE(parsed.status().message().empty()) << "seed " << seed << " round " << round;
      continue;
    }
    ++accepted;
    uint64_t next = 0;
    for (const Tensor& tensor : parsed->tensors) {
      ASSERT_EQ(tensor.begin, next) << "seed " << seed << " round " << round;
      next = tensor.end;
    }
    ASSERT_EQ(parsed->data_begin + next, exact.size()) << "seed " << seed << " round " << round;
  }
  EXPECT_GT(accepted, 0);
  EXPECT_LT(accepted, 10000);
}

}  // namespace
}  // namespace ringmaster::safetensors
