// Rows of keys and values on their way between ranks of a GPU: packed as they lie, and their
// gradients added to sums and rounded when they come back, each beside a copy that reads and writes
// as many bytes:
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
#include "attention/tiles/message_lists.h"
#include "attention/tiles/placed_tiles.h"
#include "attention/tiles/tile_ops.h"
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

// Every rate-th row of each head.
RankParts SentRows(const Arguments& arguments, int64_t tokens) {
  RankParts rank;
  RowSet set;
  for (int head = 0; head < arguments.shape.heads; ++head) {
    const int64_t first = head % arguments.rate;
    const int64_t count = (tokens - first + arguments.rate - 1) / arguments.rate;
    set.runs.push_back({first, arguments.rate, count, head});
    set.rows_per_group += count;
  }
  set.group_begin.push_back(set.runs.size());
  rank.outgoing_rows = set.rows();
  rank.outgoing = {{.peer = 1, .rows = set.rows(), .local = {set}}};
  return rank;
}

void Run(const Arguments& arguments, int64_t tokens) {
  const auto [heads, dim] = arguments.shape;
  const at::Device device(at::kCUDA, 0);
  const MessageLists lists = MakeMessageLists(SentRows(arguments, tokens), heads);
  const PlacedTiles::Messages placed(lists, device);
  const auto rows = static_cast<int64_t>(lists.sent.size());
  const at::TensorOptions options(device);
  const auto own = [&](at::ScalarType type) {
    return at::zeros({1, tokens, heads, dim}, options.dtype(type));
  };
  const auto message = [&](int64_t of, at::ScalarType type) {
    return at::zeros({of, 2, 1, dim}, options.dtype(type));
  };
  const at::Tensor k = own(at::kBFloat16), v = own(at::kBFloat16), dk = own(at::kFloat),
                   dv = own(at::kFloat);
  const at::Tensor packed = message(rows, at::kBFloat16), returned = message(rows, at::kFloat),
                   none = message(0, at::kFloat);
  const double pack = Time([&] { TilePackRows(k, v, placed.sent, packed); });
  const double add = Time([&] { TileAddRows(placed, none, returned, dk, dv, {k, v}); });
  const auto share = [&](double time, int64_t bytes_of_number) {
    return TimeCopy(2 * rows * dim * bytes_of_number, options) / time;
  };
  std::printf(
      "{\"benchmark\": \"rows\", \"tokens\": %ld, \"heads\": %d, \"head_dim\": %d, \"rate\": %ld, "
      "\"rows\": %ld, \"pack_ms\": %.3f, \"add_ms\": %.3f, \"pack_of_copy\": %.2f, "
      "\"add_of_copy\": %.2f}\n",
      static_cast<long>(tokens), heads, dim, static_cast<long>(arguments.rate),
      static_cast<long>(rows), pack, add, share(pack, 4), share(add, 10));
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
