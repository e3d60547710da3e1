// dK and dV of attention over tiles on Hopper: a block holds 128 keys and walks over the queries
// that see them. The scores are made transposed, keys along the rows, so that probabilities and
// slopes lie in registers as the next products want them.
#include "attention/kernels/backward_sm90.cuh"

namespace ringmaster::attention::kernels {
namespace {

using namespace sm90;  // NOLINT: this file is about its instructions

struct Arguments : BackwardArguments, TileArguments<KeyTile> {
  int64_t key_steps[kMaxViews];
  Gradient dk[kMaxViews];
  Gradient dv[kMaxViews];
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

template <int kHeadDim>
struct KeyKernel {
  static constexpr int kConsumers = kTileKeys / kRowsOfConsumer;
  static constexpr int kConsumerRegisters = 240;

  struct Shared {
    SharedRows<kTileKeys, kHeadDim> keys[kStages];
    SharedRows<kTileKeys, kHeadDim> values[kStages];
    SharedRows<kQueries, kHeadDim> queries[kStages];
    SharedRows<kQueries, kHeadDim> douts[kStages];
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
template <int kHeadDim>
class KeyKernel<kHeadDim>::Producer {
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

template <int kHeadDim>
class KeyKernel<kHeadDim>::Consumer {
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
      Probabilities(walk, at);
      Accumulate(dv_, probabilities_, shared_.douts[at]);
      AwaitProducts<1>();
      PinRegisters(slopes_);
      Slopes(at);
      Accumulate(dk_, packed_, shared_.queries[at]);
      // Not left to run under the next scores: there are no registers for both.
      AwaitProducts<0>();
      PinRegisters(dv_);
      PinRegisters(dk_);
      group_.Release(shared_.pipeline, at);
    }
    if (seen) {
      AddRows<kHeadDim>(arguments_.dk, arguments_.key_steps, tile, batch, group_, dk_,
                        arguments_.scale);
      AddRows<kHeadDim>(arguments_.dv, arguments_.key_steps, tile, batch, group_, dv_, 1);
    }
    group_.Release(shared_.tiles.pipeline, slot);
  }

 private:
  __device__ void Probabilities(const QueryWalk& walk, int stage) {
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
    // Queries beyond the span have an infinite denominator.
    const int last_row = (group_.index + 1) * kRowsOfConsumer - 1;
    if (last_row > walk.first() + queries.diagonal) {
#pragma unroll
      for (int i = 0; i < kQueries / 2; ++i) {
        if (group_.row + 8 * (i / 2 & 1) > walk.first() + group_.Column(i) + queries.diagonal) {
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

  const Arguments& arguments_;
  Shared& shared_;
  const ConsumerGroup<kConsumers> group_;
  Stage stage_;
  float scores_[kQueries / 2];
  float slopes_[kQueries / 2];
  uint32_t probabilities_[kQueries / 16][4];
  uint32_t packed_[kQueries / 16][4];
  float dk_[kHeadDim / 2];
  float dv_[kHeadDim / 2];
};

}  // namespace

std::string BackwardKeys(const BackwardProblem& problem, cudaStream_t stream) {
  if (problem.key_tile_count == 0) {
    return "";
  }
  Arguments arguments = {};
  arguments.tiles = problem.key_tiles;
  arguments.tile_count = problem.key_tile_count;
  arguments.batches = static_cast<unsigned>(problem.query_views.front().operand.batch);
  arguments.taken = problem.taken;
  arguments.query_list = problem.queries;
  for (size_t i = 0; i < problem.key_views.size(); ++i) {
    arguments.key_steps[i] = problem.key_views[i].step;
    arguments.dk[i] = problem.dk[i];
    arguments.dv[i] = problem.dv[i];
  }
  const std::string error = Prepare(problem, kQueries, kTileKeys, &arguments);
  if (!error.empty()) {
    return error;
  }
  return LaunchTiles<KeyKernel>(problem.head_dim, arguments, stream);
}

std::string TileBackward(const BackwardProblem& problem, cudaStream_t stream) {
  const std::string error = BackwardKeys(problem, stream);
  return error.empty() ? BackwardQueries(problem, stream) : error;
}

}  // namespace ringmaster::attention::kernels
