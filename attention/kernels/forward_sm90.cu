// Forward attention over tiles on Hopper: consumers hold 64 queries each and the running softmax of
// their rows in registers. The scores of the next keys are multiplied while the softmax of the
// present ones is computed (FlashAttention-3, sections 3.1 and 3.2, arXiv 2407.08608).
#include <limits>

#include "attention/kernels/query_tile.cuh"
#include "attention/kernels/tile_launch.cuh"

namespace ringmaster::attention::kernels {
namespace {

using namespace sm90;  // NOLINT: this file is about its instructions

constexpr float kLn2 = 0.69314718055994530942f;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

struct Arguments : TileArguments<Tile> {
  ViewMaps queries[kMaxViews];
  ViewMaps keys[kMaxViews];
  ViewMaps values[kMaxViews];
  const TileKeys* key_list;
  Results results;
  int64_t query_steps[kMaxViews];
  int64_t tokens;
  int64_t heads;
  float scale_log2;
};

template <int kHeadDim>
struct ForwardKernel {
  static constexpr int kConsumers = TileRowsOf(kHeadDim) / kRowsOfConsumer;
  static constexpr int kConsumerRegisters = kConsumers == 2 ? 232 : 160;

  struct Shared : QueryTileShared<kTileKeys, kHeadDim, kConsumers> {
    SharedRows<kRowsOfConsumer, kHeadDim> queries[kStages][kConsumers];
  };

  class Producer {
   public:
    __device__ Producer(const Arguments& arguments, Shared& shared, int lane)
        : arguments_(arguments), shared_(shared), keys_(arguments, shared), lane_(lane) {}

    __device__ void LoadOwn(const Tile& tile, int batch, int slot) {
      uint64_t* full = &shared_.tiles.pipeline.full[slot];
      ArriveExpecting(full, sizeof(shared_.queries[slot]));
      for (int consumer = 0; consumer < kConsumers; ++consumer) {
        LoadRows(shared_.queries[slot][consumer], arguments_.queries, tile.rows,
                 consumer * kRowsOfConsumer, batch, full);
      }
    }
    __device__ void LoadSeen(const Tile& tile, int batch) {
      if (lane_ == 0) {
        keys_.template Load<kTileKeys>(tile, batch);
      }
      __syncwarp();
    }

   private:
    const Arguments& arguments_;
    Shared& shared_;
    KeyLoader<Arguments, Shared> keys_;
    const int lane_;
  };

  class Consumer;
};

// The state of a consumer warpgroup: 64 queries, of which each thread holds two half rows.
template <int kHeadDim>
class ForwardKernel<kHeadDim>::Consumer {
 public:
  __device__ Consumer(const Arguments& arguments, Shared& shared, int group)
      : arguments_(arguments), shared_(shared), group_(group) {
    group_.StartTurns();
  }

  __device__ void Run(const Tile& tile, int batch, int slot) {
    Start();
    auto walk = WalkKeys<kTileKeys>(arguments_.key_list, tile);
    const bool seen = !walk.done();
    if (seen) {
      shared_.key_pipeline.AwaitFull(keys_);
      group_.AwaitTurn();
      Multiply(scores_, shared_.queries[slot][group_.index], shared_.keys[keys_.index()]);
      group_.GiveTurn();
      AwaitProducts<0>();
      PinRegisters(scores_);
      group_.Release(shared_.key_pipeline, keys_.index());
      keys_.Next();
      Hide(walk);
      float ignored[2];
      Softmax(ignored);
      Pack(scores_, probabilities_);
      for (walk.Next(); !walk.done(); walk.Next()) {
        shared_.key_pipeline.AwaitFull(keys_);
        group_.AwaitTurn();
        Multiply(scores_, shared_.queries[slot][group_.index], shared_.keys[keys_.index()]);
        shared_.value_pipeline.AwaitFull(values_);
        Accumulate(out_, probabilities_, shared_.values[values_.index()]);
        group_.GiveTurn();
        AwaitProducts<1>();
        PinRegisters(scores_);
        group_.Release(shared_.key_pipeline, keys_.index());
        keys_.Next();
        Hide(walk);
        float keep[2];
        Softmax(keep);
        AwaitProducts<0>();
        PinRegisters(out_);
        group_.Release(shared_.value_pipeline, values_.index());
        values_.Next();
#pragma unroll
        for (int i = 0; i < kHeadDim / 2; ++i) {
          out_[i] *= keep[i / 2 & 1];
        }
        Pack(scores_, probabilities_);
      }
    }
    if (seen) {
      shared_.value_pipeline.AwaitFull(values_);
      Accumulate(out_, probabilities_, shared_.values[values_.index()]);
      AwaitProducts<0>();
      PinRegisters(out_);
      group_.Release(shared_.value_pipeline, values_.index());
      values_.Next();
    }
    Store(tile, batch);
    group_.Release(shared_.tiles.pipeline, slot);
  }

 private:
  __device__ void Start() {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      most_[h] = kMinusInfinity;
      sum_[h] = 0;
    }
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) {
      out_[i] = 0;
    }
  }

  // Puts -inf where a key is hidden from a query.
  __device__ void Hide(const KeyWalk<kTileKeys>& walk) {
    const TileKeys& keys = walk.span();
    const int last = min(keys.count - 1, group_.index * kRowsOfConsumer + keys.diagonal);
    if (walk.first() + kTileKeys - 1 <= last) {
      return;
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = group_.row + 8 * h;
      const int row_last =
          min(keys.count - 1, row + keys.diagonal) - walk.first() - 2 * (group_.lane % 4);
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

  __device__ uint32_t SlotOf(const Tile& tile, int row) const {
    const uint32_t* slots = arguments_.results.slots;
    return slots != nullptr && row < tile.count ? slots[tile.first_row + row] : kWhole;
  }

  __device__ void Store(const Tile& tile, int batch) {
    const Results& results = arguments_.results;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float sum = sum_[h];
      sum += __shfl_xor_sync(0xFFFFFFFF, sum, 1);
      sum += __shfl_xor_sync(0xFFFFFFFF, sum, 2);
      // No key was seen; a sum that is NaN goes on.
      const bool nothing = sum == 0;
      const float factor = nothing ? 0 : 1 / sum;
      const int row = group_.row + 8 * h;
      const uint32_t slot = SlotOf(tile, row);
      const bool real = row < tile.count, whole = slot == kWhole;
      const TileRows& rows = tile.rows;
      const int64_t token = rows.residue + (rows.first + row) * arguments_.query_steps[rows.view];
      const int64_t place = (batch * arguments_.tokens + token) * arguments_.heads + rows.head;
      const int64_t part = batch * results.parts + slot;
      if (real && group_.lane % 4 == 0) {
        (whole ? results.lse[place] : results.part_lses[part]) =
            nothing ? kMinusInfinity : fmaf(most_[h] * arguments_.scale_log2, kLn2, logf(sum));
      }
      if (__any_sync(0xFFFFFFFF, real && whole)) {
        uint16_t* out = static_cast<uint16_t*>(results.out) + place * kHeadDim;
#pragma unroll
        for (int column = 0; column < kHeadDim; column += 32) {
          StoreColumns(out + column, column, h, factor, real && whole);
        }
      }
      if (real && !whole) {
        StorePart(results.part_outs + part * kHeadDim, h, factor);
      }
    }
  }

  __device__ void StorePart(float* out, int h, float factor) {
#pragma unroll
    for (int column = 0; column < kHeadDim; column += 8) {
      const int i = column / 2 + 2 * h;
      *reinterpret_cast<float2*>(out + column + 2 * (group_.lane % 4)) =
          make_float2(out_[i] * factor, out_[i + 1] * factor);
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
      const bool upper = group_.lane & distance;
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
      *reinterpret_cast<uint4*>(out + 8 * (group_.lane % 4)) =
          make_uint4(block[0], block[1], block[2], block[3]);
    }
  }

  const Arguments& arguments_;
  Shared& shared_;
  const ConsumerGroup<kConsumers> group_;
  Stage keys_, values_;
  float scores_[kTileKeys / 2];
  uint32_t probabilities_[kTileKeys / 16][4];
  float out_[kHeadDim / 2];
  float most_[2];
  float sum_[2];
};

}  // namespace

std::string TileForward(const ForwardProblem& problem, cudaStream_t stream) {
  if (problem.tile_count == 0) {
    return "";
  }
  Arguments arguments = {};
  arguments.tiles = problem.tiles;
  arguments.tile_count = problem.tile_count;
  arguments.taken = problem.taken;
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
  for (size_t i = 0; i < problem.query_views.size(); ++i) {
    arguments.query_steps[i] = problem.query_views[i].step;
  }
  const Operand& queries = problem.query_views.front().operand;
  arguments.tokens = queries.tokens;
  arguments.heads = queries.heads;
  arguments.batches = static_cast<unsigned>(queries.batch);
  return LaunchTiles<ForwardKernel>(problem.head_dim, arguments, stream);
}

}  // namespace ringmaster::attention::kernels
