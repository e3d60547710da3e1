// Rows that travel, on the GPU against the host.
#include "attention/kernels/rows.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "tests/attention/kernels/device_array.h"
#include "tests/attention/kernels/elements.h"
#include "tests/attention/kernels/hopper.h"

namespace ringmaster::attention::kernels {
namespace {

struct Shape {
  int64_t batch, tokens;
  int heads, head_dim;
  int64_t padding;  // numbers between one row and the next
};

// Wide pieces and narrow ones, rows beside others, fewer rows than a block takes, and none.
const Shape kShapes[] = {{2, 301, 3, 128, 0}, {1, 77, 2, 64, 64}, {1, 40, 3, 80, 48},
                         {2, 50, 1, 7, 0},    {1, 64, 2, 128, 1}, {1, 3, 1, 128, 0},
                         {1, 5000, 1, 1, 0},  {3, 40, 2, 33, 2}};

struct Layout {
  explicit Layout(const Shape& shape)
      : head(shape.head_dim + shape.padding),
        token(head * shape.heads),
        batch(token * shape.tokens),
        numbers(batch * shape.batch) {}

  template <typename T>
  Strided<T> Of(T* data) const {
    return {data, batch, token, head};
  }
  int64_t At(const Shape& shape, int64_t b, uint32_t place) const {
    return b * batch + place / shape.heads * token + place % shape.heads * head;
  }

  int64_t head, token, batch, numbers;
};

// Some places, some of them more than once.
std::vector<uint32_t> SomePlaces(const Shape& shape, std::mt19937_64& random) {
  const auto all = static_cast<uint32_t>(shape.tokens * shape.heads);
  std::vector<uint32_t> places(2 * all / 3);
  for (uint32_t& place : places) place = static_cast<uint32_t>(random() % all);
  return places;
}

TEST(RowsTest, PacksKeysAndValues) {
  if (const std::string why = WhyNoHopper(); !why.empty()) GTEST_SKIP() << why;
  std::mt19937_64 random(3);
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(testing::Message() << shape.tokens << " tokens, dim " << shape.head_dim);
    const Layout layout(shape);
    std::vector<uint16_t> k(layout.numbers), v(layout.numbers);
    std::iota(k.begin(), k.end(), 0);
    std::iota(v.begin(), v.end(), 7777);
    const std::vector<uint32_t> places = SomePlaces(shape, random);
    const auto rows = static_cast<int64_t>(places.size());
    const DeviceArray<uint16_t> keys(k), values(v),
        message(rows * 2 * shape.batch * shape.head_dim);
    const DeviceArray<uint32_t> all_places(places);
    Check(PackRows({.batch = shape.batch,
                    .heads = shape.heads,
                    .head_dim = shape.head_dim,
                    .rows = rows,
                    .places = all_places.data(),
                    .k = layout.Of<const uint16_t>(keys.data()),
                    .v = layout.Of<const uint16_t>(values.data()),
                    .message = message.data()},
                   nullptr));
    Check(cudaDeviceSynchronize());
    const std::vector<uint16_t> got = message.Host();
    auto next = got.begin();
    for (const uint32_t place : places) {
      for (const std::vector<uint16_t>* whole : {&k, &v}) {
        for (int64_t b = 0; b < shape.batch; ++b, next += shape.head_dim) {
          const auto row = whole->begin() + layout.At(shape, b, place);
          ASSERT_TRUE(std::equal(row, row + shape.head_dim, next)) << "place " << place;
        }
      }
    }
  }
}

struct Returned {
  std::vector<uint32_t> places, begin = {0}, rows;
  uint32_t kept_rows = 0, returned_rows = 0;
};

// Every third place gets rows, up to four each, of both messages; each row goes somewhere.
Returned SomeReturned(const Shape& shape, std::mt19937_64& random) {
  Returned lists;
  for (uint32_t place = 0; place < shape.tokens * shape.heads; place += 3) {
    lists.places.push_back(place);
    for (uint32_t i = 0; i <= random() % 4; ++i) lists.rows.push_back(lists.rows.size());
    lists.begin.push_back(static_cast<uint32_t>(lists.rows.size()));
  }
  lists.kept_rows = static_cast<uint32_t>(lists.rows.size() / 3);
  lists.returned_rows = static_cast<uint32_t>(lists.rows.size()) - lists.kept_rows;
  std::shuffle(lists.rows.begin(), lists.rows.end(), random);
  return lists;
}

void CheckAdd(const Shape& shape, ElementType type, bool rounds) {
  std::mt19937_64 random(shape.head_dim);
  std::normal_distribution<float> normal;
  const auto normals = [&](int64_t count) {
    std::vector<float> numbers(count);
    for (float& number : numbers) number = normal(random);
    return numbers;
  };
  const Layout layout(shape);
  const Returned lists = SomeReturned(shape, random);
  const int64_t row_size = shape.batch * shape.head_dim;
  const std::vector<float> sums[] = {normals(layout.numbers), normals(layout.numbers)};
  const std::vector<float> kept = normals(lists.kept_rows * 2 * row_size),
                           returned = normals(lists.returned_rows * 2 * row_size);
  const DeviceArray<float> dk(sums[0]), dv(sums[1]), all_kept(kept), all_returned(returned);
  const std::vector<uint16_t> untouched(layout.numbers, 0x1234);
  const DeviceArray<uint16_t> rounded_dk(untouched), rounded_dv(untouched);
  const DeviceArray<uint32_t> places(lists.places), begin(lists.begin), rows(lists.rows);
  Check(AddReturnedRows({.batch = shape.batch,
                         .heads = shape.heads,
                         .head_dim = shape.head_dim,
                         .place_count = static_cast<int64_t>(lists.places.size()),
                         .places = places.data(),
                         .begin = begin.data(),
                         .rows = rows.data(),
                         .kept_rows = lists.kept_rows,
                         .kept = all_kept.data(),
                         .returned = all_returned.data(),
                         .dk = layout.Of(dk.data()),
                         .dv = layout.Of(dv.data()),
                         .type = type,
                         .rounded_dk = layout.Of(rounds ? rounded_dk.data() : nullptr),
                         .rounded_dv = layout.Of(rounds ? rounded_dv.data() : nullptr)},
                        nullptr));
  Check(cudaDeviceSynchronize());
  const std::vector<float> got_sums[] = {dk.Host(), dv.Host()};
  const std::vector<uint16_t> got[] = {rounded_dk.Host(), rounded_dv.Host()};
  for (const int which : {0, 1}) {
    std::vector<float> want = sums[which];
    std::vector<uint16_t> want_rounded = untouched;
    for (size_t i = 0; i < lists.places.size(); ++i) {
      for (int64_t b = 0; b < shape.batch; ++b) {
        const int64_t at = layout.At(shape, b, lists.places[i]);
        for (int column = 0; column < shape.head_dim; ++column) {
          float total = sums[which][at + column];
          for (uint32_t j = lists.begin[i]; j < lists.begin[i + 1]; ++j) {
            const bool is_kept = lists.rows[j] < lists.kept_rows;
            const int64_t row = lists.rows[j] - (is_kept ? 0 : lists.kept_rows);
            total +=
                (is_kept ? kept
                         : returned)[(row * 2 + which) * row_size + b * shape.head_dim + column];
          }
          if (rounds) {
            want_rounded[at + column] = ToElement(type, total);
          } else {
            want[at + column] = total;
          }
        }
      }
    }
    // The order of addition is fixed, so that bits are.
    ASSERT_EQ(got_sums[which], want);
    ASSERT_EQ(got[which], want_rounded);
  }
}

TEST(RowsTest, AddsWhatComesBackInOrder) {
  if (const std::string why = WhyNoHopper(); !why.empty()) GTEST_SKIP() << why;
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(testing::Message() << shape.tokens << " tokens, dim " << shape.head_dim);
    CheckAdd(shape, ElementType::kBf16, /*rounds=*/false);
    CheckAdd(shape, ElementType::kBf16, /*rounds=*/true);
    CheckAdd(shape, ElementType::kFp16, /*rounds=*/true);
  }
}

}  // namespace
}  // namespace ringmaster::attention::kernels
