// attention_runner: dilated attention from a file to a file, for parity checks.
//
//   attention_runner --input IN.safetensors --spec SPEC.json --output OUT.safetensors
//                    [--device cpu|cuda] [--ranks P]
//
// IN   q, k, v and optionally dout, [B, N, H, D] (k and v may have fewer heads), all F64, F32 or
// BF16 SPEC {"segment_lengths": [..], "dilation_rates": [..], "causal": bool, "offset_mode":
// "paper"|"torchscale",
//       "mix_gradient": "exact"|"detached", "scale": null|number}
// OUT  out [B, N, H, D], lse [B, N, H] (natural logarithm, -inf where no branch covers), with dout
// also dq, dk, dv
//
// Exit 0, or 2 with one line on stderr and no output file.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/version.h"
#include "tests/attention/device.h"
#include "tests/tools/attention_runner_input.h"
#include "tests/tools/attention_runner_ranks.h"

namespace ringmaster::tools {
namespace {

struct Flags {
  std::string input, spec, output;
  std::string device = "cpu";
  int64_t ranks = 1;
};

absl::Status Run(const Flags& flags) {
  if (flags.ranks < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("--ranks is ", flags.ranks, "; it must be at least 1"));
  }
  if (flags.device != "cpu" && flags.device != "cuda") {
    return absl::InvalidArgumentError(
        absl::StrCat("--device is ", flags.device, "; it must be cpu or cuda"));
  }
  ASSIGN_OR_RETURN(const attention::DilatedAttentionOptions options, ReadSpec(flags.spec));
  ASSIGN_OR_RETURN(const RunnerInput input, ReadInput(flags.input, options));
  ASSIGN_OR_RETURN(const at::Device device, attention::OpenDevice(flags.device));
  ASSIGN_OR_RETURN(const auto tensors, RunRanks(input, options, device, flags.ranks));
  return WriteOutput(flags.output, tensors);
}

// All on one line, whatever the message holds.
int Fail(std::string message) {
  std::replace(message.begin(), message.end(), '\n', ' ');
  std::cerr << "attention_runner: " << message << "\n";
  return 2;
}

}  // namespace
}  // namespace ringmaster::tools

int main(int argc, char** argv) {
  ringmaster::tools::Flags flags;
  CLI::App app("Runs dilated attention from a file to a file.");
  app.set_version_flag("--version", absl::StrCat("attention_runner ", ringmaster::Version(), " (",
                                                 ringmaster::Commit(), ")"));
  app.add_option("--input", flags.input, "q, k, v and optionally dout (safetensors)")->required();
  app.add_option("--spec", flags.spec, "what to compute (JSON)")->required();
  app.add_option("--output", flags.output, "where out, lse, dq, dk and dv go (safetensors)")
      ->required();
  app.add_option("--device", flags.device, "cpu (default) or cuda");
  app.add_option("--ranks", flags.ranks, "in-process ranks that share the sequence (default 1)");
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& told) {
    return app.exit(told);
  } catch (const CLI::ParseError& error) {
    return ringmaster::tools::Fail(error.what());
  }
  try {
    const absl::Status status = ringmaster::tools::Run(flags);
    return status.ok() ? 0 : ringmaster::tools::Fail(std::string(status.message()));
  } catch (const std::exception& error) {
    return ringmaster::tools::Fail(error.what());
  }
}
