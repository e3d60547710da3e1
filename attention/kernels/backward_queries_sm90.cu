// dQ of attention over tiles on Hopper: a block holds 128 queries and walks over the keys that they
// see, as the forward pass does. Scores and dP are made anew in every step, so that dK and dV have
// a kernel of their own and no sum is shared between blocks: nothing depends on who comes first.
#include <algorithm>

#include "attention/kernels/backward_sm90.cuh"
#include "attention/kernels/query_tile.cuh"

namespace ringmaster::attention::kernels {
namespace {

using namespace sm90;  // NOLINT: this file is about its instructions

struct Arguments : BackwardArguments, TileArguments<Tile> {
  Gradient gradients[kMaxViews];
  const TileKeys* key_list;
};

// Keys of a step: as many as the registers of scores, dP and sums allow.
constexpr int KeysOfStep(int head_dim) { return head_dim == 64 ? 128 : 64; }

template <typename Element, int kHeadDim>
struct QueryKernel {
  static constexpr int kKeys = KeysOfStep(kHeadDim);
  static constexpr int kConsumers = kBackwardTileRows / kRowsOfConsumer;
  static constexpr int kHelpers = 0;
  static constexpr int kConsumerRegisters = 232;

  struct Shared : QueryTileShared<Element, kKeys, kHeadDim, kConsumers, kStages> {
    SharedRows<Element, kRowsOfConsumer, kHeadDim> queries[kStages][kConsumers];
    SharedRows<Element, kRowsOfConsumer, kHeadDim> douts[kStages][kConsumers];
  };

  class Producer;
  class Consumer;
};

template <typename Element, int kHeadDim>
class QueryKernel<Element, kHeadDim>::Producer
    : public KeyLoader<kKeys, kStages, Arguments, Shared> {
 public:
  using KeyLoader<kKeys, kStages, Arguments, Shared>::KeyLoader;

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

  __device__ void Run(const Tile& tile, int batch, int slot, bool seen) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      numbers_[h] = NumbersOf(arguments_, tile.rows, group_.row + 8 * h, tile.count, batch);
    }
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) {
      gradient_[i] = 0;
    }
    int before = -1;  // the stage whose keys the products under way read
    for (bool more = seen; more; stage_.Next()) {
      shared_.key_pipeline.AwaitFull(stage_);
      more = !shared_.blocks.last[stage_.index()];
      group_.AwaitTurn();
      Multiply(scores_, shared_.queries[slot][group_.index], shared_.keys[stage_.index()]);
      shared_.value_pipeline.AwaitFull(stage_);
      Multiply(slopes_, shared_.douts[slot][group_.index], shared_.values[stage_.index()]);
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
    group_.Release(shared_.tiles.pipeline, slot);
  }

 private:
  // Scores to probabilities of the softmax of all keys; 0 where a key is hidden.
  __device__ void Probabilities(const TileKeys& keys) {
    const float scale_log2 = arguments_.scale * kLog2e;
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) {
      scores_[i] = Exp2(fmaf(scores_[i], scale_log2, -numbers_[i / 2 & 1].lse));
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
      const float delta = numbers_[i / 2 & 1].delta;
      packed_[i / 8][i / 2 % 4] = Element::Pack(scores_[i] * (slopes_[i] - delta),
                                                scores_[i + 1] * (slopes_[i + 1] - delta));
    }
  }

  const Arguments& arguments_;
  Shared& shared_;
  const ConsumerGroup<kConsumers> group_;
  Stage stage_;
  QueryNumbers numbers_[2];
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
  std::copy(problem.dq.begin(), problem.dq.end(), arguments.gradients);
  const std::string error =
      Prepare(problem, kRowsOfConsumer, KeysOfStep(problem.head_dim), &arguments);
  if (!error.empty()) {
    return error;
  }
  return LaunchTiles<QueryKernel>(problem.type, problem.head_dim, arguments, stream);
}

}  // namespace ringmaster::attention::kernels
