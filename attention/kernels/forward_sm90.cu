// Forward attention over tiles on Hopper: consumers hold 64 queries each and the running softmax of
// their rows in registers. The scores of the next keys are multiplied while the softmax of the
// present ones is computed (FlashAttention-3, section 3.2, arXiv 2407.08608); that of others' is
// left to whoever is ready: taking turns (section 3.1) was no faster. A consumer passes over keys
// that none of its queries sees.
#include <tuple>

#include "attention/kernels/forward_rows.cuh"
#include "attention/kernels/query_tile.cuh"
#include "attention/kernels/tile_launch.cuh"

namespace ringmaster::attention::kernels {
namespace {

using namespace sm90;  // NOLINT: this file is about its instructions
using Arguments = ForwardArguments;

// fp32 numbers of a line of the cache.
constexpr int kNumbersOfLine = 32;

// Barriers of one consumer's warps.
constexpr int kRowsBarrier = 1;

template <typename Element, int kHeadDim>
struct ForwardKernel {
  static constexpr int kConsumers = TileRowsOf(kHeadDim) / kRowsOfConsumer;
  static constexpr int kHelpers = 2;
  static constexpr int kKeyStages = 3;
  static constexpr int kConsumerRegisters = kConsumers == 2 ? 232 : 160;

  struct Shared : QueryTileShared<Element, kTileKeys, kHeadDim, kConsumers, kKeyStages> {
    using Base = QueryTileShared<Element, kTileKeys, kHeadDim, kConsumers, kKeyStages>;
    SharedRows<Element, kRowsOfConsumer, kHeadDim> queries[kStages][kConsumers];

    __device__ void Init() { Base::Init(kWarpsOf<ForwardKernel>); }
  };

  __device__ static KeyWalk<kTileKeys> WalkOf(const Arguments& arguments, const Tile& tile) {
    return KeyWalkOf<kTileKeys>(arguments, tile);
  }

  class Loader;
  class Fetcher;
  class Consumer;
  template <int kIndex>
  using Helper =
      std::tuple_element_t<kIndex, std::tuple<ValueLoader<kTileKeys, Arguments, Shared>, Fetcher>>;
};

template <typename Element, int kHeadDim>
class ForwardKernel<Element, kHeadDim>::Loader
    : public KeyLoader<kTileKeys, kKeyStages, Arguments, Shared> {
 public:
  using KeyLoader<kTileKeys, kKeyStages, Arguments, Shared>::KeyLoader;

  __device__ void Run(const Tile& tile, int batch, const Stage& stage) {
    const int slot = stage.index();
    LoadOwn(tile, batch, slot);
    this->LoadKeys(this->shared_.tiles.walk[slot], batch);
  }

 private:
  __device__ void LoadOwn(const Tile& tile, int batch, int slot) {
    uint64_t* full = &this->shared_.tiles.pipeline.full[slot];
    FenceShared();  // consumers have written to it
    ArriveExpecting(full, sizeof(this->shared_.queries[slot]));
    for (int consumer = 0; consumer < kConsumers; ++consumer) {
      LoadRows(this->shared_.queries[slot][consumer], this->arguments_.queries, tile.rows,
               consumer * kRowsOfConsumer, batch, full);
    }
  }
};

// Fetches what the consumers will merge. A warp of its own: the keys do not wait for its addresses.
template <typename Element, int kHeadDim>
class ForwardKernel<Element, kHeadDim>::Fetcher {
 public:
  __device__ Fetcher(const Arguments& arguments, Shared&, int lane)
      : arguments_(arguments), lane_(lane) {}

  __device__ void Run(const Tile& tile, int batch, const Stage&) {
    const Results& results = arguments_.results;
    if (results.merge_begin == nullptr) {
      return;
    }
    for (int row = lane_; row < tile.count; row += 32) {
      const uint32_t* begin = results.merge_begin + PlaceOf(arguments_, tile.rows, row);
      const int64_t all = batch * results.parts;
      for (int64_t part = all + begin[0]; part < all + begin[1]; ++part) {
        Prefetch(results.part_lses + part);
        for (int column = 0; column < kHeadDim; column += kNumbersOfLine) {
          Prefetch(results.part_outs + part * kHeadDim + column);
        }
      }
    }
  }

 private:
  const Arguments& arguments_;
  const int lane_;
};

// The state of a consumer warpgroup: 64 queries, of which each thread holds two half rows.
template <typename Element, int kHeadDim>
class ForwardKernel<Element, kHeadDim>::Consumer : ForwardRows<Element, kHeadDim, kConsumers> {
  using Rows = ForwardRows<Element, kHeadDim, kConsumers>;
  using Rows::arguments_;
  using Rows::group_;
  using Rows::most_;
  using Rows::out_;
  using Rows::sum_;

 public:
  __device__ Consumer(const Arguments& arguments, Shared& shared, int group)
      : Rows(arguments, group), shared_(shared) {}

  __device__ void Run(const Tile& tile, int batch, const Stage& stage) {
    const int slot = stage.index();
    const auto& queries = shared_.queries[slot][group_.index];
    Rows::Start(tile);
    last_row_ = min(tile.count, (group_.index + 1) * kRowsOfConsumer) - 1;
    more_ = !shared_.tiles.walk[slot].done();
    shared_.tiles.pipeline.AwaitFull(stage);
    Look();
    while (next_ != Next::kNone) {
      if (next_ == Next::kHidden) {
        Skip();
        Look();
        continue;
      }
      Multiply(scores_, queries, shared_.keys[keys_.index()]);
      AwaitProducts<0>();
      PinRegisters(scores_);
      TakeScores();
      float keep[2];
      Softmax(keep);
      Keep(keep);
      Pack<Element>(scores_, probabilities_);
      Look();
      while (next_ == Next::kSeen) {
        Multiply(scores_, queries, shared_.keys[keys_.index()]);
        shared_.value_pipeline.AwaitFull(values_);
        Accumulate(out_, probabilities_, shared_.values[values_.index()]);
        AwaitProducts<1>();
        PinRegisters(scores_);
        TakeScores();
        Softmax(keep);
        // Also keeps the softmax before the wait: within one block of instructions ptxas would wait
        // for the products first, and nothing would run under them.
        Look();
        AwaitProducts<0>();
        PinRegisters(out_);
        ReleaseValues();
        Keep(keep);
        Pack<Element>(scores_, probabilities_);
      }
      shared_.value_pipeline.AwaitFull(values_);
      Accumulate(out_, probabilities_, shared_.values[values_.index()]);
      AwaitProducts<0>();
      PinRegisters(out_);
      ReleaseValues();
    }
    // The other warps' products read the queries no longer either.
    SyncNamed(kRowsBarrier + group_.index, kWarpGroup);
    Rows::Store(tile, batch, shared_.queries[slot][group_.index]);
  }

 private:
  // Of the keys that come next: that there are none, or whether any of the rows sees any of them.
  enum class Next { kNone, kHidden, kSeen };

  // Waits for the next keys, if there are any.
  __device__ void Look() {
    if (!more_) {
      next_ = Next::kNone;
      return;
    }
    shared_.key_pipeline.AwaitFull(keys_);
    const TileKeys& left = shared_.blocks.left[keys_.index()];
    diagonal_ = left.diagonal;
    packed_ = min(left.count, kTileKeys) | left.step << 8;
    more_ = !shared_.blocks.last[keys_.index()];
    const bool seen =
        last_row_ >= group_.index * kRowsOfConsumer && last_row_ * left.step + diagonal_ >= 0;
    next_ = seen ? Next::kSeen : Next::kHidden;
  }

  // Gives back keys that are hidden, and their values: others may see them.
  __device__ void Skip() {
    ReleaseKeys();
    shared_.value_pipeline.AwaitFull(values_);
    ReleaseValues();
  }

  __device__ void ReleaseKeys() {
    group_.Release(shared_.key_pipeline, keys_.index());
    keys_.Next();
  }
  __device__ void ReleaseValues() {
    group_.Release(shared_.value_pipeline, values_.index());
    values_.Next();
  }

  // The scores of the keys looked at last are there.
  __device__ void TakeScores() {
    ReleaseKeys();
    Hide();
  }

  // What becomes of the sums so far.
  __device__ void Keep(const float (&keep)[2]) {
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) {
      out_[i] *= keep[i / 2 & 1];
    }
  }

  // Puts -inf where a key is hidden from a query.
  __device__ void Hide() {
    const int left = packed_ & 0xFF, step = packed_ >> 8;
    if (kTileKeys <= min(left, group_.index * kRowsOfConsumer * step + diagonal_ + 1)) {
      return;
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = group_.row + 8 * h;
      const int row_last = min(left - 1, row * step + diagonal_) - 2 * (group_.lane % 4);
#pragma unroll
      for (int i = 0; i < kTileKeys / 2; ++i) {
        if ((i / 2 & 1) == h && 8 * (i / 4) + (i & 1) > row_last) {
          scores_[i] = kMinusInfinity;
        }
      }
    }
  }

  // Scores to unnormalised probabilities; `keep` is what the sums so far are multiplied with. Even
  // and odd columns apart: in one chain each instruction would wait for the one before.
  __device__ void Softmax(float (&keep)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float mosts[2] = {most_[h], most_[h]}, sums[2] = {};
#pragma unroll
      for (int i = 0; i < kTileKeys / 2; ++i) {
        if ((i / 2 & 1) == h) {
          mosts[i & 1] = fmaxf(mosts[i & 1], scores_[i]);
        }
      }
      float most = fmaxf(mosts[0], mosts[1]);
      most = fmaxf(most, __shfl_xor_sync(0xFFFFFFFF, most, 1));
      most = fmaxf(most, __shfl_xor_sync(0xFFFFFFFF, most, 2));
      // A row that has seen no key yet keeps nothing.
      const float shift = most == kMinusInfinity ? 0 : most * arguments_.scale_log2;
      keep[h] = Exp2(most_[h] * arguments_.scale_log2 - shift);
      most_[h] = most;
#pragma unroll
      for (int i = 0; i < kTileKeys / 2; ++i) {
        if ((i / 2 & 1) == h) {
          scores_[i] = Exp2(fmaf(scores_[i], arguments_.scale_log2, -shift));
          sums[i & 1] += scores_[i];
        }
      }
      sum_[h] = fmaf(sum_[h], keep[h], sums[0] + sums[1]);
    }
  }

  Shared& shared_;
  StageOf<kKeyStages> keys_;
  Stage values_;
  int last_row_;  // before group_.index * kRowsOfConsumer: none of the tile's is this consumer's
  bool more_;     // whether keys come after those looked at
  Next next_;
  // Of the span of the keys looked at: how many there are and, from bit 8 on, its step.
  int packed_, diagonal_;
  float scores_[kTileKeys / 2];
  uint32_t probabilities_[kTileKeys / 16][4];
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
      MakeViewMaps(problem.query_views, problem.head_dim, kRowsOfConsumer, &arguments.queries);
  if (error.empty()) {
    error = MakeViewMaps(problem.key_views, problem.head_dim, kTileKeys, &arguments.keys);
  }
  if (error.empty()) {
    error = MakeViewMaps(problem.value_views, problem.head_dim, kTileKeys, &arguments.values);
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
  return LaunchTiles<ForwardKernel>(problem.type, problem.head_dim, arguments, stream);
}

}  // namespace ringmaster::attention::kernels
