// Forward attention over tiles on Hopper. One block computes one tile: a producer warpgroup loads
// the queries once and keys and values through two-stage rings; two consumer warpgroups hold 64
// queries each and the running softmax of their rows in registers. The scores of the next keys are
// multiplied while the softmax of the present ones is computed (FlashAttention-3, sections 3.1 and
// 3.2, arXiv 2407.08608).
#include "attention/kernels/sm90.cuh"
#include "attention/kernels/tile_kernel.cuh"

namespace ringmaster::attention::kernels {
namespace {

using namespace sm90;  // NOLINT: this file is about its instructions

// What a block of threads is made of, by head dimension.
template <int kDim>
struct Shape {
  static constexpr int kHeadDim = kDim;
  static constexpr int kHalves = kDim / kColumns;
  static constexpr int kConsumers = TileRowsOf(kDim) / kRowsOfConsumer;
  static constexpr int kThreads = (kConsumers + 1) * kWarpGroup;
  static constexpr int kConsumerWarps = kConsumers * kWarpGroup / 32;
  // The register file divided by hand: consumers hold scores, probabilities and outputs.
  static constexpr int kProducerRegisters = kConsumers == 2 ? 24 : 32;
  static constexpr int kConsumerRegisters = kConsumers == 2 ? 240 : 160;
};

struct Arguments {
  ViewMaps queries[kMaxViews];
  ViewMaps keys[kMaxViews];
  ViewMaps values[kMaxViews];
  const Tile* tiles;
  const TileKeys* key_list;
  Results results;
  float scale_log2;
};

template <typename S>
struct Shared {
  static constexpr int kHalves = S::kHalves;
  alignas(1024) uint16_t queries[S::kConsumers][kHalves][kRowsOfConsumer * kColumns];
  alignas(1024) uint16_t keys[kStages][kHalves][kTileKeys * kColumns];
  alignas(1024) uint16_t values[kStages][kHalves][kTileKeys * kColumns];
  uint64_t queries_full;
  uint64_t keys_full[kStages], keys_empty[kStages];
  uint64_t values_full[kStages], values_empty[kStages];
};

template <typename S>
__device__ void Produce(const Arguments& arguments, Shared<S>& shared, const Tile& tile,
                        int batch) {
  constexpr int kQueryBytes = S::kConsumers * kRowsOfConsumer * S::kHeadDim * kElementBytes;
  constexpr int kKeyBytes = kTileKeys * S::kHeadDim * kElementBytes;
  ArriveExpecting(&shared.queries_full, kQueryBytes);
  for (int consumer = 0; consumer < S::kConsumers; ++consumer) {
    LoadRows<kRowsOfConsumer>(shared.queries[consumer], arguments.queries, tile.rows,
                              consumer * kRowsOfConsumer, batch, &shared.queries_full);
  }
  Ring ring;
  for (KeyWalk<kTileKeys> walk(arguments.key_list, tile); !walk.done(); walk.Next(), ring.Next()) {
    const int stage = ring.stage;
    WaitFor(&shared.keys_empty[stage], ring.phase ^ 1);
    ArriveExpecting(&shared.keys_full[stage], kKeyBytes);
    LoadRows<kTileKeys>(shared.keys[stage], arguments.keys, walk.keys().rows, walk.first(), batch,
                        &shared.keys_full[stage]);
    WaitFor(&shared.values_empty[stage], ring.phase ^ 1);
    ArriveExpecting(&shared.values_full[stage], kKeyBytes);
    LoadRows<kTileKeys>(shared.values[stage], arguments.values, walk.keys().rows, walk.first(),
                        batch, &shared.values_full[stage]);
  }
}

// The state of a consumer warpgroup: 64 queries, of which each thread holds two half rows.
template <typename S>
class Consumer {
 public:
  __device__ Consumer(const Arguments& arguments, Shared<S>& shared, int index, int thread)
      : arguments_(arguments),
        shared_(shared),
        index_(index),
        lane_(thread % 32),
        row_(16 * (thread / 32) + thread % 32 / 4) {
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) {
      out_[i] = 0;
    }
  }

  __device__ void Run(const Tile& tile, int batch) {
    KeyWalk<kTileKeys> walk(arguments_.key_list, tile);
    if (!walk.done()) {
      if (index_ == S::kConsumers - 1) {
        GiveTurn();
      }
      WaitFor(&shared_.queries_full, 0);
      Ring keys, values;
      WaitFor(&shared_.keys_full[0], 0);
      AwaitTurn();
      Scores(0);
      GiveTurn();
      AwaitProducts<0>();
      PinRegisters(scores_);
      Release(&shared_.keys_empty[0]);
      keys.Next();
      Hide(walk);
      float ignored[2];
      Softmax(ignored);
      Pack();
      for (walk.Next(); !walk.done(); walk.Next()) {
        WaitFor(&shared_.keys_full[keys.stage], keys.phase);
        AwaitTurn();
        Scores(keys.stage);
        WaitFor(&shared_.values_full[values.stage], values.phase);
        Accumulate(values.stage);
        GiveTurn();
        AwaitProducts<1>();
        PinRegisters(scores_);
        Release(&shared_.keys_empty[keys.stage]);
        keys.Next();
        Hide(walk);
        float keep[2];
        Softmax(keep);
        AwaitProducts<0>();
        PinRegisters(out_);
        Release(&shared_.values_empty[values.stage]);
        values.Next();
#pragma unroll
        for (int i = 0; i < kHeadDim / 2; ++i) {
          out_[i] *= keep[i / 2 & 1];
        }
        Pack();
      }
      WaitFor(&shared_.values_full[values.stage], values.phase);
      Accumulate(values.stage);
      AwaitProducts<0>();
      PinRegisters(out_);
    }
    Store(tile, batch);
  }

 private:
  static constexpr int kHeadDim = S::kHeadDim;
  // One lane a warp: a warp's products read only its quarter of the scores but all of the keys.
  __device__ void Release(uint64_t* barrier) {
    if (lane_ == 0) {
      Arrive(barrier);
    }
  }

  // The consumers' products take turns, so that the softmax of one runs under the products of the
  // others.
  __device__ void AwaitTurn() { SyncNamed(1 + index_, 2 * kWarpGroup); }
  __device__ void GiveTurn() { ArriveNamed(1 + (index_ + 1) % S::kConsumers, 2 * kWarpGroup); }

  // Starts the scores of all queries with the keys of a stage.
  __device__ void Scores(int stage) {
    PinRegisters(scores_);
    FenceProducts();
#pragma unroll
    for (int depth = 0; depth < kHeadDim; depth += 16) {
      const int half = depth / kColumns, column = depth % kColumns;
      MultiplyRows(scores_, MatrixDescriptor(shared_.queries[index_][half] + column, 0),
                   MatrixDescriptor(shared_.keys[stage][half] + column, 0), depth > 0);
    }
    CommitProducts();
  }

  // Starts out += probabilities * values of a stage.
  __device__ void Accumulate(int stage) {
    PinRegisters(out_);
    FenceProducts();
#pragma unroll
    for (int step = 0; step < kTileKeys / 16; ++step) {
      MultiplyAdd(out_, probabilities_[step],
                  MatrixDescriptor(shared_.values[stage][0] + 16 * step * kColumns,
                                   kTileKeys * kColumns * kElementBytes));
    }
    CommitProducts();
  }

  // Puts -inf where a key is hidden from a query.
  __device__ void Hide(const KeyWalk<kTileKeys>& walk) {
    const TileKeys& keys = walk.keys();
    const int last = min(keys.count - 1, index_ * kRowsOfConsumer + keys.diagonal);
    if (walk.first() + kTileKeys - 1 <= last) {
      return;
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = index_ * kRowsOfConsumer + row_ + 8 * h;
      const int row_last =
          min(keys.count - 1, row + keys.diagonal) - walk.first() - 2 * (lane_ % 4);
#pragma unroll
      for (int i = 0; i < kTileKeys / 2; ++i) {
        if ((i / 2 & 1) == h && 8 * (i / 4) + (i & 1) > row_last) {
          scores_[i] = kMinusInfinity;
        }
      }
    }
  }

  // Scores to unnormalised probabilities; `keep` is what the sums so far are multiplied with.
  __device__ void Softmax(float (&keep)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float most = most_[h];
#pragma unroll
      for (int i = 0; i < kTileKeys / 2; ++i) {
        if ((i / 2 & 1) == h) {
          most = fmaxf(most, scores_[i]);
        }
      }
      most = fmaxf(most, __shfl_xor_sync(0xFFFFFFFF, most, 1));
      most = fmaxf(most, __shfl_xor_sync(0xFFFFFFFF, most, 2));
      // A row that has seen no key yet keeps nothing.
      const float shift = most == kMinusInfinity ? 0 : most * arguments_.scale_log2;
      keep[h] = Exp2(most_[h] * arguments_.scale_log2 - shift);
      most_[h] = most;
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kTileKeys / 2; ++i) {
        if ((i / 2 & 1) == h) {
          scores_[i] = Exp2(fmaf(scores_[i], arguments_.scale_log2, -shift));
          sum += scores_[i];
        }
      }
      sum_[h] = fmaf(sum_[h], keep[h], sum);
    }
  }

  // An accumulator of scores is laid out as the first operand of the next product is.
  __device__ void Pack() {
#pragma unroll
    for (int step = 0; step < kTileKeys / 16; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        probabilities_[step][i] =
            PackBf16(scores_[8 * step + 2 * i], scores_[8 * step + 2 * i + 1]);
      }
    }
  }

  __device__ void Store(const Tile& tile, int batch) {
    const Results& results = arguments_.results;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float sum = sum_[h];
      sum += __shfl_xor_sync(0xFFFFFFFF, sum, 1);
      sum += __shfl_xor_sync(0xFFFFFFFF, sum, 2);
      const float factor = sum > 0 ? 1 / sum : 0;
      const int row = index_ * kRowsOfConsumer + row_ + 8 * h;
      const bool real = row < tile.count;
      if (real && lane_ % 4 == 0) {
        results
            .lse[batch * results.lse_batch_stride + (tile.out_row + row) * results.lse_row_stride +
                 tile.out_head * results.lse_head_stride] =
            sum > 0 ? fmaf(most_[h] * arguments_.scale_log2, kLn2, logf(sum)) : kMinusInfinity;
      }
      uint16_t* out = static_cast<uint16_t*>(results.out) + batch * results.out_batch_stride +
                      (tile.out_row + row) * results.out_row_stride +
                      tile.out_head * results.out_head_stride;
#pragma unroll
      for (int column = 0; column < kHeadDim; column += 32) {
        StoreColumns(out + column, column, h, factor, real);
      }
    }
  }

  // 32 columns of a row lie with four lanes, two of every eight each; after two exchanges each lane
  // has eight that are neighbours.
  __device__ void StoreColumns(uint16_t* out, int column, int h, float factor, bool real) {
    uint32_t block[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int i = 4 * (column / 8 + j) + 2 * h;
      block[j] = PackBf16(out_[i] * factor, out_[i + 1] * factor);
    }
#pragma unroll
    for (int distance = 1; distance <= 2; distance *= 2) {
      const bool upper = lane_ & distance;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if ((j & distance) == 0) {
          uint32_t& low = block[j];
          uint32_t& high = block[j + distance];
          const uint32_t got = __shfl_xor_sync(0xFFFFFFFF, upper ? low : high, distance);
          (upper ? low : high) = got;
        }
      }
    }
    if (real) {
      *reinterpret_cast<uint4*>(out + 8 * (lane_ % 4)) =
          make_uint4(block[0], block[1], block[2], block[3]);
    }
  }

  const Arguments& arguments_;
  Shared<S>& shared_;
  const int index_;
  const int lane_;
  const int row_;  // of the first half, among the 64
  float scores_[kTileKeys / 2];
  uint32_t probabilities_[kTileKeys / 16][4];
  float out_[kHeadDim / 2];
  float most_[2] = {kMinusInfinity, kMinusInfinity};
  float sum_[2] = {0, 0};
};

template <typename S>
__global__ void __launch_bounds__(S::kThreads, 1)
    ForwardKernel(const __grid_constant__ Arguments arguments) {
  extern __shared__ uint8_t raw[];
  auto& shared = *reinterpret_cast<Shared<S>*>(AlignShared(raw));
  if (threadIdx.x == 0) {
    InitBarrier(&shared.queries_full, 1);
    for (int stage = 0; stage < kStages; ++stage) {
      InitBarrier(&shared.keys_full[stage], 1);
      InitBarrier(&shared.values_full[stage], 1);
      InitBarrier(&shared.keys_empty[stage], S::kConsumerWarps);
      InitBarrier(&shared.values_empty[stage], S::kConsumerWarps);
    }
    FenceBarrierInit();
  }
  __syncthreads();
  const Tile tile = arguments.tiles[blockIdx.x];
  // The same in all lanes, and the compiler is to know.
  const int group = __shfl_sync(0xFFFFFFFF, threadIdx.x / kWarpGroup, 0);
  if (group == S::kConsumers) {
    ShrinkRegisters<S::kProducerRegisters>();
    if (threadIdx.x % kWarpGroup == 0) {
      Produce(arguments, shared, tile, blockIdx.y);
    }
  } else {
    GrowRegisters<S::kConsumerRegisters>();
    Consumer<S>(arguments, shared, group, threadIdx.x % kWarpGroup).Run(tile, blockIdx.y);
  }
}

}  // namespace

std::string TileForward(const ForwardProblem& problem, cudaStream_t stream) {
  if (problem.tile_count == 0) {
    return "";
  }
  Arguments arguments = {};
  arguments.tiles = problem.tiles;
  arguments.key_list = problem.keys;
  arguments.results = problem.results;
  arguments.scale_log2 = problem.scale * kLog2e;
  std::string error =
      MakeMaps(problem.query_views, problem.head_dim, kRowsOfConsumer, arguments.queries);
  if (error.empty()) {
    error = MakeMaps(problem.key_views, problem.head_dim, kTileKeys, arguments.keys);
  }
  if (error.empty()) {
    error = MakeMaps(problem.value_views, problem.head_dim, kTileKeys, arguments.values);
  }
  if (!error.empty()) {
    return error;
  }
  const int64_t batch = problem.query_views.front().operand.batch;
  return problem.head_dim == 128
             ? LaunchTiles<Shape<128>>(ForwardKernel<Shape<128>>, sizeof(Shared<Shape<128>>),
                                       arguments, problem.tile_count, batch, stream)
             : LaunchTiles<Shape<64>>(ForwardKernel<Shape<64>>, sizeof(Shared<Shape<64>>),
                                      arguments, problem.tile_count, batch, stream);
}

}  // namespace ringmaster::attention::kernels
