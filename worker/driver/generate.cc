#include "worker/driver/generate.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "models/generation.h"
#include "worker/checkpoint/checkpoint_files.h"
#include "worker/checkpoint/restore.h"
#include "worker/torch_status.h"
#include "worker/train/job_config.h"
#include "worker/train/training_state.h"

namespace ringmaster::worker {
namespace {

constexpr int64_t kTokensMax = int64_t{1} << 24;
constexpr int64_t kByteVocabulary = 256;

absl::Status Validate(const GenerateOptions& options) {
  if (options.checkpoint.empty()) {
    return absl::InvalidArgumentError("give --checkpoint, a directory with a manifest.json");
  }
  if (options.tokens < 0 || options.tokens > kTokensMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokens is ", options.tokens, "; it must be 0 to ", kTokensMax));
  }
  if (!(options.temperature >= 0) || std::isinf(options.temperature)) {
    return absl::InvalidArgumentError(
        absl::StrCat("temperature is ", options.temperature, "; it must be 0 or more"));
  }
  return absl::OkStatus();
}

// Uniform in [0, 1) with the same values on every machine, which std::uniform_real_distribution
// does not promise.
double NextUniform(std::mt19937_64& random) {
  return static_cast<double>(random() >> 11) * 0x1p-53;
}

}  // namespace

absl::Status Generate(const GenerateOptions& options,
                      const std::function<void(const std::string& bytes)>& print) {
  RETURN_IF_ERROR(Validate(options));
  ASSIGN_OR_RETURN(const Manifest manifest, ReadManifestFile(options.checkpoint));
  JobConfig config;
  ASSIGN_OR_RETURN(config.model, ModelConfigFromSpec(manifest.spec));
  // CPUs are slow in bf16, and the stored weights are fp32 then.
  config.precision = manifest.spec.precision() == v1::FP64 ? Precision::kFp64 : Precision::kFp32;
  if (config.model.vocab_size < kByteVocabulary) {
    return absl::InvalidArgumentError(
        absl::StrCat("the model has ", config.model.vocab_size, " tokens, not one for each byte"));
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<TrainingState> state,
                   TrainingState::Create(config, "cpu"));
  RETURN_IF_ERROR(RestoreWeights(manifest.checkpoint, *state));
  const std::string prompt = options.prompt.empty() ? "\n" : options.prompt;
  std::vector<int64_t> tokens;
  for (const char c : prompt) {
    tokens.push_back(static_cast<unsigned char>(c));
  }
  const int64_t all_tokens = static_cast<int64_t>(tokens.size()) + options.tokens;
  const int64_t mask_tokens = manifest.spec.data().sequence_length();
  if (config.model.blocks.has_value() && all_tokens > mask_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("prompt and --tokens are ", all_tokens,
                                                   " tokens; the model's mask is of ", mask_tokens,
                                                   ", as data.sequence_length says"));
  }
  std::mt19937_64 random(options.seed);
  return CatchTorch("generating", [&] {
    at::set_num_threads(options.threads > 0
                            ? options.threads
                            : static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
    models::Generator generator(state->model(), state->compute_parameters(), all_tokens,
                                mask_tokens);
    print(prompt);
    at::Tensor logits = generator.Prefill(tokens);
    for (int64_t i = 0; i < options.tokens; ++i) {
      // Tokens beyond the bytes, if the model has such, are never drawn.
      const int64_t token = models::SampleToken(logits.narrow(0, 0, kByteVocabulary),
                                                options.temperature, NextUniform(random));
      print(std::string(1, static_cast<char>(token)));
      if (i + 1 < options.tokens) {
        logits = generator.Next(token);
      }
    }
    return absl::OkStatus();
  });
}

}  // namespace ringmaster::worker
