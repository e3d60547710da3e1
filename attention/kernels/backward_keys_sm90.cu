// dK and dV of attention over tiles on Hopper: a block holds 128 keys and walks over the queries
// that see them. The scores are made transposed, keys along the rows, so that probabilities and
// slopes lie in registers as the next products want them. Where the order of sums may differ from
// run to run, dQ is made here too, five products in all: the slopes of all keys of the block meet
// in shared memory, and each consumer makes its share of the columns (FlashAttention-3,
// section 3.3).
#include <algorithm>

#include "attention/kernels/backward_sm90.cuh"

namespace ringmaster::attention::kernels {
namespace {

using namespace sm90;  // NOLINT: this file is about its instructions

struct Arguments : BackwardArguments, TileArguments<KeyTile> {
  int64_t key_steps[kMaxViews];
  Gradient dk[kMaxViews];
  Gradient dv[kMaxViews];
  Gradient dq[kMaxViews];
  bool store;
  const TileKeys* query_list;
};

// Queries of a step.
constexpr int kQueries = 64;

// The queries that see some key of a tile, from the start of a step on.
struct SeeingQueries {
  __device__ int First(const TileKeys& queries) const {
    return max(0, -queries.diagonal) / kQueries * kQueries;
  }
  __device__ int End(const TileKeys& queries) const { return queries.count; }
};
using QueryWalk = Walk<kQueries, SeeingQueries>;

// Barrier of the consumers; lower ones are their turns'.
constexpr int kSlopesBarrier = 8;

template <int kHeadDim, bool kWithQueries>
struct KeyKernel {
  static constexpr int kConsumers = kTileKeys / kRowsOfConsumer;
  static constexpr int kConsumerRegisters = 240;

  struct Shared {
    SharedRows<kTileKeys, kHeadDim> keys[kStages];
    SharedRows<kTileKeys, kHeadDim> values[kStages];
    SharedRows<kQueries, kHeadDim> queries[kStages];
    SharedRows<kQueries, kHeadDim> douts[kStages];
    SharedRows<kTileKeys, kQueries> slopes[kWithQueries ? kStages : 1];
    float lse[kStages][kQueries];
    float delta[kStages][kQueries];
    TileSlots<KeyTile> tiles;
    Pipeline pipeline;

    __device__ void Init() {
      tiles.Init(kConsumers);
      pipeline.Init(1 + 32, kConsumers * kWarpsOfConsumer);
    }
  };

  class Producer;
  class Consumer;
};

// The first lane starts the loads of boxes, all bring the numbers of the queries.
template <int kHeadDim, bool kWithQueries>
class KeyKernel<kHeadDim, kWithQueries>::Producer {
 public:
  __device__ Producer(const Arguments& arguments, Shared& shared, int lane)
      : arguments_(arguments), shared_(shared), lane_(lane) {}

  __device__ void LoadOwn(const KeyTile& tile, int batch, int slot) {
    uint64_t* full = &shared_.tiles.pipeline.full[slot];
    ArriveExpecting(full, sizeof(shared_.keys[slot]) + sizeof(shared_.values[slot]));
    LoadRows(shared_.keys[slot], arguments_.keys, tile.rows, 0, batch, full);
    LoadRows(shared_.values[slot], arguments_.values, tile.rows, 0, batch, full);
  }

  __device__ void LoadSeen(const KeyTile& tile, int batch) {
    for (QueryWalk walk(arguments_.query_list, tile.queries_begin, tile.queries_end, {});
         !walk.done(); walk.Next(), stage_.Next()) {
      const int at = stage_.index();
      const TileRows& rows = walk.span().rows;
      uint64_t* full = &shared_.pipeline.full[at];
      shared_.pipeline.AwaitEmpty(stage_);
      if (lane_ == 0) {
        ArriveExpecting(full, sizeof(shared_.queries[at]) + sizeof(shared_.douts[at]));
        LoadRows(shared_.queries[at], arguments_.queries, rows, walk.first(), batch, full);
        LoadRows(shared_.douts[at], arguments_.douts, rows, walk.first(), batch, full);
      }
      for (int i = lane_; i < kQueries; i += 32) {
        const QueryNumbers numbers =
            NumbersOf(arguments_, rows, walk.first() + i, walk.span().count, batch);
        shared_.lse[at][i] = numbers.lse;
        shared_.delta[at][i] = numbers.delta;
      }
      Arrive(full);
    }
  }

 private:
  const Arguments& arguments_;
  Shared& shared_;
  const int lane_;
  Stage stage_;
};

template <int kHeadDim, bool kWithQueries>
class KeyKernel<kHeadDim, kWithQueries>::Consumer {
 public:
  __device__ Consumer(const Arguments& arguments, Shared& shared, int group)
      : arguments_(arguments), shared_(shared), group_(group) {
    group_.StartTurns();
  }

  __device__ void Run(const KeyTile& tile, int batch, int slot) {
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) {
      dk_[i] = dv_[i] = 0;
    }
    const int first_row = group_.index * kRowsOfConsumer;
    QueryWalk walk(arguments_.query_list, tile.queries_begin, tile.queries_end, {});
    const bool seen = !walk.done();
    for (; !walk.done(); walk.Next(), stage_.Next()) {
      const int at = stage_.index();
      shared_.pipeline.AwaitFull(stage_);
      group_.AwaitTurn();
      Multiply(scores_, shared_.keys[slot], shared_.queries[at], first_row);
      Multiply(slopes_, shared_.values[slot], shared_.douts[at], first_row);
      group_.GiveTurn();
      AwaitProducts<1>();
      PinRegisters(scores_);
      Probabilities(walk, tile.count, at);
      Accumulate(dv_, probabilities_, shared_.douts[at]);
      AwaitProducts<1>();
      PinRegisters(slopes_);
      Slopes(at);
      if constexpr (kWithQueries) {
        StoreRows(packed_, first_row, group_.lane, shared_.slopes[at]);
      }
      Accumulate(dk_, packed_, shared_.queries[at]);
      if constexpr (kWithQueries) {
        // Who is here has read the slopes before last, whose place the next ones take.
        SyncNamed(kSlopesBarrier, kConsumers * kWarpGroup);
        MultiplyTransposed<kTileKeys, kShare>(dq_, shared_.slopes[at], shared_.keys[slot],
                                              group_.index * kShare);
      }
      // Not left to run under the next scores: there are no registers for both.
      AwaitProducts<0>();
      PinRegisters(dv_);
      PinRegisters(dk_);
      group_.Release(shared_.pipeline, at);
      if constexpr (kWithQueries) {
        PinRegisters(dq_);
        AddQueries(walk, batch);
      }
    }
    if (seen || arguments_.store) {
      AddRows<kHeadDim>(arguments_.dk, arguments_.key_steps, tile, batch, group_, dk_,
                        arguments_.scale, arguments_.store);
      AddRows<kHeadDim>(arguments_.dv, arguments_.key_steps, tile, batch, group_, dv_, 1,
                        arguments_.store);
    }
    group_.Release(shared_.tiles.pipeline, slot);
  }

 private:
  __device__ void Probabilities(const QueryWalk& walk, int keys, int stage) {
    const TileKeys& queries = walk.span();
    const float scale_log2 = arguments_.scale * kLog2e;
#pragma unroll
    for (int i = 0; i < kQueries / 2; i += 4) {
      const float2 lse = *reinterpret_cast<const float2*>(&shared_.lse[stage][group_.Column(i)]);
      scores_[i] = Exp2(fmaf(scores_[i], scale_log2, -lse.x));
      scores_[i + 1] = Exp2(fmaf(scores_[i + 1], scale_log2, -lse.y));
      scores_[i + 2] = Exp2(fmaf(scores_[i + 2], scale_log2, -lse.x));
      scores_[i + 3] = Exp2(fmaf(scores_[i + 3], scale_log2, -lse.y));
    }
    // Queries beyond the span have an infinite denominator; keys beyond the tile are no part of dQ.
    const int last_row = (group_.index + 1) * kRowsOfConsumer - 1;
    if (last_row > walk.first() + queries.diagonal || last_row >= keys) {
#pragma unroll
      for (int i = 0; i < kQueries / 2; ++i) {
        const int row = group_.row + 8 * (i / 2 & 1);
        if (row > walk.first() + group_.Column(i) + queries.diagonal || row >= keys) {
          scores_[i] = 0;
        }
      }
    }
    Pack(scores_, probabilities_);
  }

  // dS = P * (dP - delta), rounded.
  __device__ void Slopes(int stage) {
#pragma unroll
    for (int i = 0; i < kQueries / 2; i += 4) {
      const float2 delta =
          *reinterpret_cast<const float2*>(&shared_.delta[stage][group_.Column(i)]);
      packed_[i / 8][i / 2 % 4] = PackBf16(scores_[i] * (slopes_[i] - delta.x),
                                           scores_[i + 1] * (slopes_[i + 1] - delta.y));
      packed_[i / 8][i / 2 % 4 + 1] = PackBf16(scores_[i + 2] * (slopes_[i + 2] - delta.x),
                                               scores_[i + 3] * (slopes_[i + 3] - delta.y));
    }
  }

  // Adds this consumer's columns of dQ; blocks that hold other keys add to the same rows.
  __device__ void AddQueries(const QueryWalk& walk, int batch) {
    const TileKeys& queries = walk.span();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = walk.first() + group_.row - group_.index * kRowsOfConsumer + 8 * h;
      const int64_t token = TokenOf(queries.rows, arguments_.query_steps, row);
      float* out = At(arguments_.dq[queries.rows.view], batch, token, queries.rows.head);
      AddRow<kShare>(out + group_.index * kShare, dq_, h, group_.lane, arguments_.scale,
                     row < queries.count);
    }
  }

  static constexpr int kShare = kHeadDim / kConsumers;

  const Arguments& arguments_;
  Shared& shared_;
  const ConsumerGroup<kConsumers> group_;
  Stage stage_;
  float dq_[kShare / 2];
  float scores_[kQueries / 2];
  float slopes_[kQueries / 2];
  uint32_t probabilities_[kQueries / 16][4];
  uint32_t packed_[kQueries / 16][4];
  float dk_[kHeadDim / 2];
  float dv_[kHeadDim / 2];
};

template <int kHeadDim>
using WithQueries = KeyKernel<kHeadDim, true>;
template <int kHeadDim>
using WithoutQueries = KeyKernel<kHeadDim, false>;

}  // namespace

std::string BackwardKeys(const BackwardProblem& problem, bool with_queries, cudaStream_t stream) {
  if (problem.key_tile_count == 0) {
    return "";
  }
  Arguments arguments = {};
  arguments.tiles = problem.key_tiles;
  arguments.tile_count = problem.key_tile_count;
  arguments.batches = static_cast<unsigned>(problem.query_views.front().operand.batch);
  arguments.taken = problem.taken;
  arguments.query_list = problem.queries;
  arguments.store = problem.store_keys;
  for (size_t i = 0; i < problem.key_views.size(); ++i) {
    arguments.key_steps[i] = problem.key_views[i].step;
    arguments.dk[i] = problem.dk[i];
    arguments.dv[i] = problem.dv[i];
  }
  std::copy(problem.dq.begin(), problem.dq.end(), arguments.dq);
  const std::string error = Prepare(problem, kQueries, kTileKeys, &arguments);
  if (!error.empty()) {
    return error;
  }
  return with_queries ? LaunchTiles<WithQueries>(problem.head_dim, arguments, stream)
                      : LaunchTiles<WithoutQueries>(problem.head_dim, arguments, stream);
}

std::string TileBackward(const BackwardProblem& problem, cudaStream_t stream) {
  if (!problem.deterministic) {
    return BackwardKeys(problem, /*with_queries=*/true, stream);
  }
  const std::string error = BackwardKeys(problem, /*with_queries=*/false, stream);
  return error.empty() ? BackwardQueries(problem, stream) : error;
}

}  // namespace ringmaster::attention::kernels
