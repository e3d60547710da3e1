// Rows on their way between ranks of a GPU: packed from keys as they lie, and added to sums of
// their gradients and rounded when they come back, each beside a copy that reads and writes as many
// bytes:
//   rows_benchmark [--shape=16x128] [--rate=R] TOKENS...
// Of TOKENS tokens every R-th (4) of each head. Prints one JSON object a length: rows, milliseconds
// (median of ten after a second), and the share of the copy's speed.
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "attention/parts/rows.h"
#include "benchmarks/attention/arguments.h"
#include "benchmarks/attention/rank_passes.h"

namespace ringmaster::attention {
namespace {

struct Arguments {
  HeadShape shape;
  int64_t rate = 4;
  std::vector<int64_t> lengths;
};

template <typename F>
double Time(const F& f) {
  return kernels::Milliseconds([&] {
    f();
    return "";
  });
}

// A copy that reads and writes `bytes` in all.
double TimeCopy(int64_t bytes, const at::TensorOptions& options) {
  const at::Tensor from = at::zeros({bytes / 2}, options.dtype(at::kByte));
  const at::Tensor to = at::empty_like(from);
  return Time([&] { to.copy_(from); });
}

void Run(const Arguments& arguments, int64_t tokens) {
  const auto [heads, dim] = arguments.shape;
  RowSet set;
  for (int head = 0; head < heads; ++head) {
    const int64_t first = head % arguments.rate;
    const int64_t count = (tokens - first + arguments.rate - 1) / arguments.rate;
    set.runs.push_back({first, arguments.rate, count, head});
    set.rows_per_group += count;
  }
  set.group_begin.push_back(set.runs.size());
  const PlacedRows rows(set, heads, at::Device(at::kCUDA, 0));
  const at::TensorOptions options(at::Device(at::kCUDA, 0));
  const at::Tensor keys = at::zeros({1, tokens, heads, dim}, options.dtype(at::kBFloat16));
  const at::Tensor sums = at::zeros({1, tokens, heads, dim}, options.dtype(at::kFloat));
  // As they lie in a buffer: keys and values in turn.
  const auto buffer = [&](at::ScalarType dtype) {
    return at::zeros({set.rows(), 2, 1, dim}, options.dtype(dtype)).select(1, 0).transpose(0, 1);
  };
  const at::Tensor packed = buffer(at::kBFloat16), returned = buffer(at::kFloat).unsqueeze(1);
  const double pack = Time([&] { PackRows(keys, rows, packed); });
  const double add = Time([&] { AddRows(returned, rows, sums); });
  const double round = Time([&] { RoundRows(sums, rows, keys); });
  const int64_t elements = set.rows() * dim;
  const auto share = [&](double time, int64_t bytes) {
    return TimeCopy(bytes * elements, options) / time;
  };
  std::printf(
      "{\"benchmark\": \"rows\", \"tokens\": %ld, \"heads\": %d, \"head_dim\": %d, \"rate\": %ld, "
      "\"rows\": %ld, \"pack_ms\": %.3f, \"add_ms\": %.3f, \"round_ms\": %.3f, "
      "\"pack_of_copy\": %.2f, \"add_of_copy\": %.2f, \"round_of_copy\": %.2f}\n",
      static_cast<long>(tokens), heads, dim, static_cast<long>(arguments.rate),
      static_cast<long>(set.rows()), pack, add, round, share(pack, 4), share(add, 12),
      share(round, 6));
  std::fflush(stdout);
}

bool Read(absl::string_view argument, Arguments* arguments) {
  if (absl::ConsumePrefix(&argument, "--shape=")) {
    return ParseHeadShape(argument, &arguments->shape);
  }
  return absl::ConsumePrefix(&argument, "--rate=") &&
         absl::SimpleAtoi(argument, &arguments->rate) && arguments->rate >= 1;
}

int Main(int argc, char** argv) {
  Arguments arguments;
  const auto read = [&](absl::string_view argument) { return Read(argument, &arguments); };
  if (!ReadArguments(argc, argv, "rows_benchmark [--shape=HxD] [--rate=R] TOKENS...", read,
                     &arguments.lengths)) {
    return 2;
  }
  return RunLengths(arguments.lengths, [&](int64_t tokens) { Run(arguments, tokens); });
}

}  // namespace
}  // namespace ringmaster::attention

int main(int argc, char** argv) {
  return ringmaster::attention::RunMain(argc, argv, &ringmaster::attention::Main);
}
