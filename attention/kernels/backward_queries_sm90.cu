// dQ of attention over tiles on Hopper: a block holds 128 queries and walks over the keys that they
// see, as the forward pass does. Scores and dP are made anew in every step, so that dK and dV have
// a kernel of their own and no sum is shared between blocks: nothing depends on who comes first.
#include <algorithm>

#include "attention/kernels/backward_sm90.cuh"
#include "attention/kernels/query_tile.cuh"

namespace ringmaster::attention::kernels {
namespace {

using namespace sm90;  // NOLINT: this file is about its instructions

struct Arguments : BackwardArguments {
  Gradient gradients[kMaxViews];
  const Tile* tiles;
  const TileKeys* key_list;
};

// Keys of a step: as many as the registers of scores, dP and sums allow.
constexpr int KeysOfStep(int head_dim) { return head_dim == 64 ? 128 : 64; }

template <int kHeadDim>
struct QueryKernel {
  static constexpr int kKeys = KeysOfStep(kHeadDim);
  static constexpr int kConsumers = kBackwardTileRows / kRowsOfConsumer;

  struct Shared : QueryTileShared<kKeys, kHeadDim, kConsumers> {
    SharedRows<kRowsOfConsumer, kHeadDim> queries[kConsumers];
    SharedRows<kRowsOfConsumer, kHeadDim> douts[kConsumers];
  };

  static __device__ void Produce(const Arguments& arguments, Shared& shared, const Tile& tile,
                                 int batch, int thread) {
    if (thread != 0) {
      return;
    }
    ArriveExpecting(&shared.queries_full, sizeof(shared.queries) + sizeof(shared.douts));
    for (int consumer = 0; consumer < kConsumers; ++consumer) {
      const int row = consumer * kRowsOfConsumer;
      LoadRows(shared.queries[consumer], arguments.queries, tile.rows, row, batch,
               &shared.queries_full);
      LoadRows(shared.douts[consumer], arguments.douts, tile.rows, row, batch,
               &shared.queries_full);
    }
    LoadKeys(arguments, shared, tile, batch);
  }

  class Consumer;
};

template <int kHeadDim>
class QueryKernel<kHeadDim>::Consumer {
 public:
  __device__ Consumer(const Arguments& arguments, Shared& shared, const Tile& tile, int batch,
                      int group)
      : arguments_(arguments), shared_(shared), tile_(tile), batch_(batch), group_(group) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      numbers_[h] = NumbersOf(arguments, tile.rows, group_.row + 8 * h, tile.count, batch);
    }
  }

  __device__ void Run() {
    auto walk = WalkKeys<kKeys>(arguments_.key_list, tile_);
    if (walk.done()) {
      return;
    }
    group_.StartTurns();
    WaitFor(&shared_.queries_full, 0);
    Stage stage;
    int before = -1;  // the stage whose keys the products under way read
    for (; !walk.done(); walk.Next(), stage.Next()) {
      shared_.key_pipeline.AwaitFull(stage);
      group_.AwaitTurn();
      Multiply(scores_, shared_.queries[group_.index], shared_.keys[stage.index]);
      shared_.value_pipeline.AwaitFull(stage);
      Multiply(slopes_, shared_.douts[group_.index], shared_.values[stage.index]);
      group_.GiveTurn();
      AwaitProducts<1>();
      PinRegisters(scores_);
      PinRegisters(gradient_);
      if (before >= 0) {
        group_.Release(shared_.key_pipeline, before);
      }
      before = stage.index;
      Probabilities(walk);
      AwaitProducts<0>();
      PinRegisters(slopes_);
      group_.Release(shared_.value_pipeline, stage.index);
      Slopes();
      Accumulate(gradient_, packed_, shared_.keys[stage.index]);
    }
    AwaitProducts<0>();
    PinRegisters(gradient_);
    AddRows<kHeadDim>(arguments_.gradients, arguments_.query_steps, tile_, batch_, group_,
                      gradient_, arguments_.scale);
  }

 private:
  // Scores to probabilities of the softmax of all keys; 0 where a key is hidden.
  __device__ void Probabilities(const KeyWalk<kKeys>& walk) {
    const TileKeys& keys = walk.span();
    const float scale_log2 = arguments_.scale * kLog2e;
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) {
      scores_[i] = Exp2(fmaf(scores_[i], scale_log2, -numbers_[i / 2 & 1].lse));
    }
    const int last = min(keys.count - 1, group_.index * kRowsOfConsumer + keys.diagonal);
    if (walk.first() + kKeys - 1 <= last) {
      return;
    }
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) {
      const int row = group_.row + 8 * (i / 2 & 1);
      const int key = walk.first() + group_.Column(i);
      if (key > min(keys.count - 1, row + keys.diagonal)) {
        scores_[i] = 0;
      }
    }
  }

  // dS = P * (dP - delta), rounded.
  __device__ void Slopes() {
#pragma unroll
    for (int i = 0; i < kKeys / 2; i += 2) {
      const float delta = numbers_[i / 2 & 1].delta;
      packed_[i / 8][i / 2 % 4] =
          PackBf16(scores_[i] * (slopes_[i] - delta), scores_[i + 1] * (slopes_[i + 1] - delta));
    }
  }

  const Arguments& arguments_;
  Shared& shared_;
  const Tile& tile_;
  const int batch_;
  const ConsumerGroup<kConsumers> group_;
  QueryNumbers numbers_[2];
  float scores_[kKeys / 2];
  float slopes_[kKeys / 2];
  uint32_t packed_[kKeys / 16][4];
  float gradient_[kHeadDim / 2] = {};
};

}  // namespace

std::string BackwardQueries(const BackwardProblem& problem, cudaStream_t stream) {
  if (problem.tile_count == 0) {
    return "";
  }
  Arguments arguments = {};
  arguments.tiles = problem.tiles;
  arguments.key_list = problem.keys;
  std::copy(problem.dq.begin(), problem.dq.end(), arguments.gradients);
  const std::string error =
      Prepare(problem, kRowsOfConsumer, KeysOfStep(problem.head_dim), &arguments);
  if (!error.empty()) {
    return error;
  }
  const int64_t batch = problem.query_views.front().operand.batch;
  return LaunchTiles<QueryKernel>(problem.head_dim, arguments, problem.tile_count, batch, stream);
}

}  // namespace ringmaster::attention::kernels
