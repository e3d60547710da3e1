// The kernels over tiles on a Hopper GPU, forward and backward: dense and dilated segments of 64K
// random bf16 tokens, 2048 wide. Prints one JSON object a case: milliseconds (median of ten after
// three), TFLOP/s of the products that attention itself needs, 2 forward and 5 backward.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "attention/kernels/tile_attention.h"

namespace ringmaster::attention::kernels {
namespace {

constexpr int64_t kTokens = 65536;
constexpr int kWidth = 2048;
constexpr int kBackwardRows = 128;

void Check(const std::string& error) {
  if (!error.empty()) {
    std::fprintf(stderr, "%s\n", error.c_str());
    std::exit(1);
  }
}
void Check(cudaError_t error) {
  Check(error == cudaSuccess ? std::string() : cudaGetErrorString(error));
}

template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(int64_t count) {
    Check(cudaMalloc(&data_, count * sizeof(T)));
    Check(cudaMemset(data_, 0, count * sizeof(T)));
  }
  explicit DeviceArray(const std::vector<T>& host)
      : DeviceArray(static_cast<int64_t>(host.size())) {
    Check(cudaMemcpy(data_, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  T* data() const { return static_cast<T*>(data_); }

 private:
  void* data_ = nullptr;
};

std::vector<uint16_t> RandomBf16(int64_t count) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> values(count);
  for (size_t i = 0; i < values.size(); ++i) {
    // Drawing all of them would take longer than the measurement.
    if (i >= size_t{1} << 20) {
      values[i] = values[i - (size_t{1} << 20)];
      continue;
    }
    const float value = normal(random);
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    values[i] = static_cast<uint16_t>(bits >> 16);
  }
  return values;
}

struct Case {
  int dim;
  bool causal;
  int64_t segment;
  int64_t rate;

  int heads() const { return kWidth / dim; }
  int64_t rows() const { return segment / rate; }
  double Flops() const {
    return 4.0 * dim * heads() * (kTokens / segment) * rows() * rows() / (causal ? 2 : 1);
  }
};

struct Lists {
  std::vector<Tile> tiles;
  std::vector<TileKeys> keys;
  std::vector<KeyTile> key_tiles;
  std::vector<TileKeys> queries;
};

// Tiles of one head's segment lie together, so that its keys stay in the L2 cache, heavy ones
// first.
Lists MakeLists(const Case& c, int rows_of_tile) {
  Lists lists;
  const auto rows = static_cast<int32_t>(c.rows());
  for (int64_t s = 0; s < kTokens / c.segment; ++s) {
    for (int head = 0; head < c.heads(); ++head) {
      const TileRows at = {0, head, static_cast<int32_t>(head % c.rate),
                           static_cast<int32_t>(s * rows)};
      for (int32_t first = (rows - 1) / rows_of_tile * rows_of_tile; first >= 0;
           first -= rows_of_tile) {
        TileRows part = at;
        part.first += first;
        const auto begin = static_cast<int32_t>(lists.keys.size());
        lists.keys.push_back({at, rows, c.causal ? first : kAllVisible});
        lists.tiles.push_back(
            {part, std::min(rows_of_tile, rows - first), begin, begin + 1, head, s * rows + first});
      }
      for (int32_t first = 0; first < rows; first += kTileKeys) {
        TileRows part = at;
        part.first += first;
        const auto begin = static_cast<int32_t>(lists.queries.size());
        lists.queries.push_back({at, rows, c.causal ? -first : kAllVisible});
        lists.key_tiles.push_back({part, std::min(kTileKeys, rows - first), begin, begin + 1});
      }
    }
  }
  return lists;
}

double Milliseconds(const std::function<std::string()>& start) {
  cudaEvent_t begin, end;
  Check(cudaEventCreate(&begin));
  Check(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < 13; ++i) {
    Check(cudaEventRecord(begin));
    Check(start());
    Check(cudaEventRecord(end));
    Check(cudaEventSynchronize(end));
    float time = 0;
    Check(cudaEventElapsedTime(&time, begin, end));
    if (i >= 3) {
      times.push_back(time);
    }
  }
  Check(cudaEventDestroy(begin));
  Check(cudaEventDestroy(end));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

struct Tensors {
  explicit Tensors(const Case& c)
      : count(kTokens * kWidth),
        q(RandomBf16(count)),
        k(RandomBf16(count)),
        v(RandomBf16(count)),
        view{{nullptr, 1, kTokens, c.heads(), count, kWidth, c.dim}, c.rate} {}
  View Of(const DeviceArray<uint16_t>& tensor) const {
    View result = view;
    result.operand.data = tensor.data();
    return result;
  }

  int64_t count;
  DeviceArray<uint16_t> q, k, v;
  View view;
};

double Forward(const Case& c, const Tensors& tensors) {
  const Lists lists = MakeLists(c, TileRowsOf(c.dim));
  const DeviceArray<Tile> tiles(lists.tiles);
  const DeviceArray<TileKeys> keys(lists.keys);
  const int64_t rows = kTokens / c.rate;
  const DeviceArray<uint16_t> out(rows * kWidth);
  const DeviceArray<float> lse(rows * c.heads());
  ForwardProblem problem;
  problem.head_dim = c.dim;
  problem.scale = 0.08f;
  problem.query_views = {tensors.Of(tensors.q)};
  problem.key_views = {tensors.Of(tensors.k)};
  problem.value_views = {tensors.Of(tensors.v)};
  problem.tiles = tiles.data();
  problem.tile_count = static_cast<int>(lists.tiles.size());
  problem.keys = keys.data();
  problem.results = {out.data(), 0, kWidth, c.dim, lse.data(), 0, 1, rows};
  Check(WhyNot(problem));
  return Milliseconds([&] { return TileForward(problem, nullptr); });
}

double Backward(const Case& c, const Tensors& tensors) {
  const Lists lists = MakeLists(c, kBackwardRows);
  const DeviceArray<Tile> tiles(lists.tiles);
  const DeviceArray<TileKeys> keys(lists.keys), queries(lists.queries);
  const DeviceArray<KeyTile> key_tiles(lists.key_tiles);
  const DeviceArray<float> numbers(kTokens * c.heads());
  const DeviceArray<float> dq(tensors.count), dk(tensors.count), dv(tensors.count);
  BackwardProblem problem;
  problem.head_dim = c.dim;
  problem.scale = 0.08f;
  problem.query_views = {tensors.Of(tensors.q)};
  problem.dout_views = {tensors.Of(tensors.v)};
  problem.key_views = {tensors.Of(tensors.k)};
  problem.value_views = {tensors.Of(tensors.v)};
  problem.lse = problem.delta = {numbers.data(), 0, c.heads(), 1};
  problem.tiles = tiles.data();
  problem.tile_count = static_cast<int>(lists.tiles.size());
  problem.keys = keys.data();
  problem.key_tiles = key_tiles.data();
  problem.key_tile_count = static_cast<int>(lists.key_tiles.size());
  problem.queries = queries.data();
  problem.dq = {{dq.data(), 0, kWidth, c.dim}};
  problem.dk = {{dk.data(), 0, kWidth, c.dim}};
  problem.dv = {{dv.data(), 0, kWidth, c.dim}};
  Check(WhyNot(problem));
  return Milliseconds([&] { return TileBackward(problem, nullptr); });
}

void Run(const Case& c) {
  const Tensors tensors(c);
  const double forward = Forward(c, tensors), backward = Backward(c, tensors);
  std::printf(
      "{\"benchmark\": \"tile_attention\", \"head_dim\": %d, \"causal\": %s, \"segment\": %ld, "
      "\"rate\": %ld, "
      "\"forward_ms\": %.3f, \"forward_tflops\": %.0f, \"backward_ms\": %.3f, \"backward_tflops\": "
      "%.0f}\n",
      c.dim, c.causal ? "true" : "false", static_cast<long>(c.segment), static_cast<long>(c.rate),
      forward, c.Flops() / forward / 1e9, backward, 2.5 * c.Flops() / backward / 1e9);
}

}  // namespace
}  // namespace ringmaster::attention::kernels

int main() {
  for (const int dim : {128, 64}) {
    for (const bool causal : {false, true}) {
      for (const auto& [segment, rate] : std::vector<std::pair<int64_t, int64_t>>{
               {2048, 1}, {4096, 1}, {8192, 1}, {16384, 1}, {4096, 2}, {8192, 4}, {32768, 16}}) {
        ringmaster::attention::kernels::Run({dim, causal, segment, rate});
      }
    }
  }
}
