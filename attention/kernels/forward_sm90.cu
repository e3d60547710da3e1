// Forward attention over tiles on Hopper: consumers hold 64 queries each and the running softmax of
// their rows in registers. The scores of the next keys are multiplied while the softmax of the
// present ones is computed (FlashAttention-3, sections 3.1 and 3.2, arXiv 2407.08608).
#include <limits>

#include "attention/kernels/query_tile.cuh"

namespace ringmaster::attention::kernels {
namespace {

using namespace sm90;  // NOLINT: this file is about its instructions

constexpr float kLn2 = 0.69314718055994530942f;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

struct Arguments {
  ViewMaps queries[kMaxViews];
  ViewMaps keys[kMaxViews];
  ViewMaps values[kMaxViews];
  const Tile* tiles;
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

  struct Shared : QueryTileShared<kTileKeys, kHeadDim, kConsumers> {
    SharedRows<kRowsOfConsumer, kHeadDim> queries[kConsumers];
  };

  static __device__ void Produce(const Arguments& arguments, Shared& shared, const Tile& tile,
                                 int batch, int thread) {
    if (thread != 0) {
      return;
    }
    ArriveExpecting(&shared.queries_full, sizeof(shared.queries));
    for (int consumer = 0; consumer < kConsumers; ++consumer) {
      LoadRows(shared.queries[consumer], arguments.queries, tile.rows, consumer * kRowsOfConsumer,
               batch, &shared.queries_full);
    }
    LoadKeys(arguments, shared, tile, batch);
  }

  class Consumer;
};

// The state of a consumer warpgroup: 64 queries, of which each thread holds two half rows.
template <int kHeadDim>
class ForwardKernel<kHeadDim>::Consumer {
 public:
  __device__ Consumer(const Arguments& arguments, Shared& shared, const Tile& tile, int batch,
                      int group)
      : arguments_(arguments), shared_(shared), tile_(tile), batch_(batch), group_(group) {}

  __device__ void Run() {
    // Long before they are needed.
    slots_[0] = SlotOf(0);
    slots_[1] = SlotOf(1);
    auto walk = WalkKeys<kTileKeys>(arguments_.key_list, tile_);
    if (!walk.done()) {
      group_.StartTurns();
      WaitFor(&shared_.queries_full, 0);
      Stage keys, values;
      shared_.key_pipeline.AwaitFull(keys);
      group_.AwaitTurn();
      Multiply(scores_, shared_.queries[group_.index], shared_.keys[keys.index]);
      group_.GiveTurn();
      AwaitProducts<0>();
      PinRegisters(scores_);
      group_.Release(shared_.key_pipeline, keys.index);
      keys.Next();
      Hide(walk);
      float ignored[2];
      Softmax(ignored);
      Pack(scores_, probabilities_);
      for (walk.Next(); !walk.done(); walk.Next()) {
        shared_.key_pipeline.AwaitFull(keys);
        group_.AwaitTurn();
        Multiply(scores_, shared_.queries[group_.index], shared_.keys[keys.index]);
        shared_.value_pipeline.AwaitFull(values);
        Accumulate(out_, probabilities_, shared_.values[values.index]);
        group_.GiveTurn();
        AwaitProducts<1>();
        PinRegisters(scores_);
        group_.Release(shared_.key_pipeline, keys.index);
        keys.Next();
        Hide(walk);
        float keep[2];
        Softmax(keep);
        AwaitProducts<0>();
        PinRegisters(out_);
        group_.Release(shared_.value_pipeline, values.index);
        values.Next();
#pragma unroll
        for (int i = 0; i < kHeadDim / 2; ++i) {
          out_[i] *= keep[i / 2 & 1];
        }
        Pack(scores_, probabilities_);
      }
      shared_.value_pipeline.AwaitFull(values);
      Accumulate(out_, probabilities_, shared_.values[values.index]);
      AwaitProducts<0>();
      PinRegisters(out_);
    }
    Store();
  }

 private:
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

  __device__ uint32_t SlotOf(int h) const {
    const int row = group_.row + 8 * h;
    const uint32_t* slots = arguments_.results.slots;
    return slots != nullptr && row < tile_.count ? slots[tile_.first_row + row] : kWhole;
  }

  __device__ void Store() {
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
      const bool real = row < tile_.count, whole = slots_[h] == kWhole;
      const TileRows& rows = tile_.rows;
      const int64_t token = rows.residue + (rows.first + row) * arguments_.query_steps[rows.view];
      const int64_t place = (batch_ * arguments_.tokens + token) * arguments_.heads + rows.head;
      const int64_t part = batch_ * results.parts + slots_[h];
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
  const Tile& tile_;
  const int batch_;
  const ConsumerGroup<kConsumers> group_;
  float scores_[kTileKeys / 2];
  uint32_t probabilities_[kTileKeys / 16][4];
  float out_[kHeadDim / 2] = {};
  float most_[2] = {kMinusInfinity, kMinusInfinity};
  float sum_[2] = {0, 0};
  uint32_t slots_[2];
};

}  // namespace

std::string TileForward(const ForwardProblem& problem, cudaStream_t stream) {
  if (problem.tile_count == 0) {
    return "";
  }
  Arguments arguments = {};
  arguments.tiles = problem.tiles;
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
  return LaunchTiles<ForwardKernel>(problem.head_dim, arguments, problem.tile_count, queries.batch,
                                    stream);
}

}  // namespace ringmaster::attention::kernels
