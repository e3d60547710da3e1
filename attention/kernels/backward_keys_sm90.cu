// dK and dV of attention over tiles on Hopper: a block holds 128 keys and walks over the queries
// that see them. The scores are made transposed, keys along the rows, so that probabilities and
// slopes lie in registers as the next products want them. Where the order of sums may differ from
// run to run, dQ is made here too, five products in all: the slopes of all keys of the block meet
// in shared memory, and each consumer makes its share of the columns (FlashAttention-3,
// section 3.3).
#include <tuple>

#include "attention/kernels/backward_sm90.cuh"
#include "attention/kernels/shared_sums.cuh"

namespace ringmaster::attention::kernels {
namespace {

using namespace sm90;  // NOLINT: this file is about its instructions

struct Arguments : BackwardArguments, TileArguments<KeyTile> {
  ViewMaps starts;
  int64_t key_steps[kMaxViews];
  Gradient dk[kMaxViews];
  Gradient dv[kMaxViews];
  SumMaps dq;
  KeyGradients key_gradients;
  const TileKeys* query_list;
  // To finish:
  const uint8_t* summed;
  void* finished_dk;
  void* finished_dv;
  int64_t tokens;
  int64_t kv_heads;

  __device__ bool Summed(int64_t token, int head) const {
    return summed != nullptr && summed[token * kv_heads + head] != 0;
  }
};

// Queries of a step.
constexpr int kQueries = 64;

// What the sums of scores and slopes begin with, for each row of a pair of heads.
template <int kRows>
struct alignas(128) SharedStarts {
  float2 of_row[kRows][2];
};

// The queries that see some key of a tile, from the start of a step on.
struct SeeingQueries {
  static constexpr int kDiagonalPerRow = 1;
  __device__ int First(const TileKeys& queries) const {
    return max(0, -queries.diagonal) / kQueries * kQueries;
  }
  __device__ int End(const TileKeys& queries) const { return queries.count; }
};
using QueryWalk = Walk<kQueries, SeeingQueries>;

// Barrier of the consumers; lower ones are their turns'.
constexpr int kSlopesBarrier = 8;

template <typename Element, int kHeadDim, bool kWithQueries>
struct KeyKernel {
  static constexpr int kConsumers = kTileKeys / kRowsOfConsumer;
  static constexpr int kHelpers = kWithQueries ? 2 : 1;
  static constexpr int kConsumerRegisters = kHeadDim == 64 ? 232 : 240;
  static constexpr int kShare = kHeadDim / kConsumers;  // columns of dQ of a consumer

  // Of the next tile the keys are loaded while those before are in use; its values when the last
  // product that reads those before is through, well before the tile is.
  struct Shared {
    SharedRows<Element, kTileKeys, kHeadDim> keys[kStages];
    SharedRows<Element, kTileKeys, kHeadDim> values;
    SharedRows<Element, kQueries, kHeadDim> queries[kStages];
    SharedRows<Element, kQueries, kHeadDim> douts[kStages];
    SharedRows<Element, kTileKeys, kQueries> slopes[kWithQueries ? kStages : 1];
    SharedSums<kShare> dq[kWithQueries ? kConsumers : 1];
    SharedStarts<kQueries> starts[kStages];
    TileSlots<KeyTile, QueryWalk> tiles;
    BlocksOf<kStages> blocks;
    Pipeline pipeline;
    PipelineOf<1> values_pipeline;
    PipelineOf<1> dq_pipelines[kConsumers];

    __device__ void Init() {
      tiles.Init(kWarpsOf<KeyKernel>);
      values_pipeline.Init(1, kConsumers * kWarpsOfConsumer);
      pipeline.Init(1, kConsumers * kWarpsOfConsumer + (kWithQueries ? 1 : 0));
      for (PipelineOf<1>& dq_pipeline : dq_pipelines) {
        dq_pipeline.Init(kWarpsOfConsumer, 1);
      }
    }
  };

  __device__ static QueryWalk WalkOf(const Arguments& arguments, const KeyTile& tile) {
    return {arguments.query_list, tile.queries_begin, tile.queries_end, {}};
  }

  class Loader;
  class Fetcher;
  class Writer;
  class Consumer;
  template <int kIndex>
  using Helper = std::tuple_element_t<kIndex, std::tuple<Fetcher, Writer>>;
};

template <typename Element, int kHeadDim, bool kWithQueries>
class KeyKernel<Element, kHeadDim, kWithQueries>::Loader {
 public:
  __device__ Loader(const Arguments& arguments, Shared& shared)
      : arguments_(arguments), shared_(shared) {}

  __device__ void Run(const KeyTile& tile, int batch, const Stage& stage) {
    const int slot = stage.index();
    LoadOwn(tile, batch, slot);
    LoadSeen(shared_.tiles.walk[slot], batch);
  }

 private:
  __device__ void LoadOwn(const KeyTile& tile, int batch, int slot) {
    uint64_t* full = &shared_.tiles.pipeline.full[slot];
    ArriveExpecting(full, sizeof(shared_.keys[slot]));
    LoadRows(shared_.keys[slot], arguments_.keys, tile.rows, 0, batch, full);
    shared_.values_pipeline.AwaitEmpty(values_);
    uint64_t* values_full = &shared_.values_pipeline.full[values_.index()];
    ArriveExpecting(values_full, sizeof(shared_.values));
    LoadRows(shared_.values, arguments_.values, tile.rows, 0, batch, values_full);
    values_.Next();
  }

  __device__ void LoadSeen(QueryWalk walk, int batch) {
    for (; !walk.done(); stage_.Next()) {
      const int at = stage_.index();
      const TileKeys left = walk.Left();
      const TileRows& rows = left.rows;
      walk.Next();
      const CUtensorMap& starts = MapOf(arguments_.starts, rows.view, rows.residue);
      uint64_t* full = &shared_.pipeline.full[at];
      shared_.pipeline.AwaitEmpty(stage_);
      shared_.blocks.left[at] = left;
      shared_.blocks.last[at] = walk.done();
      ArriveExpecting(full, sizeof(shared_.queries[at]) + sizeof(shared_.douts[at]) +
                                sizeof(shared_.starts[at]));
      LoadBox(shared_.starts[at].of_row, starts, full, 0, rows.head / 2, rows.residue, rows.first,
              batch);
      LoadRows(shared_.queries[at], arguments_.queries, rows, 0, batch, full);
      LoadRows(shared_.douts[at], arguments_.douts, rows, 0, batch, full);
    }
  }

  const Arguments& arguments_;
  Shared& shared_;
  Stage stage_;
  StageOf<1> values_;
};

// Fetches the sums that the consumers will add to when they are through.
template <typename Element, int kHeadDim, bool kWithQueries>
class KeyKernel<Element, kHeadDim, kWithQueries>::Fetcher {
 public:
  __device__ Fetcher(const Arguments& arguments, Shared&, int lane)
      : arguments_(arguments), lane_(lane) {}

  __device__ void Run(const KeyTile& tile, int batch, const Stage&) {
    if (arguments_.key_gradients != KeyGradients::kFinish) {
      return;
    }
    constexpr int kNumbersOfLine = 32;
    const int view = tile.rows.view;
#pragma unroll 1
    for (int row = lane_; row < tile.count; row += 32) {
      const int64_t token = TokenOf(tile.rows, arguments_.key_steps, row);
      if (arguments_.Summed(token, tile.rows.head)) {
        const float* dk = SumsAt(arguments_.dk[view], batch, token, tile.rows.head);
        const float* dv = SumsAt(arguments_.dv[view], batch, token, tile.rows.head);
#pragma unroll
        for (int column = 0; column < kHeadDim; column += kNumbersOfLine) {
          Prefetch(dk + column);
          Prefetch(dv + column);
        }
      }
    }
  }

 private:
  const Arguments& arguments_;
  const int lane_;
};

template <typename Element, int kHeadDim, bool kWithQueries>
class KeyKernel<Element, kHeadDim, kWithQueries>::Consumer {
 public:
  __device__ Consumer(const Arguments& arguments, Shared& shared, int group)
      : arguments_(arguments), shared_(shared), group_(group) {
    group_.StartTurns();
  }

  __device__ void Run(const KeyTile& tile, int batch, const Stage& tile_stage) {
    const int slot = tile_stage.index();
    const bool seen = !shared_.tiles.walk[slot].done();
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) {
      dk_[i] = dv_[i] = 0;
    }
    const int first_row = group_.index * kRowsOfConsumer;
    shared_.tiles.pipeline.AwaitFull(tile_stage);
    shared_.values_pipeline.AwaitFull(values_);
    for (bool more = seen; more; stage_.Next()) {
      const int at = stage_.index();
      shared_.pipeline.AwaitFull(stage_);
      more = !shared_.blocks.last[at];
      const TileKeys& left = shared_.blocks.left[at];
      const int diagonal = left.diagonal, queries = min(left.count, kQueries);
      Begin(at);
      group_.AwaitTurn();
      Multiply<true>(scores_, shared_.keys[slot], shared_.queries[at], first_row);
      Multiply<true>(slopes_, shared_.values, shared_.douts[at], first_row);
      group_.GiveTurn();
      AwaitProducts<1>();
      PinRegisters(scores_);
      Probabilities(diagonal, queries, tile.count);
      Accumulate(dv_, probabilities_, shared_.douts[at]);
      AwaitProducts<1>();
      PinRegisters(slopes_);
      if (!more) {
        group_.Release(shared_.values_pipeline, values_.index());
      }
      Slopes();
      if constexpr (kWithQueries) {
        StoreRows(packed_, first_row, group_.lane, shared_.slopes[at]);
        FenceShared();
        // Who is here has read the slopes before last, whose place the next ones take.
        SyncNamed(kSlopesBarrier, kConsumers * kWarpGroup);
        MultiplyTransposed<kTileKeys, kShare>(dq_, shared_.slopes[at], shared_.keys[slot],
                                              group_.index * kShare);
      }
      Accumulate(dk_, packed_, shared_.queries[at]);
      if constexpr (kWithQueries) {
        AwaitProducts<1>();
        PinRegisters(dv_);
        PinRegisters(dq_);
        HandOverQueries();
      }
      // Not left to run under the next scores: there are no registers for both.
      AwaitProducts<0>();
      PinRegisters(dv_);
      PinRegisters(dk_);
      group_.Release(shared_.pipeline, at);
    }
    if (!seen) {
      group_.Release(shared_.values_pipeline, values_.index());
    }
    values_.Next();
    if (arguments_.key_gradients == KeyGradients::kFinish) {
      Finish(arguments_.dk, tile, batch, dk_, arguments_.scale, arguments_.finished_dk);
      Finish(arguments_.dv, tile, batch, dv_, 1, arguments_.finished_dv);
    } else if (const bool store = arguments_.key_gradients == KeyGradients::kStore; store || seen) {
      AddRows<kHeadDim>(arguments_.dk, arguments_.key_steps, tile, batch, group_, dk_,
                        arguments_.scale, store);
      AddRows<kHeadDim>(arguments_.dv, arguments_.key_steps, tile, batch, group_, dv_, 1, store);
    }
  }

 private:
  __device__ void Begin(int stage) {
    const int pair = shared_.blocks.left[stage].rows.head % 2;
#pragma unroll
    for (int i = 0; i < kQueries / 2; i += 4) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float2 start = shared_.starts[stage].of_row[group_.Column(i + j)][pair];
        scores_[i + j] = scores_[i + j + 2] = start.x;
        slopes_[i + j] = slopes_[i + j + 2] = start.y;
      }
    }
    PinRegisters(scores_);
    PinRegisters(slopes_);
  }

  __device__ void Probabilities(int diagonal, int queries, int keys) {
    const float scale_log2 = arguments_.scale * kLog2e;
#pragma unroll
    for (int i = 0; i < kQueries / 2; ++i) {
      scores_[i] = Exp2(scores_[i] * scale_log2);
    }
    // Keys beyond the tile are no part of dQ.
    const int last_row = (group_.index + 1) * kRowsOfConsumer - 1;
    if (last_row > diagonal || last_row >= keys || queries < kQueries) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = group_.row + 8 * h;
        const int first = row - diagonal, end = row < keys ? queries : 0;
#pragma unroll
        for (int i = 0; i < kQueries / 2; ++i) {
          const int column = group_.Column(i);
          if ((i / 2 & 1) == h && (column < first || column >= end)) {
            scores_[i] = 0;
          }
        }
      }
    }
    Pack<Element>(scores_, probabilities_);
  }

  // dS = P * (dP - delta), rounded.
  __device__ void Slopes() {
#pragma unroll
    for (int i = 0; i < kQueries / 2; i += 2) {
      packed_[i / 8][i / 2 % 4] =
          Element::Pack(scores_[i] * slopes_[i], scores_[i + 1] * slopes_[i + 1]);
    }
  }

  // This consumer's columns of dQ. Rows beyond the span are zeros, as their probabilities are.
  __device__ void HandOverQueries() {
    PipelineOf<1>& pipeline = shared_.dq_pipelines[group_.index];
    pipeline.AwaitEmpty(dq_stage_);
    StoreSums<kShare>(dq_, arguments_.scale, group_.lane, shared_.dq[group_.index]);
    __syncwarp();
    if (group_.lane == 0) {
      Arrive(&pipeline.full[dq_stage_.index()]);
    }
    dq_stage_.Next();
  }

  // Rounds the accumulator, times `factor`, and what the sums of its rows hold.
  __device__ void Finish(const Gradient* gradients, const KeyTile& tile, int batch,
                         const float (&values)[kHeadDim / 2], float factor, void* finished) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = group_.row + 8 * h;
      const bool real = row < tile.count;
      const int64_t token = TokenOf(tile.rows, arguments_.key_steps, row);
      float4 sums[kHeadDim / 16] = {};
      if (real && arguments_.Summed(token, tile.rows.head)) {
        const float* from = SumsAt(gradients[tile.rows.view], batch, token, tile.rows.head) +
                            8 * (group_.lane & 1) + 4 * (group_.lane / 2 & 1);
#pragma unroll
        for (int i = 0; i < kHeadDim / 16; ++i) {
          sums[i] = *reinterpret_cast<const float4*>(from + 16 * i);
        }
      }
      uint16_t* out =
          static_cast<uint16_t*>(finished) +
          ((batch * arguments_.tokens + token) * arguments_.kv_heads + tile.rows.head) * kHeadDim;
      ForEachFour<kHeadDim>(values, h, group_.lane, [&](int i, int column, const float4& four) {
        if (real) {
          *reinterpret_cast<uint2*>(out + column) = make_uint2(
              Element::Pack(fmaf(four.x, factor, sums[i].x), fmaf(four.y, factor, sums[i].y)),
              Element::Pack(fmaf(four.z, factor, sums[i].z), fmaf(four.w, factor, sums[i].w)));
        }
      });
    }
  }

  const Arguments& arguments_;
  Shared& shared_;
  const ConsumerGroup<kConsumers> group_;
  Stage stage_;
  StageOf<1> values_;
  StageOf<1> dq_stage_;
  float dq_[kShare / 2];
  float scores_[kQueries / 2];
  float slopes_[kQueries / 2];
  uint32_t probabilities_[kQueries / 16][4];
  uint32_t packed_[kQueries / 16][4];
  float dk_[kHeadDim / 2];
  float dv_[kHeadDim / 2];
};

// Adds the columns of dQ that the consumers hand over; blocks that hold other keys add to the same
// rows. The first lane of a warp of its own does: a consumer would multiply nothing meanwhile.
template <typename Element, int kHeadDim, bool kWithQueries>
class KeyKernel<Element, kHeadDim, kWithQueries>::Writer {
 public:
  __device__ Writer(const Arguments& arguments, Shared& shared, int)
      : arguments_(arguments), shared_(shared) {}

  __device__ void Run(const KeyTile&, int batch, const Stage& stage) {
    if (IsElected()) {
      for (bool more = !shared_.tiles.walk[stage.index()].done(); more; stage_.Next()) {
        const int at = stage_.index();
        shared_.pipeline.AwaitFull(stage_);
        more = !shared_.blocks.last[at];
        const TileRows rows = shared_.blocks.left[at].rows;
        Arrive(&shared_.pipeline.empty[at]);
        Add(rows, batch);
      }
    }
  }

 private:
  __device__ void Add(const TileRows& rows, int batch) {
    const SumMaps& dq = arguments_.dq;
    const auto [residue, row] =
        RowInSums(rows, dq.first_row[rows.view], dq.first_residue[rows.view],
                  arguments_.query_steps[rows.view]);
    const CUtensorMap& map = MapOf(dq.views, rows.view, residue);
#pragma unroll
    for (int consumer = 0; consumer < kConsumers; ++consumer) {
      shared_.dq_pipelines[consumer].AwaitFull(dq_stage_);
#pragma unroll
      for (int i = 0; i < kShare / kSumColumns; ++i) {
        AddBox(map, shared_.dq[consumer].columns[i], consumer * kShare + i * kSumColumns, rows.head,
               residue, row, batch);
      }
      CommitBoxes();
    }
    AwaitBoxesRead();
#pragma unroll
    for (int consumer = 0; consumer < kConsumers; ++consumer) {
      Arrive(&shared_.dq_pipelines[consumer].empty[dq_stage_.index()]);
    }
    dq_stage_.Next();
  }

  const Arguments& arguments_;
  Shared& shared_;
  Stage stage_;
  StageOf<1> dq_stage_;
};

template <typename Element, int kHeadDim>
using WithQueries = KeyKernel<Element, kHeadDim, true>;
template <typename Element, int kHeadDim>
using WithoutQueries = KeyKernel<Element, kHeadDim, false>;

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
  arguments.key_gradients = problem.key_gradients;
  arguments.summed = problem.summed;
  arguments.finished_dk = problem.finished_dk;
  arguments.finished_dv = problem.finished_dv;
  arguments.tokens = problem.key_views.front().operand.tokens;
  arguments.kv_heads = problem.key_views.front().operand.heads;
  for (size_t i = 0; i < problem.key_views.size(); ++i) {
    arguments.key_steps[i] = problem.key_views[i].step;
    arguments.dk[i] = problem.dk[i];
    arguments.dv[i] = problem.dv[i];
  }
  std::string error = Prepare(problem, kQueries, kTileKeys, &arguments);
  if (error.empty()) {
    error = MakeStartMaps(problem.starts, problem.query_views, kQueries, &arguments.starts);
  }
  if (with_queries && error.empty()) {
    error = MakeSumMaps(problem.dq, problem.query_views, problem.head_dim, kQueries, &arguments.dq);
  }
  if (!error.empty()) {
    return error;
  }
  return with_queries
             ? LaunchTiles<WithQueries>(problem.type, problem.head_dim, arguments, stream)
             : LaunchTiles<WithoutQueries>(problem.type, problem.head_dim, arguments, stream);
}

std::string TileBackward(const BackwardProblem& problem, cudaStream_t stream) {
  if (!problem.deterministic) {
    return BackwardKeys(problem, /*with_queries=*/true, stream);
  }
  const std::string error = BackwardKeys(problem, /*with_queries=*/false, stream);
  return error.empty() ? BackwardQueries(problem, stream) : error;
}

}  // namespace ringmaster::attention::kernels
