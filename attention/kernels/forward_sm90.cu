// Forward attention over tiles on Hopper: consumers hold 64 queries each and the running softmax of
// their rows in registers. The scores of the next keys are multiplied while the softmax of the
// present ones is computed (FlashAttention-3, sections 3.1 and 3.2, arXiv 2407.08608).
#include <limits>

#include "attention/kernels/query_tile.cuh"
#include "attention/kernels/rest.h"
#include "attention/kernels/tile_launch.cuh"

namespace ringmaster::attention::kernels {
namespace {

using namespace sm90;  // NOLINT: this file is about its instructions

constexpr float kLn2 = 0.69314718055994530942f;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

struct Arguments : TileArguments<Tile> {
  ViewMaps queries;
  ViewMaps keys;
  ViewMaps values;
  const TileKeys* key_list;
  Results results;
  int64_t query_steps[kMaxViews];
  int64_t tokens;
  int64_t heads;
  float scale_log2;
};

// A row's place, its token's head, in the first sequence.
__device__ int64_t PlaceOf(const Arguments& arguments, const TileRows& rows, int row) {
  const int64_t token = rows.residue + (rows.first + row) * arguments.query_steps[rows.view];
  return token * arguments.heads + rows.head;
}

// Parts of a place whose logarithms are asked for at once: most have no more.
constexpr int kAhead = 4;

// fp32 numbers of a line of the cache.
constexpr int kNumbersOfLine = 32;

template <typename Element, int kHeadDim>
struct ForwardKernel {
  static constexpr int kConsumers = TileRowsOf(kHeadDim) / kRowsOfConsumer;
  static constexpr int kHelpers = 0;
  static constexpr int kKeyStages = 3;
  static constexpr int kConsumerRegisters = kConsumers == 2 ? 232 : 160;

  struct Shared : QueryTileShared<Element, kTileKeys, kHeadDim, kConsumers, kKeyStages> {
    SharedRows<Element, kRowsOfConsumer, kHeadDim> queries[kStages][kConsumers];
  };

  class Producer;
  class Consumer;
};

template <typename Element, int kHeadDim>
class ForwardKernel<Element, kHeadDim>::Producer
    : public KeyLoader<kTileKeys, kKeyStages, Arguments, Shared> {
  using Loader = KeyLoader<kTileKeys, kKeyStages, Arguments, Shared>;

 public:
  using Loader::Loader;

  __device__ void LoadOwn(const Tile& tile, int batch, int slot) {
    uint64_t* full = &this->shared_.tiles.pipeline.full[slot];
    ArriveExpecting(full, sizeof(this->shared_.queries[slot]));
    for (int consumer = 0; consumer < kConsumers; ++consumer) {
      LoadRows(this->shared_.queries[slot][consumer], this->arguments_.queries, tile.rows,
               consumer * kRowsOfConsumer, batch, full);
    }
  }

  __device__ void LoadSeen(const KeyWalk<kTileKeys>& walk, const Tile& tile, int batch) {
    if (this->arguments_.results.merge_begin != nullptr) {
      FetchParts(tile, batch);
    }
    Loader::LoadSeen(walk, tile, batch);
  }

 private:
  // Asks for the parts that the consumers will merge when they are through.
  __device__ void FetchParts(const Tile& tile, int batch) const {
    const Results& results = this->arguments_.results;
    for (int row = this->lane_; row < tile.count; row += 32) {
      const uint32_t* begin = results.merge_begin + PlaceOf(this->arguments_, tile.rows, row);
      const int64_t all = batch * results.parts;
      for (int64_t part = all + begin[0]; part < all + begin[1]; ++part) {
        Prefetch(results.part_lses + part);
        for (int column = 0; column < kHeadDim; column += kNumbersOfLine) {
          Prefetch(results.part_outs + part * kHeadDim + column);
        }
      }
    }
  }
};

// The state of a consumer warpgroup: 64 queries, of which each thread holds two half rows.
template <typename Element, int kHeadDim>
class ForwardKernel<Element, kHeadDim>::Consumer {
 public:
  __device__ Consumer(const Arguments& arguments, Shared& shared, int group)
      : arguments_(arguments), shared_(shared), group_(group) {
    group_.StartTurns();
  }

  __device__ void Run(const Tile& tile, int batch, int slot, bool seen) {
    Start();
    AskWhereTo(tile);
    if (seen) {
      AwaitKeys();
      group_.AwaitTurn();
      Multiply(scores_, shared_.queries[slot][group_.index], shared_.keys[keys_.index()]);
      group_.GiveTurn();
      AwaitProducts<0>();
      PinRegisters(scores_);
      group_.Release(shared_.key_pipeline, keys_.index());
      keys_.Next();
      Hide();
      float ignored[2];
      Softmax(ignored);
      Pack<Element>(scores_, probabilities_);
      bool more = AwaitMoreKeys();
      while (more) {
        group_.AwaitTurn();
        Multiply(scores_, shared_.queries[slot][group_.index], shared_.keys[keys_.index()]);
        shared_.value_pipeline.AwaitFull(values_);
        Accumulate(out_, probabilities_, shared_.values[values_.index()]);
        group_.GiveTurn();
        AwaitProducts<1>();
        PinRegisters(scores_);
        group_.Release(shared_.key_pipeline, keys_.index());
        keys_.Next();
        Hide();
        float keep[2];
        Softmax(keep);
        // Also keeps the softmax before the wait: within one block of instructions ptxas would wait
        // for the products first, and nothing would run under them.
        more = AwaitMoreKeys();
        AwaitProducts<0>();
        PinRegisters(out_);
        group_.Release(shared_.value_pipeline, values_.index());
        values_.Next();
#pragma unroll
        for (int i = 0; i < kHeadDim / 2; ++i) {
          out_[i] *= keep[i / 2 & 1];
        }
        Pack<Element>(scores_, probabilities_);
      }
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

  // Waits for the next keys.
  __device__ void AwaitKeys() {
    shared_.key_pipeline.AwaitFull(keys_);
    const TileKeys& left = shared_.blocks.left[keys_.index()];
    diagonal_ = left.diagonal;
    packed_ = min(left.count, kTileKeys) | left.step << 8;
    more_ = !shared_.blocks.last[keys_.index()];
  }

  // Whether there are any after those awaited last.
  __device__ bool AwaitMoreKeys() {
    const bool more = more_;
    if (more) {
      AwaitKeys();
    }
    return more;
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

  // Asks where the results of the thread's rows go, long before they are there.
  __device__ void AskWhereTo(const Tile& tile) {
    const Results& results = arguments_.results;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = group_.row + 8 * h;
      first_[h] = end_[h] = kWhole;
      if (row < tile.count && results.merge_begin != nullptr) {
        const uint32_t* begin = results.merge_begin + PlaceOf(arguments_, tile.rows, row);
        first_[h] = begin[0];
        end_[h] = begin[1];
      } else if (row < tile.count && results.slots != nullptr) {
        first_[h] = end_[h] = results.slots[tile.first_row + row];
      }
    }
  }

  __device__ void Store(const Tile& tile, int batch) {
    const Results& results = arguments_.results;
    float lse[2], factor[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float sum = sum_[h];
      sum += __shfl_xor_sync(0xFFFFFFFF, sum, 1);
      sum += __shfl_xor_sync(0xFFFFFFFF, sum, 2);
      // No key was seen; a sum that is NaN goes on.
      const bool nothing = sum == 0;
      factor[h] = nothing ? 0 : 1 / sum;
      lse[h] = nothing ? kMinusInfinity : fmaf(most_[h] * arguments_.scale_log2, kLn2, logf(sum));
    }
    const bool merge = results.merge_begin != nullptr;
    if (merge) {
      Merge(batch, lse, factor);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = group_.row + 8 * h;
      const bool real = row < tile.count, whole = merge || first_[h] == kWhole;
      const int64_t part = batch * results.parts + first_[h];
      const int64_t place =
          batch * arguments_.tokens * arguments_.heads + PlaceOf(arguments_, tile.rows, row);
      if (real && group_.lane % 4 == 0) {
        (whole ? results.lse[place] : results.part_lses[part]) = lse[h];
      }
      if (__any_sync(0xFFFFFFFF, real && whole)) {
#pragma unroll
        for (int column = 0; column < kHeadDim; column += 32) {
          StoreColumns(place * kHeadDim, column, h, factor[h], real && whole);
        }
      }
      if (real && !whole) {
        StorePart(results.part_outs + part * kHeadDim, h, factor[h]);
      }
    }
  }

  // Merges the other parts of the rows' places into them, as mix.h says; the numbers of a row are
  // multiplied with its factor yet. What both rows wait for is asked for at once.
  __device__ void Merge(int batch, float (&lse)[2], float (&factor)[2]) {
    const float* lses[2];
    float weights[2][kAhead], shift[2], inverse[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      lses[h] = arguments_.results.part_lses + batch * arguments_.results.parts + first_[h];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        weights[h][i] = i < Parts(h) ? lses[h][i] : kMinusInfinity;
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float most = lse[h];
      const auto for_each = [&](const auto& f) {
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          f(weights[h][i]);
        }
        for (int i = kAhead; i < Parts(h); ++i) {
          f(lses[h][i]);
        }
      };
      for_each([&](float part) { most = fmaxf(most, part); });
      shift[h] = most == kMinusInfinity ? 0 : most;
      const float own = expf(lse[h] - shift[h]);
      float sum = own;
      for_each([&](float part) { sum += expf(part - shift[h]); });
      const bool nothing = sum == 0;
      inverse[h] = nothing ? 0 : 1 / sum;
      Scale(h, factor[h] * own * inverse[h]);
      factor[h] = 1;
      lse[h] = nothing ? kMinusInfinity : shift[h] + logf(sum);
    }
    const int most_parts = max(Parts(0), Parts(1));
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (__any_sync(0xFFFFFFFF, i < most_parts)) {
        AddParts(i, batch, expf(weights[0][i] - shift[0]) * inverse[0],
                 expf(weights[1][i] - shift[1]) * inverse[1]);
      }
    }
    for (int i = kAhead; __any_sync(0xFFFFFFFF, i < most_parts); ++i) {
      const auto weight = [&](int h) {
        return i < Parts(h) ? expf(lses[h][i] - shift[h]) * inverse[h] : 0;
      };
      AddParts(i, batch, weight(0), weight(1));
    }
  }

  __device__ int Parts(int h) const { return static_cast<int>(end_[h] - first_[h]); }

  __device__ void Scale(int h, float factor) {
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) {
      if ((i / 2 & 1) == h) {
        out_[i] *= factor;
      }
    }
  }

  // Adds part i of both rows, where they have so many.
  __device__ void AddParts(int i, int batch, float weight0, float weight1) {
    const Results& results = arguments_.results;
    float2 pairs[2][kHeadDim / 8];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float* part = results.part_outs + (batch * results.parts + first_[h] + i) * kHeadDim;
#pragma unroll
      for (int block = 0; block < kHeadDim / 8; ++block) {
        pairs[h][block] = make_float2(0, 0);
        if (i < Parts(h)) {
          pairs[h][block] =
              __ldcs(reinterpret_cast<const float2*>(part + 8 * block) + group_.lane % 4);
        }
      }
    }
#pragma unroll
    for (int block = 0; block < kHeadDim / 8; ++block) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float weight = h == 0 ? weight0 : weight1;
        out_[4 * block + 2 * h] = fmaf(weight, pairs[h][block].x, out_[4 * block + 2 * h]);
        out_[4 * block + 2 * h + 1] = fmaf(weight, pairs[h][block].y, out_[4 * block + 2 * h + 1]);
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

  // Stores 32 columns of a row, and what their rounding leaves over, at `at` of the results.
  __device__ void StoreColumns(int64_t at, int column, int h, float factor, bool real) {
    const Results& results = arguments_.results;
    uint32_t block[4], rest[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int i = 4 * (column / 8 + j) + 2 * h;
      const float low = out_[i] * factor, high = out_[i + 1] * factor;
      block[j] = Element::Pack(low, high);
      const auto low_rest =
          static_cast<uint8_t>(RestOf<Element>(low, static_cast<uint16_t>(block[j])));
      const auto high_rest =
          static_cast<uint8_t>(RestOf<Element>(high, static_cast<uint16_t>(block[j] >> 16)));
      rest[j] = low_rest | uint32_t{high_rest} << 8;
    }
    Gather(block);
    at += column + 8 * (group_.lane % 4);
    if (real) {
      *reinterpret_cast<uint4*>(static_cast<uint16_t*>(results.out) + at) =
          make_uint4(block[0], block[1], block[2], block[3]);
    }
    if (results.rest != nullptr) {
      Gather(rest);
      if (real) {
        *reinterpret_cast<uint2*>(results.rest + at) =
            make_uint2(rest[0] | rest[1] << 16, rest[2] | rest[3] << 16);
      }
    }
  }

  // 32 columns of a row lie with four lanes, two of every eight each; after two exchanges each lane
  // has eight that are neighbours.
  __device__ void Gather(uint32_t (&block)[4]) {
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
  }

  const Arguments& arguments_;
  Shared& shared_;
  const ConsumerGroup<kConsumers> group_;
  StageOf<kKeyStages> keys_;
  Stage values_;
  bool more_ = false;  // whether keys come after those at hand
  // Of the span of the keys at hand: how many there are and, from bit 8 on, its step.
  int packed_, diagonal_;
  // The parts that a row's result is merged with, or twice the part that it is.
  uint32_t first_[2], end_[2];
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
