// dQ of attention over tiles on Hopper: a block holds 128 queries and walks over the keys that they
// see, as the forward pass does. Scores and dP are made anew in every step, so that dK and dV have
// a kernel of their own and no sum is shared between blocks: nothing depends on who comes first.
#include <math.h>

#include <algorithm>

#include "attention/kernels/backward_sm90.cuh"
#include "attention/kernels/query_tile.cuh"

namespace ringmaster::attention::kernels {
namespace {

using namespace sm90;  // NOLINT: this file is about its instructions

struct Arguments : BackwardArguments, TileArguments<Tile> {
  Gradient gradients[kMaxViews];
  const TileKeys* key_list;
  const float2* starts;
  int64_t tokens;
  int64_t starts_of_token;
};

// Keys of a step: as many as the registers of scores, dP and sums allow.
constexpr int KeysOfStep(int head_dim) { return head_dim == 64 ? 128 : 64; }

template <typename Element, int kHeadDim>
struct QueryKernel {
  static constexpr int kKeys = KeysOfStep(kHeadDim);
  static constexpr int kConsumers = kBackwardTileRows / kRowsOfConsumer;
  static constexpr int kHelpers = 1;
  static constexpr int kConsumerRegisters = 232;

  struct Shared : QueryTileShared<Element, kKeys, kHeadDim, kConsumers, kStages> {
    SharedRows<Element, kRowsOfConsumer, kHeadDim> queries[kStages][kConsumers];
    SharedRows<Element, kRowsOfConsumer, kHeadDim> douts[kStages][kConsumers];

    using Base = QueryTileShared<Element, kKeys, kHeadDim, kConsumers, kStages>;
    __device__ void Init() { Base::Init(kWarpsOf<QueryKernel>); }
  };

  __device__ static KeyWalk<kKeys> WalkOf(const Arguments& arguments, const Tile& tile) {
    return KeyWalkOf<kKeys>(arguments, tile);
  }

  class Loader;
  class Consumer;
  template <int>
  using Helper = ValueLoader<kKeys, Arguments, Shared>;
};

template <typename Element, int kHeadDim>
class QueryKernel<Element, kHeadDim>::Loader : public KeyLoader<kKeys, kStages, Arguments, Shared> {
 public:
  using KeyLoader<kKeys, kStages, Arguments, Shared>::KeyLoader;

  __device__ void Run(const Tile& tile, int batch, const Stage& stage) {
    const int slot = stage.index();
    LoadOwn(tile, batch, slot);
    this->LoadKeys(this->shared_.tiles.walk[slot], batch);
  }

 private:
  __device__ void LoadOwn(const Tile& tile, int batch, int slot) {
    Shared& shared = this->shared_;
    uint64_t* full = &shared.tiles.pipeline.full[slot];
    ArriveExpecting(full, sizeof(shared.queries[slot]) + sizeof(shared.douts[slot]));
    for (int consumer = 0; consumer < kConsumers; ++consumer) {
      const int row = consumer * kRowsOfConsumer;
      LoadRows(shared.queries[slot][consumer], this->arguments_.queries, tile.rows, row, batch,
               full);
      LoadRows(shared.douts[slot][consumer], this->arguments_.douts, tile.rows, row, batch, full);
    }
  }
};

template <typename Element, int kHeadDim>
class QueryKernel<Element, kHeadDim>::Consumer {
 public:
  __device__ Consumer(const Arguments& arguments, Shared& shared, int group)
      : arguments_(arguments), shared_(shared), group_(group) {
    group_.StartTurns();
  }

  __device__ void Run(const Tile& tile, int batch, const Stage& tile_stage) {
    const int slot = tile_stage.index();
    const bool seen = !shared_.tiles.walk[slot].done();
    shared_.tiles.pipeline.AwaitFull(tile_stage);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      starts_[h] = StartOf(tile, group_.row + 8 * h, batch);
    }
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) {
      gradient_[i] = 0;
    }
    int before = -1;  // the stage whose keys the products under way read
    for (bool more = seen; more; stage_.Next()) {
      shared_.key_pipeline.AwaitFull(stage_);
      more = !shared_.blocks.last[stage_.index()];
      Begin();
      group_.AwaitTurn();
      Multiply<true>(scores_, shared_.queries[slot][group_.index], shared_.keys[stage_.index()]);
      shared_.value_pipeline.AwaitFull(stage_);
      Multiply<true>(slopes_, shared_.douts[slot][group_.index], shared_.values[stage_.index()]);
      group_.GiveTurn();
      AwaitProducts<1>();
      PinRegisters(scores_);
      PinRegisters(gradient_);
      if (before >= 0) {
        group_.Release(shared_.key_pipeline, before);
      }
      before = stage_.index();
      Probabilities(shared_.blocks.left[stage_.index()]);
      AwaitProducts<0>();
      PinRegisters(slopes_);
      group_.Release(shared_.value_pipeline, stage_.index());
      Slopes();
      Accumulate(gradient_, packed_, shared_.keys[stage_.index()]);
    }
    AwaitProducts<0>();
    PinRegisters(gradient_);
    if (seen) {
      group_.Release(shared_.key_pipeline, before);
      AddRows<kHeadDim>(arguments_.gradients, arguments_.query_steps, tile, batch, group_,
                        gradient_, arguments_.scale);
    }
  }

 private:
  // A row beyond the tile takes no part.
  __device__ float2 StartOf(const Tile& tile, int row, int batch) {
    const int64_t token = TokenOf(tile.rows, arguments_.query_steps, min(row, tile.count - 1));
    const int64_t place =
        (batch * arguments_.tokens + token) * arguments_.starts_of_token + tile.rows.head;
    const float2 start = arguments_.starts[place];
    return row < tile.count ? start : make_float2(-INFINITY, 0);
  }

  __device__ void Begin() {
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) {
      scores_[i] = starts_[i / 2 & 1].x;
      slopes_[i] = starts_[i / 2 & 1].y;
    }
    PinRegisters(scores_);
    PinRegisters(slopes_);
  }

  // Scores to probabilities of the softmax of all keys; 0 where a key is hidden.
  __device__ void Probabilities(const TileKeys& keys) {
    const float scale_log2 = arguments_.scale * kLog2e;
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) {
      scores_[i] = Exp2(scores_[i] * scale_log2);
    }
    if (kKeys <= min(keys.count, group_.index * kRowsOfConsumer + keys.diagonal + 1)) {
      return;
    }
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) {
      const int row = group_.row + 8 * (i / 2 & 1);
      if (group_.Column(i) > min(keys.count - 1, row + keys.diagonal)) {
        scores_[i] = 0;
      }
    }
  }

  // dS = P * (dP - delta), rounded.
  __device__ void Slopes() {
#pragma unroll
    for (int i = 0; i < kKeys / 2; i += 2) {
      packed_[i / 8][i / 2 % 4] =
          Element::Pack(scores_[i] * slopes_[i], scores_[i + 1] * slopes_[i + 1]);
    }
  }

  const Arguments& arguments_;
  Shared& shared_;
  const ConsumerGroup<kConsumers> group_;
  Stage stage_;
  float2 starts_[2];
  float scores_[kKeys / 2];
  float slopes_[kKeys / 2];
  uint32_t packed_[kKeys / 16][4];
  float gradient_[kHeadDim / 2];
};

}  // namespace

std::string BackwardQueries(const BackwardProblem& problem, cudaStream_t stream) {
  if (problem.tile_count == 0) {
    return "";
  }
  Arguments arguments = {};
  arguments.tiles = problem.tiles;
  arguments.tile_count = problem.tile_count;
  arguments.batches = static_cast<unsigned>(problem.query_views.front().operand.batch);
  arguments.taken = problem.taken;
  arguments.key_list = problem.keys;
  const Operand& queries = problem.query_views.front().operand;
  arguments.starts = reinterpret_cast<const float2*>(problem.starts);
  arguments.tokens = queries.tokens;
  arguments.starts_of_token = 2 * PairsOfHeads(queries.heads);
  std::copy(problem.dq.begin(), problem.dq.end(), arguments.gradients);
  const std::string error =
      Prepare(problem, kRowsOfConsumer, KeysOfStep(problem.head_dim), &arguments);
  if (!error.empty()) {
    return error;
  }
  return LaunchTiles<QueryKernel>(problem.type, problem.head_dim, arguments, stream);
}

}  // namespace ringmaster::attention::kernels
