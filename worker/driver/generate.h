#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"

namespace ringmaster::worker {

struct GenerateOptions {
  // A checkpoint's directory or its manifest.json.
  std::string checkpoint;
  // Empty: a line feed.
  std::string prompt;
  // Bytes to add.
  int64_t tokens = 200;
  // 0: the likeliest byte each time.
  double temperature = 0.8;
  uint64_t seed = 1;
  // CPU threads to compute with; 0: as many as it has CPUs.
  int threads = 0;
};

// Continues a text with a checkpoint's model on the CPU, and hands out the prompt and then every
// byte as it is drawn. The same options give the same text. InvalidArgument for impossible options
// or a model whose tokens are not bytes, else the errors of ReadManifestFile and LoadTensors.
absl::Status Generate(const GenerateOptions& options,
                      const std::function<void(const std::string& bytes)>& print);

}  // namespace ringmaster::worker
