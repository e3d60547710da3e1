// dK and dV of attention over tiles on Hopper: a block holds 128 keys and walks over the queries
// that see them. The scores are made transposed, keys along the rows, so that probabilities and
// slopes lie in registers as the next products want them.
#include "attention/kernels/backward_sm90.cuh"

namespace ringmaster::attention::kernels {
namespace {

using namespace sm90;  // NOLINT: this file is about its instructions

struct Arguments {
  ViewMaps queries[kMaxViews];
  ViewMaps douts[kMaxViews];
  ViewMaps keys[kMaxViews];
  ViewMaps values[kMaxViews];
  int64_t query_steps[kMaxViews];
  int64_t key_steps[kMaxViews];
  Gradient dk[kMaxViews];
  Gradient dv[kMaxViews];
  const KeyTile* tiles;
  const TileKeys* query_list;
  PerQuery lse;
  PerQuery delta;
  float scale;
};

template <int kDim>
struct Shape {
  static constexpr int kHeadDim = kDim;
  static constexpr int kHalves = kDim / kColumns;
  // Queries of a step.
  static constexpr int kQueries = 64;
  static constexpr int kConsumers = 2;
  static constexpr int kThreads = (kConsumers + 1) * kWarpGroup;
  static constexpr int kConsumerWarps = kConsumers * kWarpGroup / 32;
};

template <typename S>
struct Shared {
  alignas(1024) uint16_t keys[S::kHalves][kTileKeys * kColumns];
  alignas(1024) uint16_t values[S::kHalves][kTileKeys * kColumns];
  alignas(1024) uint16_t queries[kStages][S::kHalves][S::kQueries * kColumns];
  alignas(1024) uint16_t douts[kStages][S::kHalves][S::kQueries * kColumns];
  float lse[kStages][S::kQueries];
  float delta[kStages][S::kQueries];
  uint64_t keys_full;
  uint64_t full[kStages], empty[kStages];
};

// The blocks of queries of a tile, one after the other.
template <int kQueries>
class QueryWalk {
 public:
  __device__ QueryWalk(const TileKeys* list, const KeyTile& tile)
      : at_(list + tile.queries_begin), end_(list + tile.queries_end) {
    Load();
  }

  __device__ bool done() const { return at_ == end_; }
  __device__ const TileKeys& queries() const { return queries_; }
  __device__ int first() const { return first_; }

  __device__ void Next() {
    first_ += kQueries;
    if (first_ >= queries_.count) {
      ++at_;
      Load();
    }
  }

 private:
  __device__ void Load() {
    for (; at_ != end_; ++at_) {
      queries_ = *at_;
      // The first query that sees the tile's first key.
      first_ = max(0, -queries_.diagonal) / kQueries * kQueries;
      if (first_ < queries_.count) {
        return;
      }
    }
  }

  const TileKeys* at_;
  const TileKeys* end_;
  TileKeys queries_;
  int first_ = 0;
};

// One warp: its first lane starts the loads of boxes, all bring the numbers of the queries.
template <typename S>
__device__ void Produce(const Arguments& arguments, Shared<S>& shared, const KeyTile& tile,
                        int batch, int lane) {
  constexpr int kBytes = S::kQueries * S::kHeadDim * kElementBytes;
  if (lane == 0) {
    ArriveExpecting(&shared.keys_full, 2 * kTileKeys * S::kHeadDim * kElementBytes);
    LoadRows<kTileKeys>(shared.keys, arguments.keys, tile.rows, 0, batch, &shared.keys_full);
    LoadRows<kTileKeys>(shared.values, arguments.values, tile.rows, 0, batch, &shared.keys_full);
  }
  Ring ring;
  for (QueryWalk<S::kQueries> walk(arguments.query_list, tile); !walk.done();
       walk.Next(), ring.Next()) {
    const int stage = ring.stage;
    const TileRows& rows = walk.queries().rows;
    WaitFor(&shared.empty[stage], ring.phase ^ 1);
    if (lane == 0) {
      ArriveExpecting(&shared.full[stage], 2 * kBytes);
      LoadRows<S::kQueries>(shared.queries[stage], arguments.queries, rows, walk.first(), batch,
                            &shared.full[stage]);
      LoadRows<S::kQueries>(shared.douts[stage], arguments.douts, rows, walk.first(), batch,
                            &shared.full[stage]);
    }
    for (int i = lane; i < S::kQueries; i += 32) {
      const int row = walk.first() + i;
      const bool real = row < walk.queries().count;
      const int64_t token = TokenOf(rows, arguments.query_steps, row);
      shared.lse[stage][i] = Lse2(real ? At(arguments.lse, batch, token, rows.head) : INFINITY);
      shared.delta[stage][i] = real ? At(arguments.delta, batch, token, rows.head) : 0;
    }
    Arrive(&shared.full[stage]);
  }
}

template <typename S>
class Consumer {
 public:
  __device__ Consumer(const Arguments& arguments, Shared<S>& shared, const KeyTile& tile, int batch,
                      int index, int thread)
      : arguments_(arguments),
        shared_(shared),
        tile_(tile),
        batch_(batch),
        index_(index),
        lane_(thread % 32),
        row_(index * kRowsOfConsumer + 16 * (thread / 32) + thread % 32 / 4) {
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) {
      dk_[i] = dv_[i] = 0;
    }
  }

  __device__ void Run() {
    QueryWalk<kQueries> walk(arguments_.query_list, tile_);
    if (walk.done()) {
      return;
    }
    if (index_ == S::kConsumers - 1) {
      GiveTurn();
    }
    WaitFor(&shared_.keys_full, 0);
    Ring ring;
    for (; !walk.done(); walk.Next(), ring.Next()) {
      const int stage = ring.stage;
      WaitFor(&shared_.full[stage], ring.phase);
      AwaitTurn();
      Multiply(scores_, shared_.keys, shared_.queries[stage]);
      Multiply(slopes_, shared_.values, shared_.douts[stage]);
      GiveTurn();
      AwaitProducts<1>();
      PinRegisters(scores_);
      Probabilities(walk, stage);
      Accumulate(dv_, probabilities_, shared_.douts[stage]);
      AwaitProducts<1>();
      PinRegisters(slopes_);
      Slopes(stage);
      Accumulate(dk_, packed_, shared_.queries[stage]);
      // Not left to run under the next scores: there are no registers for both.
      AwaitProducts<0>();
      PinRegisters(dv_);
      PinRegisters(dk_);
      Release(&shared_.empty[stage]);
    }
    Store(arguments_.dk, dk_, arguments_.scale);
    Store(arguments_.dv, dv_, 1);
  }

 private:
  static constexpr int kHeadDim = S::kHeadDim;
  static constexpr int kQueries = S::kQueries;

  __device__ void AwaitTurn() { SyncNamed(1 + index_, 2 * kWarpGroup); }
  __device__ void GiveTurn() { ArriveNamed(1 + (index_ + 1) % S::kConsumers, 2 * kWarpGroup); }
  __device__ void Release(uint64_t* barrier) {
    if (lane_ == 0) {
      Arrive(barrier);
    }
  }

  // Starts d = a * b^T of this group's rows of a.
  __device__ void Multiply(float (&d)[kQueries / 2],
                           const uint16_t (&a)[S::kHalves][kTileKeys * kColumns],
                           const uint16_t (&b)[S::kHalves][kQueries * kColumns]) {
    PinRegisters(d);
    FenceProducts();
#pragma unroll
    for (int depth = 0; depth < kHeadDim; depth += 16) {
      const int half = depth / kColumns, column = depth % kColumns;
      MultiplyRows(d, MatrixDescriptor(a[half] + index_ * kRowsOfConsumer * kColumns + column, 0),
                   MatrixDescriptor(b[half] + column, 0), depth > 0);
    }
    CommitProducts();
  }

  // Starts d += a * b, a in registers, of one row of b for each query.
  __device__ void Accumulate(float (&d)[kHeadDim / 2], const uint32_t (&a)[kQueries / 16][4],
                             const uint16_t (&b)[S::kHalves][kQueries * kColumns]) {
    PinRegisters(d);
    FenceProducts();
#pragma unroll
    for (int step = 0; step < kQueries / 16; ++step) {
      MultiplyAdd(
          d, a[step],
          MatrixDescriptor(b[0] + 16 * step * kColumns, kQueries * kColumns * kElementBytes));
    }
    CommitProducts();
  }

  // The query of accumulator register i of a step.
  __device__ int Column(int i) const { return 8 * (i / 4) + 2 * (lane_ % 4) + (i & 1); }

  __device__ void Probabilities(const QueryWalk<kQueries>& walk, int stage) {
    const TileKeys& queries = walk.queries();
    const float scale_log2 = arguments_.scale * kLog2e;
#pragma unroll
    for (int i = 0; i < kQueries / 2; i += 4) {
      const float2 lse = *reinterpret_cast<const float2*>(&shared_.lse[stage][Column(i)]);
      scores_[i] = Exp2(fmaf(scores_[i], scale_log2, -lse.x));
      scores_[i + 1] = Exp2(fmaf(scores_[i + 1], scale_log2, -lse.y));
      scores_[i + 2] = Exp2(fmaf(scores_[i + 2], scale_log2, -lse.x));
      scores_[i + 3] = Exp2(fmaf(scores_[i + 3], scale_log2, -lse.y));
    }
    // Queries beyond the span have an infinite denominator.
    const int last_row = (index_ + 1) * kRowsOfConsumer - 1;
    if (last_row > walk.first() + queries.diagonal) {
#pragma unroll
      for (int i = 0; i < kQueries / 2; ++i) {
        if (row_ + 8 * (i / 2 & 1) > walk.first() + Column(i) + queries.diagonal) {
          scores_[i] = 0;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kQueries / 2; i += 2) {
      probabilities_[i / 8][i / 2 % 4] = PackBf16(scores_[i], scores_[i + 1]);
    }
  }

  // dS = P * (dP - delta), rounded.
  __device__ void Slopes(int stage) {
#pragma unroll
    for (int i = 0; i < kQueries / 2; i += 4) {
      const float2 delta = *reinterpret_cast<const float2*>(&shared_.delta[stage][Column(i)]);
      packed_[i / 8][i / 2 % 4] = PackBf16(scores_[i] * (slopes_[i] - delta.x),
                                           scores_[i + 1] * (slopes_[i + 1] - delta.y));
      packed_[i / 8][i / 2 % 4 + 1] = PackBf16(scores_[i + 2] * (slopes_[i + 2] - delta.x),
                                               scores_[i + 3] * (slopes_[i + 3] - delta.y));
    }
  }

  __device__ void Store(const Gradient* gradients, const float (&values)[kHeadDim / 2],
                        float factor) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = row_ + 8 * h;
      const int64_t token = TokenOf(tile_.rows, arguments_.key_steps, row);
      float* out = RowOf(gradients[tile_.rows.view], batch_, token, tile_.rows.head);
      AddRow<kHeadDim>(out, values, h, lane_, factor, row < tile_.count);
    }
  }

  const Arguments& arguments_;
  Shared<S>& shared_;
  const KeyTile& tile_;
  const int batch_;
  const int index_;
  const int lane_;
  const int row_;
  float scores_[kQueries / 2];
  float slopes_[kQueries / 2];
  uint32_t probabilities_[kQueries / 16][4];
  uint32_t packed_[kQueries / 16][4];
  float dk_[kHeadDim / 2];
  float dv_[kHeadDim / 2];
};

template <typename S>
__global__ void __launch_bounds__(S::kThreads, 1)
    KeyKernel(const __grid_constant__ Arguments arguments) {
  extern __shared__ uint8_t raw[];
  auto& shared = *reinterpret_cast<Shared<S>*>(AlignShared(raw));
  if (threadIdx.x == 0) {
    InitBarrier(&shared.keys_full, 1);
    for (int stage = 0; stage < kStages; ++stage) {
      InitBarrier(&shared.full[stage], 1 + 32);
      InitBarrier(&shared.empty[stage], S::kConsumerWarps);
    }
    FenceBarrierInit();
  }
  __syncthreads();
  const KeyTile tile = arguments.tiles[blockIdx.x];
  const int group = __shfl_sync(0xFFFFFFFF, threadIdx.x / kWarpGroup, 0);
  if (group == S::kConsumers) {
    ShrinkRegisters<24>();
    if (threadIdx.x % kWarpGroup < 32) {
      Produce(arguments, shared, tile, blockIdx.y, threadIdx.x % 32);
    }
  } else {
    GrowRegisters<240>();
    Consumer<S>(arguments, shared, tile, blockIdx.y, group, threadIdx.x % kWarpGroup).Run();
  }
}

}  // namespace

std::string BackwardKeys(const BackwardProblem& problem, cudaStream_t stream) {
  if (problem.key_tile_count == 0) {
    return "";
  }
  Arguments arguments = {};
  arguments.tiles = problem.key_tiles;
  arguments.query_list = problem.queries;
  arguments.lse = problem.lse;
  arguments.delta = problem.delta;
  arguments.scale = problem.scale;
  for (size_t i = 0; i < problem.query_views.size(); ++i) {
    arguments.query_steps[i] = problem.query_views[i].step;
  }
  for (size_t i = 0; i < problem.key_views.size(); ++i) {
    arguments.key_steps[i] = problem.key_views[i].step;
    arguments.dk[i] = problem.dk[i];
    arguments.dv[i] = problem.dv[i];
  }
  const int queries = problem.head_dim == 128 ? Shape<128>::kQueries : Shape<64>::kQueries;
  const std::string error = MakeBackwardMaps(problem, queries, kTileKeys, &arguments);
  if (!error.empty()) {
    return error;
  }
  const int64_t batch = problem.query_views.front().operand.batch;
  return problem.head_dim == 128
             ? LaunchTiles<Shape<128>>(KeyKernel<Shape<128>>, sizeof(Shared<Shape<128>>), arguments,
                                       problem.key_tile_count, batch, stream)
             : LaunchTiles<Shape<64>>(KeyKernel<Shape<64>>, sizeof(Shared<Shape<64>>), arguments,
                                      problem.key_tile_count, batch, stream);
}

std::string TileBackward(const BackwardProblem& problem, cudaStream_t stream) {
  const std::string error = BackwardKeys(problem, stream);
  return error.empty() ? BackwardQueries(problem, stream) : error;
}

}  // namespace ringmaster::attention::kernels
