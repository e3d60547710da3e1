// Forward attention over tiles on Hopper: consumers hold 64 queries each and the running softmax of
// their rows in registers. The scores of the next keys are multiplied while the softmax of the
// present ones is computed (FlashAttention-3, sections 3.1 and 3.2, arXiv 2407.08608).
#include <limits>
#include <tuple>

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
class ForwardKernel<Element, kHeadDim>::Consumer {
 public:
  __device__ Consumer(const Arguments& arguments, Shared& shared, int group)
      : arguments_(arguments), shared_(shared), group_(group) {
    group_.StartTurns();
  }

  __device__ void Run(const Tile& tile, int batch, const Stage& stage) {
    const int slot = stage.index();
    Start();
    AskWhereTo(tile);
    shared_.tiles.pipeline.AwaitFull(stage);
    if (!shared_.tiles.walk[slot].done()) {
      AwaitKeys();
      group_.AwaitTurn();
      Multiply(scores_, shared_.queries[slot][group_.index], shared_.keys[keys_.index()]);
      group_.GiveTurn();
      AwaitProducts<0>();
      PinRegisters(scores_);
      TakeScores();
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
        TakeScores();
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
    Store(tile, batch, slot);
  }

 private:
  // The scores of the keys awaited last are there.
  __device__ void TakeScores() {
    group_.Release(shared_.key_pipeline, keys_.index());
    keys_.Next();
    Hide();
  }

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

  __device__ void Store(const Tile& tile, int batch, int slot) {
    const Results& results = arguments_.results;
    float lse[2], factor[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float sum = sum_[h];
      sum += __shfl_xor_sync(0xFFFFFFFF, sum, 1);
      sum += __shfl_xor_sync(0xFFFFFFFF, sum, 2);
      // No key was seen; a sum that is NaN goes on.
      const bool nothing = sum == 0;
      factor[h] = nothing ? 0 : __fdividef(1, sum);
      lse[h] = nothing ? kMinusInfinity : fmaf(most_[h], arguments_.scale_log2, Log2(sum)) * kLn2;
    }
    const bool merge = results.merge_begin != nullptr;
    if (merge) {
      Merge(batch, lse, factor);
    }
    unsigned whole_rows = 0;
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
      whole_rows |= (__ballot_sync(0xFFFFFFFF, real && whole) & 0x11111111) << h;
      if (real && !whole) {
        StorePart(results.part_outs + part * kHeadDim, h, factor[h]);
      }
    }
    if (whole_rows != 0) {
      StoreWhole(tile, batch, slot, factor, whole_rows);
    }
  }

  // Merges the other parts of the rows' places into them, as mix.h says; the numbers of a row are
  // multiplied with its factor yet. What both rows wait for is asked for at once.
  __device__ void Merge(int batch, float (&lse)[2], float (&factor)[2]) {
    const float* lses[2];
    float ahead[2][kAhead], shift[2], inverse[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      lses[h] = arguments_.results.part_lses + batch * arguments_.results.parts + first_[h];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        ahead[h][i] = i < Parts(h) ? lses[h][i] : kMinusInfinity;
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float most = lse[h];
      const auto for_each = [&](const auto& f) {
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          f(ahead[h][i]);
        }
#pragma unroll 1
        for (int i = kAhead; i < Parts(h); ++i) {
          f(lses[h][i]);
        }
      };
      for_each([&](float part) { most = fmaxf(most, part); });
      shift[h] = most == kMinusInfinity ? 0 : most;
      const float own = Exp2((lse[h] - shift[h]) * kLog2e);
      float sum = own;
      for_each([&](float part) { sum += Exp2((part - shift[h]) * kLog2e); });
      const bool nothing = sum == 0;
      inverse[h] = nothing ? 0 : __fdividef(1, sum);
      Scale(h, factor[h] * own * inverse[h]);
      factor[h] = 1;
      lse[h] = nothing ? kMinusInfinity : fmaf(Log2(sum), kLn2, shift[h]);
    }
    // Not unrolled: instructions that are met once a tile wait to be fetched.
    const int most_parts = max(Parts(0), Parts(1));
#pragma unroll 1
    for (int i = 0; __any_sync(0xFFFFFFFF, i < most_parts); ++i) {
      float weights[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float part = i < Parts(h) ? lses[h][i] : kMinusInfinity;
        weights[h] = Exp2((part - shift[h]) * kLog2e) * inverse[h];
      }
      AddParts(i, batch, weights);
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
  __device__ void AddParts(int i, int batch, const float (&weights)[2]) {
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
        const int i = 4 * block + 2 * h;
        out_[i] = fmaf(weights[h], pairs[h][block].x, out_[i]);
        out_[i + 1] = fmaf(weights[h], pairs[h][block].y, out_[i + 1]);
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

  // Stores whole rows and what their rounding leaves over, by way of the tile's queries' memory,
  // which nobody needs any more: each warp the 16 rows that it holds. Bit 4 * (i % 8) + i / 8 of
  // `whole_rows`: whether row i of them is whole.
  __device__ void StoreWhole(const Tile& tile, int batch, int slot, const float (&factor)[2],
                             unsigned whole_rows) {
    const Results& results = arguments_.results;
    auto& shared = shared_.queries[slot][group_.index];
    uint32_t packed[kHeadDim / 16][4], rest[kHeadDim / 32][4];
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) {
      out_[i] *= factor[i / 2 & 1];
    }
    Pack<Element>(out_, packed);
    if (results.rest != nullptr) {
      PackRest(packed, rest);
    }
    StoreRows(packed, 0, group_.lane, shared);
    __syncwarp();
    StorePieces<8>(tile, batch, shared, whole_rows, [&](int64_t at, const uint4& piece) {
      *reinterpret_cast<uint4*>(static_cast<uint16_t*>(results.out) + at) = piece;
    });
    if (results.rest != nullptr) {
      __syncwarp();
      StoreRows(rest, 0, group_.lane, shared);
      __syncwarp();
      StorePieces<16>(tile, batch, shared, whole_rows, [&](int64_t at, const uint4& piece) {
        *reinterpret_cast<uint4*>(results.rest + at) = make_uint4(
            __byte_perm(piece.x, piece.y, 0x5410), __byte_perm(piece.z, piece.w, 0x5410),
            __byte_perm(piece.x, piece.y, 0x7632), __byte_perm(piece.z, piece.w, 0x7632));
      });
    }
  }

  // What rounding leaves over, a byte each: where `packed` has the columns of two blocks of eight,
  // a half of rest has them.
  __device__ void PackRest(const uint32_t (&packed)[kHeadDim / 16][4],
                           uint32_t (&rest)[kHeadDim / 32][4]) {
#pragma unroll
    for (int block = 0; block < kHeadDim / 16; ++block) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int i = 8 * block + 2 * h;
        rest[block / 2][2 * (block % 2) + h] =
            RestsOf<Element>({out_[i], out_[i + 1], out_[i + 4], out_[i + 5]}, packed[block][h],
                             packed[block][2 + h]);
      }
    }
  }

  // Calls f(where, piece) for the 16 bytes of each kColumnsOfPiece columns of the warp's whole
  // rows.
  template <int kColumnsOfPiece, typename Rows, typename F>
  __device__ void StorePieces(const Tile& tile, int batch, Rows& shared, unsigned whole_rows,
                              const F& f) {
    constexpr int kPieces = kHeadDim / kColumnsOfPiece;
    constexpr int kRowsAtOnce = 32 / kPieces;
    const int row_of_warp = threadIdx.x % kWarpGroup / 32 * 16;
    const int piece = group_.lane % kPieces;
    const int first = group_.lane / kPieces;
    const int64_t place =
        batch * arguments_.tokens * arguments_.heads +
        PlaceOf(arguments_, tile.rows, group_.index * kRowsOfConsumer + row_of_warp + first);
    const int64_t step =
        kRowsAtOnce * kHeadDim * arguments_.heads * arguments_.query_steps[tile.rows.view];
    int64_t at = place * kHeadDim + kColumnsOfPiece * piece;
#pragma unroll 2
    for (int i = first; i < 16; i += kRowsAtOnce, at += step) {
      if ((whole_rows >> (4 * (i % 8) + i / 8) & 1) != 0) {
        f(at, *reinterpret_cast<const uint4*>(PieceOf(shared, row_of_warp + i, 8 * piece)));
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
