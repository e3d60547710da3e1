#pragma once

#include <string_view>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"

namespace ringmaster::worker {

// Runs `body` and turns what it throws into a Status whose message starts with `what`: the one
// place where exceptions of LibTorch, attention and models end.
//   c10::OutOfMemoryError, std::bad_alloc  ResourceExhausted; also the CPU allocator's c10::Error
//   attention::ExchangeError               its own status, code and payloads unchanged
//   c10::ValueError, c10::IndexError       InvalidArgument
//   any other exception                    Internal
// A Status that `body` returns is passed on unchanged.
absl::Status CatchTorch(std::string_view what, absl::FunctionRef<absl::Status()> body);

}  // namespace ringmaster::worker
