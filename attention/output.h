#pragma once

#include <ATen/core/Tensor.h>

#include <exception>
#include <string>
#include <utility>

#include "absl/status/status.h"

// What the operators return and throw.
namespace ringmaster::attention {

// N is the number of tokens of the tensor at hand: the whole sequence, or one rank's local tokens.
struct AttentionOutput {
  // [B, N, H, D], dtype of q, contiguous. Zero where a query sees no key.
  at::Tensor out;
  // [B, N, H], natural logarithm of the softmax denominator; fp32, or fp64 for fp64 inputs. -inf
  // where a query sees no key. Carries no gradient.
  at::Tensor lse;
};

// Thrown when the exchange with the peers fails, in forward or in backward; carries the exchange's
// status unchanged.
class ExchangeError : public std::exception {
 public:
  explicit ExchangeError(absl::Status status)
      : status_(std::move(status)), what_(status_.ToString()) {}
  const absl::Status& status() const { return status_; }
  const char* what() const noexcept override { return what_.c_str(); }

 private:
  absl::Status status_;
  std::string what_;
};

}  // namespace ringmaster::attention
