// Runs the installed program over valid and invalid files: attention_runner_test
// PATH_OF_attention_runner
#include <ATen/Functions.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "attention/reference_attention.h"
#include "tests/testing/temporary_directory.h"
#include "tests/testing/tensor_file.h"

namespace ringmaster::tools {
namespace {

using attention::DilatedAttentionOptions;
using attention::RelativeError;
using ::testing::HasSubstr;

std::string g_runner;

using Tensors = std::map<std::string, at::Tensor>;

const std::pair<const char*, at::Tensor attention::ReferenceResult::*> kResults[] = {
    {"out", &attention::ReferenceResult::out},
    {"lse", &attention::ReferenceResult::lse},
    {"dq", &attention::ReferenceResult::dq},
    {"dk", &attention::ReferenceResult::dk},
    {"dv", &attention::ReferenceResult::dv}};

class AttentionRunnerTest : public testing::Test {
 protected:
  std::string Path(const std::string& name) const {
    return absl::StrCat(directory_.path(), "/", name);
  }

  std::string WriteText(const std::string& name, const std::string& text) const {
    std::ofstream(Path(name), std::ios::binary) << text;
    return Path(name);
  }

  std::string WriteInput(const Tensors& tensors) const {
    WriteTensors(Path("in.safetensors"), tensors);
    return Path("in.safetensors");
  }

  // The exit code; stderr goes to errors_.
  int Run(const std::vector<std::string>& arguments) {
    const pid_t child = fork();
    if (child == 0) {
      const int log = open(Path("stderr").c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
      dup2(log, 2);
      std::vector<char*> argv = {g_runner.data()};
      for (const std::string& argument : arguments)
        argv.push_back(const_cast<char*>(argument.c_str()));
      argv.push_back(nullptr);
      execv(argv[0], argv.data());
      _exit(127);
    }
    int status = 0;
    waitpid(child, &status, 0);
    std::stringstream text;
    text << std::ifstream(Path("stderr")).rdbuf();
    errors_ = text.str();
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

  int RunFiles(const std::string& input, const std::string& spec,
               const std::vector<std::string>& more = {}) {
    std::filesystem::remove(Path("out.safetensors"));
    std::vector<std::string> arguments = {"--input", input,      "--spec",
                                          spec,      "--output", Path("out.safetensors")};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return Run(arguments);
  }

  void ExpectRefused(int code, const std::string& message, const std::string& name) {
    EXPECT_EQ(code, 2) << name << ": " << errors_;
    EXPECT_THAT(errors_, HasSubstr(message)) << name;
    EXPECT_EQ(std::count(errors_.begin(), errors_.end(), '\n'), 1) << name << ": " << errors_;
    EXPECT_EQ(errors_.back(), '\n') << name;
    int files = 0;
    for (const auto& entry : std::filesystem::directory_iterator(directory_.path())) {
      files += entry.path().filename().string().rfind("out", 0) == 0 ? 1 : 0;
    }
    EXPECT_EQ(files, 0) << name << " left an output file";
  }

  const TemporaryDirectory directory_;
  std::string errors_;
};

const char kSpec[] = R"({"segment_lengths": [4, 16], "dilation_rates": [2, 3], "causal": true,
  "offset_mode": "paper", "mix_gradient": "exact", "scale": null})";

Tensors SomeInput(at::ScalarType dtype = at::kFloat) {
  at::manual_seed(7);
  return {{"q", at::randn({2, 21, 4, 8}).to(dtype)},
          {"k", at::randn({2, 21, 2, 8}).to(dtype)},
          {"v", at::randn({2, 21, 2, 8}).to(dtype)},
          {"dout", at::randn({2, 21, 4, 8}).to(dtype)}};
}

TEST_F(AttentionRunnerTest, ComputesTheReferenceForEveryTypeAndNumberOfRanks) {
  const DilatedAttentionOptions options{.branches = {{4, 2}, {16, 3}}};
  for (at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
    Tensors input = SomeInput(dtype);
    const auto reference =
        attention::ReferenceAttention(input["q"], input["k"], input["v"], input["dout"], options);
    // What lies at uncovered rows is nobody's business.
    ASSERT_TRUE(reference.lse.isneginf().any().item<bool>());
    input["dout"].masked_fill_(reference.lse.isneginf().unsqueeze(-1), std::nan(""));
    const std::string file = WriteInput(input);
    const auto same = attention::SamePrecisionReference(input["q"], input["k"], input["v"],
                                                        input["dout"].nan_to_num(), options);
    const auto limit = [&](at::Tensor attention::ReferenceResult::*tensor) {
      if (dtype == at::kDouble) return 1e-10;
      return dtype == at::kFloat ? 2e-5 : 2 * RelativeError(same.*tensor, reference.*tensor);
    };
    for (const char* ranks : {"1", "2", "3", "8", "30", "1000"}) {
      ASSERT_EQ(RunFiles(file, WriteText("spec.json", kSpec), {"--ranks", ranks}), 0) << errors_;
      EXPECT_EQ(errors_, "");
      Tensors output = ReadTensors(Path("out.safetensors"));
      ASSERT_EQ(output.size(), 5u);
      EXPECT_EQ(output["lse"].scalar_type(), dtype == at::kDouble ? at::kDouble : at::kFloat);
      EXPECT_EQ(output["dq"].scalar_type(), dtype);
      EXPECT_EQ(output["dk"].sizes(), input["k"].sizes());
      for (const auto& [name, tensor] : kResults) {
        // Of bf16 inputs as well it is fp32.
        const double most = std::string(name) == "lse" && dtype == at::kBFloat16
                                ? std::max(2e-5, limit(tensor))
                                : limit(tensor);
        EXPECT_LE(RelativeError(output[name], reference.*tensor), most)
            << name << " of " << dtype << ", ranks " << ranks;
      }
    }
  }
}

TEST_F(AttentionRunnerTest, TakesEveryLegalSpec) {
  const struct {
    const char* name;
    DilatedAttentionOptions options;
    const char* spec;
  } kRows[] = {
      {"beyond 32 bits, twice the same after clamping",
       {.branches = {{int64_t{1} << 40, 3}, {int64_t{1} << 41, 3}, {1000, 1}}},
       R"({"segment_lengths": [1099511627776, 2199023255552, 1000], "dilation_rates": [3, 3, 1], "causal": true,
           "offset_mode": "paper", "mix_gradient": "exact", "scale": null})"},
      {"torchscale, detached, full, negative scale",
       {.branches = {{5, 1}, {21, 2}},
        .causal = false,
        .offset_mode = attention::OffsetMode::kTorchscale,
        .mix_gradient = attention::MixGradient::kDetached,
        .scale = -0.5},
       R"({"segment_lengths": [5, 21], "dilation_rates": [1, 2], "causal": false, "offset_mode": "torchscale",
           "mix_gradient": "detached", "scale": -0.5})"},
      {"scale zero",
       {.branches = {{8, 1}}, .scale = 0.0},
       R"({"segment_lengths": [8], "dilation_rates": [1], "causal": true, "offset_mode": "paper",
           "mix_gradient": "exact", "scale": 0})"},
  };
  Tensors input = SomeInput(at::kDouble);
  for (const auto& row : kRows) {
    const auto reference = attention::ReferenceAttention(input["q"], input["k"], input["v"],
                                                         input["dout"], row.options);
    for (const char* ranks : {"1", "4"}) {
      ASSERT_EQ(RunFiles(WriteInput(input), WriteText("spec.json", row.spec), {"--ranks", ranks}),
                0)
          << errors_;
      Tensors output = ReadTensors(Path("out.safetensors"));
      for (const auto& [name, tensor] : kResults) {
        EXPECT_LE(RelativeError(output[name], reference.*tensor), 1e-10)
            << name << ": " << row.name;
      }
    }
  }
}

TEST_F(AttentionRunnerTest, WithoutDoutThereAreNoGradients) {
  Tensors input = SomeInput();
  input.erase("dout");
  ASSERT_EQ(RunFiles(WriteInput(input), WriteText("spec.json", kSpec)), 0) << errors_;
  EXPECT_EQ(ReadTensors(Path("out.safetensors")).size(), 2u);
}

TEST_F(AttentionRunnerTest, RefusesInvalidSpecs) {
  const std::string file = WriteInput(SomeInput());
  const auto with = [](const char* from, const char* to) {
    return absl::StrReplaceAll(kSpec, {{from, to}});
  };
  const struct {
    const char* name;
    std::string spec;
    const char* message;
  } kRows[] = {
      {"lengths differ", with("[2, 3]", "[2]"), "equally many"},
      {"rate zero", with("[2, 3]", "[2, 0]"), "must be at least 1"},
      {"rate negative", with("[2, 3]", "[2, -3]"), "must be at least 1"},
      {"segment zero", with("[4, 16]", "[0, 16]"), "must be at least 1"},
      {"rate above the segment as given", with("[2, 3]", "[2, 17]"), "above its segment_length 16"},
      {"no branch", with("[4, 16]", "[]").replace(with("[4, 16]", "[]").find("[2, 3]"), 6, "[]"),
       "no branch"},
      {"fraction", with("[4, 16]", "[4.0, 16]"), "must be an integer"},
      {"beyond 63 bits", with("[4, 16]", "[4, 9223372036854775808]"), "below 2^63"},
      {"text for a number", with("[4, 16]", "[\"4\", 16]"), "must be an integer"},
      {"not a list", with("[4, 16]", "4"), "a list"},
      {"unknown key", with("\"causal\"", "\"casual\": 1, \"causal\""), "unknown key 'casual'"},
      {"no causal", with("\"causal\": true,", ""), "lacks the key 'causal'"},
      {"no scale", with(", \"scale\": null", ""), "lacks the key 'scale'"},
      {"key twice", with("\"causal\": true", "\"causal\": true, \"causal\": false"), "twice"},
      {"causal is a number", with("true", "1"), "causal is number"},
      {"unknown offset mode", with("\"paper\"", "\"Paper\""), "offset_mode"},
      {"unknown gradient", with("\"exact\"", "true"), "mix_gradient"},
      {"scale is text", with("null", "\"1\""), "scale is string"},
      {"scale overflows", with("null", "1e999"), "JSON"},
      {"scale is NaN", with("null", "NaN"), "JSON"},
      {"not an object", "[]", "object"},
      {"empty", "", "JSON"},
  };
  for (const auto& row : kRows) {
    ExpectRefused(RunFiles(file, WriteText("spec.json", row.spec)), row.message, row.name);
  }
  ExpectRefused(RunFiles(file, Path("absent.json")), "absent.json", "no spec file");
}

TEST_F(AttentionRunnerTest, RefusesInvalidTensors) {
  const std::string spec = WriteText("spec.json", kSpec);
  using Change = void (*)(Tensors&);
  const struct {
    const char* name;
    Change change;
    const char* message;
  } kRows[] = {
      {"no v", [](Tensors& t) { t.erase("v"); }, "no tensor 'v'"},
      {"unknown tensor", [](Tensors& t) { t["dOut"] = t["q"]; }, "unknown tensor 'dOut'"},
      {"dtypes differ", [](Tensors& t) { t["k"] = t["k"].to(at::kDouble); }, "one dtype"},
      {"dout of another dtype", [](Tensors& t) { t["dout"] = t["dout"].to(at::kBFloat16); },
       "one dtype"},
      {"half",
       [](Tensors& t) {
         for (auto& [name, x] : t) x = x.to(at::kHalf);
       },
       "must be F64"},
      {"integers",
       [](Tensors& t) {
         for (auto& [name, x] : t) x = x.to(at::kLong);
       },
       "must be F64"},
      {"three dimensions", [](Tensors& t) { t["q"] = t["q"][0]; }, "[B, N, H, D]"},
      {"tokens differ", [](Tensors& t) { t["k"] = t["k"].narrow(1, 0, 20); }, "'k' has the shape"},
      {"v has another number of heads", [](Tensors& t) { t["v"] = t["q"]; }, "'v' has the shape"},
      {"dout has another shape", [](Tensors& t) { t["dout"] = t["k"]; }, "'dout' has the shape"},
      {"heads not a multiple",
       [](Tensors& t) {
         t["k"] = t["v"] = at::ones({2, 21, 3, 8});
       },
       "multiple"},
      {"NaN in q", [](Tensors& t) { t["q"][1][3][2][5] = std::nan(""); },
       "'q' holds NaN at [1, 3, 2, 5]"},
      {"infinity in k",
       [](Tensors& t) { t["k"][0][0][0][0] = std::numeric_limits<double>::infinity(); },
       "'k' holds infinity"},
      {"minus infinity in v",
       [](Tensors& t) { t["v"][0][20][1][7] = -std::numeric_limits<double>::infinity(); },
       "'v' holds infinity"},
      // Head 0 selects every second token of a segment of four.
      {"NaN in dout at a covered row", [](Tensors& t) { t["dout"][0][2][0][0] = std::nan(""); },
       "'dout' holds NaN"},
  };
  for (const auto& row : kRows) {
    Tensors input = SomeInput();
    row.change(input);
    ExpectRefused(RunFiles(WriteInput(input), spec), row.message, row.name);
  }
}

TEST_F(AttentionRunnerTest, RefusesBrokenFilesAndFlags) {
  const std::string spec = WriteText("spec.json", kSpec);
  std::stringstream text;
  text << std::ifstream(WriteInput(SomeInput()), std::ios::binary).rdbuf();
  const std::string good = text.str();
  for (size_t bytes : {size_t{0}, size_t{5}, size_t{100}, good.size() / 2, good.size() - 1}) {
    ExpectRefused(RunFiles(WriteText("cut", good.substr(0, bytes)), spec), "cut",
                  absl::StrCat(bytes, " bytes"));
  }
  ExpectRefused(RunFiles(WriteText("longer", good + "x"), spec), "longer", "a byte too many");
  ExpectRefused(
      RunFiles(WriteText("lying", absl::StrReplaceAll(good, {{"[2,21,4,8]", "[9,21,4,8]"}})), spec),
      "its dtype and shape make", "lying shape");
  ExpectRefused(RunFiles(Path("absent"), spec), "absent", "no input file");
  const std::string file = WriteText("good", good);
  ExpectRefused(RunFiles(file, spec, {"--ranks", "0"}), "--ranks", "no rank");
  ExpectRefused(RunFiles(file, spec, {"--ranks", "-1"}), "--ranks", "negative ranks");
  ExpectRefused(RunFiles(file, spec, {"--ranks", "two"}), "--ranks", "ranks in words");
  ExpectRefused(RunFiles(file, spec, {"--device", "tpu"}), "--device", "unknown device");
  ExpectRefused(RunFiles(file, spec, {"--speed", "9"}), "--speed", "unknown flag");
  ExpectRefused(Run({"--input", file, "--spec", spec}), "--output", "no output");
  ExpectRefused(Run({"--input", file, "--spec", spec, "--output", spec + "/out"}), spec + "/out",
                "unwritable output");
}

TEST_F(AttentionRunnerTest, TheEmptySequenceHasEmptyResults) {
  Tensors input = SomeInput();
  for (auto& [name, x] : input) x = x.narrow(1, 0, 0);
  for (const char* ranks : {"1", "3"}) {
    ASSERT_EQ(RunFiles(WriteInput(input), WriteText("spec.json", kSpec), {"--ranks", ranks}), 0)
        << errors_;
    EXPECT_EQ(ReadTensors(Path("out.safetensors"))["dk"].sizes(), input["k"].sizes());
  }
}

}  // namespace
}  // namespace ringmaster::tools

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (argc != 2) {
    std::fprintf(stderr, "usage: attention_runner_test PATH_OF_attention_runner\n");
    return 2;
  }
  ringmaster::tools::g_runner = argv[1];
  return RUN_ALL_TESTS();
}
