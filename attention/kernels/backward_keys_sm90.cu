// dK and dV of attention over tiles on Hopper: a block holds 128 keys and walks over the queries
// that see them. The scores are made transposed, keys along the rows, so that probabilities and
// slopes lie in registers as the next products want them. Where the order of sums may differ from
// run to run, dQ is made here too, five products in all: the slopes of all keys of the block meet
// in shared memory, and each consumer makes its share of the columns (FlashAttention-3,
// section 3.3).
#include "attention/kernels/key_tile_helpers.cuh"

namespace ringmaster::attention::kernels {
namespace {

using namespace sm90;  // NOLINT: this file is about its instructions
using Arguments = KeyArguments;

// Barrier of the consumers; lower ones are their turns'.
constexpr int kSlopesBarrier = 8;

}  // namespace

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

  // Rounds the accumulator, times `factor`, and what the sums of its rows hold; some are to hold
  // both then.
  __device__ void Finish(const Gradient* gradients, const KeyTile& tile, int batch,
                         const float (&values)[kHeadDim / 2], float factor, void* finished) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = group_.row + 8 * h;
      const bool real = row < tile.count;
      const int64_t token = TokenOf(tile.rows, arguments_.key_steps, row);
      const int beside = real ? arguments_.SumsBeside(token, tile.rows.head) : 0;
      float* at = SumsAt(gradients[tile.rows.view], batch, token, tile.rows.head);
      float4 sums[kHeadDim / 16] = {};
      if (beside & kSumsBefore) {
        const float* from = at + 8 * (group_.lane & 1) + 4 * (group_.lane / 2 & 1);
#pragma unroll
        for (int i = 0; i < kHeadDim / 16; ++i) {
          sums[i] = *reinterpret_cast<const float4*>(from + 16 * i);
        }
      }
      uint16_t* out =
          static_cast<uint16_t*>(finished) +
          ((batch * arguments_.tokens + token) * arguments_.kv_heads + tile.rows.head) * kHeadDim;
      ForEachFour<kHeadDim>(values, h, group_.lane, [&](int i, int column, const float4& four) {
        const float4 all = {fmaf(four.x, factor, sums[i].x), fmaf(four.y, factor, sums[i].y),
                            fmaf(four.z, factor, sums[i].z), fmaf(four.w, factor, sums[i].w)};
        if (real) {
          *reinterpret_cast<uint2*>(out + column) =
              make_uint2(Element::Pack(all.x, all.y), Element::Pack(all.z, all.w));
        }
        if (beside & kSumsAfter) {
          *reinterpret_cast<float4*>(at + column) = all;
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

namespace {

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
  arguments.key_sums = problem.key_sums;
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
