#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "attention/kernels/tile_list.h"
#include "tests/attention/kernels/device_array.h"
#include "tests/attention/kernels/elements.h"
#include "tests/attention/kernels/hopper.h"

// What tests of the kernels over tiles have in common: tensors on both sides, and how far from
// sums on the host their results may be.
namespace ringmaster::attention::kernels {

// A tensor [batch, tokens, heads, dim] on both sides, with room around each token's heads.
struct Tensor {
  Tensor(ElementType type, int64_t batch, int64_t tokens, int64_t heads, int64_t dim,
         std::mt19937_64* random)
      : type(type),
        token_stride((heads + 1) * dim),
        host(RandomElements(type, batch * tokens * token_stride, random)),
        device(host),
        operand{device.data(), batch, tokens, heads, tokens * token_stride, token_stride, dim} {}

  float At(int64_t batch, int64_t token, int64_t head, int64_t i) const {
    return FromElement(
        type,
        host[batch * operand.batch_stride + token * token_stride + head * operand.head_stride + i]);
  }

  ElementType type;
  int64_t token_stride;
  std::vector<uint16_t> host;
  DeviceArray<uint16_t> device;
  Operand operand;
};

inline int64_t Draw(std::mt19937_64* random, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(*random);
}

inline int64_t TokenOf(const View& view, const TileRows& rows, int64_t i) {
  return rows.residue + (rows.first + i) * view.step;
}

// The errors of design: difference over the value plus the size of the whole; `model` is a dense
// sum that rounds what the kernels round and nothing else.
class Errors {
 public:
  void Add(double got, double model, double want) {
    got_.push_back(got - want);
    model_.push_back(model - want);
    want_.push_back(want);
  }
  void ExpectWithinTwiceTheModel(const char* what) const {
    double squares = 0, got = 0, model = 0;
    for (const double value : want_) squares += value * value;
    const double size = std::sqrt(squares / static_cast<double>(want_.size()));
    for (size_t i = 0; i < want_.size(); ++i) {
      const double of = std::abs(want_[i]) + size + 1e-30;
      got = std::isnan(got_[i]) ? got_[i] : std::max(got, std::abs(got_[i]) / of);
      model = std::max(model, std::abs(model_[i]) / of);
    }
    EXPECT_LE(got, 2 * model + 1e-5) << what;
  }

 private:
  std::vector<double> got_, model_, want_;
};

inline double Rounded(ElementType type, double value) {
  return FromElement(type, ToElement(type, static_cast<float>(value)));
}

}  // namespace ringmaster::attention::kernels
