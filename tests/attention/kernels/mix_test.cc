// What comes before and after the tiles, on the GPU against fp64 sums on the host.
#include "attention/kernels/mix.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "attention/kernels/rest.h"
#include "tests/attention/kernels/device_array.h"
#include "tests/attention/kernels/hopper.h"

namespace ringmaster::attention::kernels {
namespace {

using MixTest = HopperTest;

INSTANTIATE_TEST_SUITE_P(Elements, MixTest, AllElements());

float Whole(ElementType type, uint16_t rounded, int8_t rest) {
  return WithElement(type,
                     [&](auto element) { return WithRest<decltype(element)>(rounded, rest); });
}

// Parts without keys do not count whatever they hold, NaN goes on; more parts than are asked for
// ahead; places without parts stay as they are.
TEST_P(MixTest, MergesParts) {
  const ElementType type = GetParam().type;
  const int dim = GetParam().head_dim;
  const float none = -std::numeric_limits<float>::infinity();
  const std::vector<std::vector<float>> places = {{1, 2},
                                                  {},
                                                  {80, none, 79.5},
                                                  {none, none},
                                                  {1, NAN},
                                                  {1, 2, 3, 0.5, 2.5, -1, none, 4},
                                                  {},
                                                  {none, none, none, none, 80}};
  std::vector<float> lses, outs;
  std::vector<uint32_t> begins = {0}, filled, filled_begins;
  std::mt19937_64 random(5);
  std::normal_distribution<float> normal;
  constexpr size_t kBatch = 2;
  for (size_t batch = 0; batch < kBatch; ++batch) {
    for (const std::vector<float>& place : places) {
      for (const float lse : place) {
        lses.push_back(lse);
        for (int d = 0; d < dim; ++d) outs.push_back(lse == none ? NAN : normal(random));
      }
      if (batch == 0) begins.push_back(static_cast<uint32_t>(lses.size()));
    }
  }
  for (uint32_t place = 0; place < places.size(); ++place) {
    if (places[place].empty()) continue;
    filled.push_back(place);
    filled_begins.push_back(begins[place]);
  }
  filled_begins.push_back(begins.back());
  const int64_t parts = begins.back();
  const DeviceArray<float> part_outs(outs), part_lses(lses);
  const DeviceArray<float> lse(std::vector<float>(kBatch * places.size(), 7));
  const DeviceArray<uint16_t> out(
      std::vector<uint16_t>(kBatch * places.size() * dim, ToElement(type, 7)));
  const DeviceArray<uint32_t> device_filled(filled), device_begins(filled_begins);
  const DeviceArray<int8_t> rest(kBatch * places.size() * dim);
  ASSERT_EQ(Mix({type, dim, kBatch, part_outs.data(), part_lses.data(), parts,
                 static_cast<int64_t>(filled.size()), device_filled.data(), device_begins.data(),
                 static_cast<int64_t>(places.size()), out.data(), lse.data(), rest.data()},
                nullptr),
            "");
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  const std::vector<uint16_t> mixed = out.Host();
  const std::vector<int8_t> rests = rest.Host();
  const std::vector<float> sums = lse.Host();
  for (size_t row = 0; row < kBatch * places.size(); ++row) {
    SCOPED_TRACE(row);
    const size_t place = row % places.size(), before = row / places.size() * parts;
    double sum = 0;
    for (const float part : places[place]) sum += std::exp(double{part});
    const double want_lse = places[place].empty() ? 7 : std::log(sum);
    if (std::isnan(want_lse)) {
      EXPECT_TRUE(std::isnan(sums[row]));
    } else if (std::isinf(want_lse)) {
      EXPECT_EQ(sums[row], none);
    } else {
      EXPECT_NEAR(sums[row], want_lse, 1e-6 * std::abs(want_lse) + 1e-6);
    }
    for (int d = 0; d < dim; ++d) {
      const double whole = Whole(type, mixed[row * dim + d], rests[row * dim + d]);
      double want = places[place].empty() ? 7 : 0;
      for (size_t part = before + begins[place]; part < before + begins[place + 1]; ++part) {
        if (lses[part] != none) want += std::exp(lses[part] - want_lse) * outs[part * dim + d];
      }
      const double got = FromElement(type, mixed[row * dim + d]);
      if (std::isnan(want_lse)) {
        EXPECT_TRUE(std::isnan(got));
      } else {
        EXPECT_NEAR(got, want,
                    (type == ElementType::kFp16 ? 0.0005 : 0.004) * std::abs(want) + 1e-6);
        EXPECT_NEAR(whole, want,
                    (type == ElementType::kFp16 ? 6e-6 : 4e-5) * std::abs(want) + 1e-6);
      }
    }
  }
}

// Of several blocks, the last of them not full.
TEST_P(MixTest, Starts) {
  const ElementType type = GetParam().type;
  const int dim = GetParam().head_dim;
  constexpr int kHeads = 5, kTokens = 200, kRows = kHeads * kTokens;
  constexpr double kScale = 0.3;
  std::mt19937_64 random(6);
  const std::vector<uint16_t> a = RandomElements(type, int64_t{kRows} * dim, &random);
  const std::vector<uint16_t> b = RandomElements(type, int64_t{kRows} * dim, &random);
  const DeviceArray<uint16_t> on_device_a(a), on_device_b(b);
  std::vector<float> lses(kRows);
  for (int i = 0; i < kRows; ++i) {
    lses[i] = i % 17 == 3 ? INFINITY : i % 19 == 5 ? -INFINITY : 0.01f * i - 3;
  }
  const DeviceArray<float> lse(lses);
  const DeviceArray<float> starts(size_t{kTokens} * PairsOfHeads(kHeads) * 4);
  std::vector<int8_t> rests(b.size());
  for (size_t i = 0; i < rests.size(); ++i) rests[i] = static_cast<int8_t>(i * 37 % 256 - 128);
  const DeviceArray<int8_t> rest(rests);
  ASSERT_EQ(kernels::MakeStarts({.type = type,
                                 .head_dim = dim,
                                 .tokens = kTokens,
                                 .heads = kHeads,
                                 .scale = static_cast<float>(kScale),
                                 .dout = on_device_a.data(),
                                 .out = on_device_b.data(),
                                 .rest = rest.data(),
                                 .lse = lse.data(),
                                 .starts = starts.data()},
                                nullptr),
            "");
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  const std::vector<float> host = starts.Host();
  for (int row = 0; row < kRows; ++row) {
    double expected = 0;
    for (int d = row * dim; d < (row + 1) * dim; ++d) {
      expected += double{FromElement(type, a[d])} * Whole(type, b[d], rests[d]);
    }
    const float* start = &host[4 * (row / kHeads * PairsOfHeads(kHeads)) + 2 * (row % kHeads)];
    ASSERT_NEAR(start[1], -expected, 1e-4) << row;
    if (std::isinf(lses[row])) {
      ASSERT_EQ(start[0], -INFINITY) << row;
    } else {
      ASSERT_NEAR(start[0], -lses[row] / kScale, 1e-5) << row;
    }
  }
}

}  // namespace
}  // namespace ringmaster::attention::kernels
