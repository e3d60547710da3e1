// dQ of attention over tiles on Hopper: a block holds 128 queries and walks over the keys that they
// see, as the forward pass does. Scores and dP are made anew in every step, so that dK and dV have
// a kernel of their own and no sum is shared between blocks: nothing depends on who comes first.
#include "attention/kernels/backward_sm90.cuh"

namespace ringmaster::attention::kernels {
namespace {

using namespace sm90;  // NOLINT: this file is about its instructions

struct Arguments {
  ViewMaps queries[kMaxViews];
  ViewMaps douts[kMaxViews];
  ViewMaps keys[kMaxViews];
  ViewMaps values[kMaxViews];
  int64_t steps[kMaxViews];  // of the query views
  Gradient gradients[kMaxViews];
  const Tile* tiles;
  const TileKeys* key_list;
  PerQuery lse;
  PerQuery delta;
  float scale;
};

template <int kDim>
struct Shape {
  static constexpr int kHeadDim = kDim;
  static constexpr int kHalves = kDim / kColumns;
  // Keys of a step: as many as the registers of scores, dP and sums allow.
  static constexpr int kKeys = kDim == 64 ? 128 : 64;
  static constexpr int kConsumers = 2;
  static constexpr int kRows = kConsumers * kRowsOfConsumer;
  static constexpr int kThreads = (kConsumers + 1) * kWarpGroup;
  static constexpr int kConsumerWarps = kConsumers * kWarpGroup / 32;
};

template <typename S>
struct Shared {
  alignas(1024) uint16_t queries[S::kConsumers][S::kHalves][kRowsOfConsumer * kColumns];
  alignas(1024) uint16_t douts[S::kConsumers][S::kHalves][kRowsOfConsumer * kColumns];
  alignas(1024) uint16_t keys[kStages][S::kHalves][S::kKeys * kColumns];
  alignas(1024) uint16_t values[kStages][S::kHalves][S::kKeys * kColumns];
  uint64_t queries_full;
  uint64_t keys_full[kStages], keys_empty[kStages];
  uint64_t values_full[kStages], values_empty[kStages];
};

template <typename S>
__device__ void Produce(const Arguments& arguments, Shared<S>& shared, const Tile& tile,
                        int first_row, int batch) {
  constexpr int kKeyBytes = S::kKeys * S::kHeadDim * kElementBytes;
  ArriveExpecting(&shared.queries_full, 2 * S::kRows * S::kHeadDim * kElementBytes);
  for (int consumer = 0; consumer < S::kConsumers; ++consumer) {
    const int row = first_row + consumer * kRowsOfConsumer;
    LoadRows<kRowsOfConsumer>(shared.queries[consumer], arguments.queries, tile.rows, row, batch,
                              &shared.queries_full);
    LoadRows<kRowsOfConsumer>(shared.douts[consumer], arguments.douts, tile.rows, row, batch,
                              &shared.queries_full);
  }
  Ring ring;
  for (KeyWalk<S::kKeys> walk(arguments.key_list, tile); !walk.done(); walk.Next(), ring.Next()) {
    const int stage = ring.stage;
    WaitFor(&shared.keys_empty[stage], ring.phase ^ 1);
    ArriveExpecting(&shared.keys_full[stage], kKeyBytes);
    LoadRows<S::kKeys>(shared.keys[stage], arguments.keys, walk.keys().rows, walk.first(), batch,
                       &shared.keys_full[stage]);
    WaitFor(&shared.values_empty[stage], ring.phase ^ 1);
    ArriveExpecting(&shared.values_full[stage], kKeyBytes);
    LoadRows<S::kKeys>(shared.values[stage], arguments.values, walk.keys().rows, walk.first(),
                       batch, &shared.values_full[stage]);
  }
}

template <typename S>
class Consumer {
 public:
  __device__ Consumer(const Arguments& arguments, Shared<S>& shared, const Tile& tile, int batch,
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
      gradient_[i] = 0;
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t token = TokenOf(tile.rows, arguments.steps, row_ + 8 * h);
      const bool real = row_ + 8 * h < tile.count;
      lse_[h] = Lse2(real ? At(arguments.lse, batch, token, tile.rows.head) : kMinusInfinity);
      delta_[h] = real ? At(arguments.delta, batch, token, tile.rows.head) : 0;
    }
  }

  __device__ void Run() {
    KeyWalk<kKeys> walk(arguments_.key_list, tile_);
    if (walk.done()) {
      return;
    }
    if (index_ == S::kConsumers - 1) {
      GiveTurn();
    }
    WaitFor(&shared_.queries_full, 0);
    Ring ring;
    int before = -1;  // the stage whose keys the products under way read
    for (; !walk.done(); walk.Next(), ring.Next()) {
      const int stage = ring.stage;
      WaitFor(&shared_.keys_full[stage], ring.phase);
      AwaitTurn();
      Multiply(scores_, shared_.queries[index_], shared_.keys[stage]);
      WaitFor(&shared_.values_full[stage], ring.phase);
      Multiply(slopes_, shared_.douts[index_], shared_.values[stage]);
      GiveTurn();
      AwaitProducts<1>();
      PinRegisters(scores_);
      PinRegisters(gradient_);
      if (before >= 0) {
        Release(&shared_.keys_empty[before]);
      }
      before = stage;
      Probabilities(walk);
      AwaitProducts<0>();
      PinRegisters(slopes_);
      Release(&shared_.values_empty[stage]);
      Slopes();
      Accumulate(stage);
    }
    AwaitProducts<0>();
    PinRegisters(gradient_);
    Store();
  }

 private:
  static constexpr int kHeadDim = S::kHeadDim;
  static constexpr int kKeys = S::kKeys;

  __device__ void AwaitTurn() { SyncNamed(1 + index_, 2 * kWarpGroup); }
  __device__ void GiveTurn() { ArriveNamed(1 + (index_ + 1) % S::kConsumers, 2 * kWarpGroup); }
  __device__ void Release(uint64_t* barrier) {
    if (lane_ == 0) {
      Arrive(barrier);
    }
  }

  // Starts d = a * b^T.
  __device__ void Multiply(float (&d)[kKeys / 2],
                           const uint16_t (&a)[S::kHalves][kRowsOfConsumer * kColumns],
                           const uint16_t (&b)[S::kHalves][kKeys * kColumns]) {
    PinRegisters(d);
    FenceProducts();
#pragma unroll
    for (int depth = 0; depth < kHeadDim; depth += 16) {
      const int half = depth / kColumns, column = depth % kColumns;
      MultiplyRows(d, MatrixDescriptor(a[half] + column, 0), MatrixDescriptor(b[half] + column, 0),
                   depth > 0);
    }
    CommitProducts();
  }

  // Scores to probabilities of the softmax of all keys; 0 where a key is hidden.
  __device__ void Probabilities(const KeyWalk<kKeys>& walk) {
    const TileKeys& keys = walk.keys();
    const float scale_log2 = arguments_.scale * kLog2e;
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) {
      scores_[i] = Exp2(fmaf(scores_[i], scale_log2, -lse_[i / 2 & 1]));
    }
    const int last = min(keys.count - 1, index_ * kRowsOfConsumer + keys.diagonal);
    if (walk.first() + kKeys - 1 <= last) {
      return;
    }
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) {
      const int row = row_ + 8 * (i / 2 & 1);
      const int key = walk.first() + 2 * (lane_ % 4) + 8 * (i / 4) + (i & 1);
      if (key > min(keys.count - 1, row + keys.diagonal)) {
        scores_[i] = 0;
      }
    }
  }

  // dS = P * (dP - delta), rounded.
  __device__ void Slopes() {
#pragma unroll
    for (int i = 0; i < kKeys / 2; i += 2) {
      const float delta = delta_[i / 2 & 1];
      packed_[i / 8][i / 2 % 4] =
          PackBf16(scores_[i] * (slopes_[i] - delta), scores_[i + 1] * (slopes_[i + 1] - delta));
    }
  }

  // Starts gradient += dS * K of a stage.
  __device__ void Accumulate(int stage) {
    PinRegisters(gradient_);
    FenceProducts();
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
      MultiplyAdd(gradient_, packed_[step],
                  MatrixDescriptor(shared_.keys[stage][0] + 16 * step * kColumns,
                                   kKeys * kColumns * kElementBytes));
    }
    CommitProducts();
  }

  __device__ void Store() {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = row_ + 8 * h;
      const int64_t token = TokenOf(tile_.rows, arguments_.steps, row);
      float* out = RowOf(arguments_.gradients[tile_.rows.view], batch_, token, tile_.rows.head);
      AddRow<kHeadDim>(out, gradient_, h, lane_, arguments_.scale, row < tile_.count);
    }
  }

  const Arguments& arguments_;
  Shared<S>& shared_;
  const Tile& tile_;
  const int batch_;
  const int index_;
  const int lane_;
  const int row_;
  float lse_[2];
  float delta_[2];
  float scores_[kKeys / 2];
  float slopes_[kKeys / 2];
  uint32_t packed_[kKeys / 16][4];
  float gradient_[kHeadDim / 2];
};

template <typename S>
__global__ void __launch_bounds__(S::kThreads, 1)
    QueryKernel(const __grid_constant__ Arguments arguments) {
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
  const int group = __shfl_sync(0xFFFFFFFF, threadIdx.x / kWarpGroup, 0);
  if (group == S::kConsumers) {
    ShrinkRegisters<24>();
    if (threadIdx.x % kWarpGroup == 0) {
      Produce(arguments, shared, tile, 0, blockIdx.y);
    }
  } else {
    GrowRegisters<240>();
    Consumer<S>(arguments, shared, tile, blockIdx.y, group, threadIdx.x % kWarpGroup).Run();
  }
}

}  // namespace

std::string BackwardQueries(const BackwardProblem& problem, cudaStream_t stream) {
  if (problem.tile_count == 0) {
    return "";
  }
  Arguments arguments = {};
  arguments.tiles = problem.tiles;
  arguments.key_list = problem.keys;
  arguments.lse = problem.lse;
  arguments.delta = problem.delta;
  arguments.scale = problem.scale;
  for (size_t i = 0; i < problem.query_views.size(); ++i) {
    arguments.steps[i] = problem.query_views[i].step;
    arguments.gradients[i] = problem.dq[i];
  }
  const int keys = problem.head_dim == 128 ? Shape<128>::kKeys : Shape<64>::kKeys;
  const std::string error = MakeBackwardMaps(problem, kRowsOfConsumer, keys, &arguments);
  if (!error.empty()) {
    return error;
  }
  const int64_t batch = problem.query_views.front().operand.batch;
  return problem.head_dim == 128
             ? LaunchTiles<Shape<128>>(QueryKernel<Shape<128>>, sizeof(Shared<Shape<128>>),
                                       arguments, problem.tile_count, batch, stream)
             : LaunchTiles<Shape<64>>(QueryKernel<Shape<64>>, sizeof(Shared<Shape<64>>), arguments,
                                      problem.tile_count, batch, stream);
}

}  // namespace ringmaster::attention::kernels
