#pragma once

#include <stdint.h>

#include "attention/kernels/key_tile.cuh"

// What comes to a tile of keys in the backward pass, and what goes from it: all but the products.
namespace ringmaster::attention::kernels {

template <typename Element, int kHeadDim, bool kWithQueries>
class KeyKernel<Element, kHeadDim, kWithQueries>::Loader {
 public:
  __device__ Loader(const KeyArguments& arguments, Shared& shared)
      : arguments_(arguments), shared_(shared) {}

  __device__ void Run(const KeyTile& tile, int batch, const Stage& stage) {
    const int slot = stage.index();
    LoadOwn(tile, batch, slot);
    LoadSeen(shared_.tiles.walk[slot], batch);
  }

 private:
  __device__ void LoadOwn(const KeyTile& tile, int batch, int slot) {
    uint64_t* full = &shared_.tiles.pipeline.full[slot];
    sm90::ArriveExpecting(full, sizeof(shared_.keys[slot]));
    LoadRows(shared_.keys[slot], arguments_.keys, tile.rows, 0, batch, full);
    shared_.values_pipeline.AwaitEmpty(values_);
    uint64_t* values_full = &shared_.values_pipeline.full[values_.index()];
    sm90::ArriveExpecting(values_full, sizeof(shared_.values));
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
      sm90::ArriveExpecting(full, sizeof(shared_.queries[at]) + sizeof(shared_.douts[at]) +
                                      sizeof(shared_.starts[at]));
      sm90::LoadBox(shared_.starts[at].of_row, starts, full, 0, rows.head / 2, rows.residue,
                    rows.first, batch);
      LoadRows(shared_.queries[at], arguments_.queries, rows, 0, batch, full);
      LoadRows(shared_.douts[at], arguments_.douts, rows, 0, batch, full);
    }
  }

  const KeyArguments& arguments_;
  Shared& shared_;
  Stage stage_;
  StageOf<1> values_;
};

// Fetches the sums that the consumers will add to when they are through.
template <typename Element, int kHeadDim, bool kWithQueries>
class KeyKernel<Element, kHeadDim, kWithQueries>::Fetcher {
 public:
  __device__ Fetcher(const KeyArguments& arguments, Shared&, int lane)
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
      if (arguments_.SumsBeside(token, tile.rows.head) & kSumsBefore) {
        const float* dk = SumsAt(arguments_.dk[view], batch, token, tile.rows.head);
        const float* dv = SumsAt(arguments_.dv[view], batch, token, tile.rows.head);
#pragma unroll
        for (int column = 0; column < kHeadDim; column += kNumbersOfLine) {
          sm90::Prefetch(dk + column);
          sm90::Prefetch(dv + column);
        }
      }
    }
  }

 private:
  const KeyArguments& arguments_;
  const int lane_;
};

// Adds the columns of dQ that the consumers hand over; blocks that hold other keys add to the same
// rows. The first lane of a warp of its own does: a consumer would multiply nothing meanwhile.
template <typename Element, int kHeadDim, bool kWithQueries>
class KeyKernel<Element, kHeadDim, kWithQueries>::Writer {
 public:
  __device__ Writer(const KeyArguments& arguments, Shared& shared, int)
      : arguments_(arguments), shared_(shared) {}

  __device__ void Run(const KeyTile&, int batch, const Stage& stage) {
    if (sm90::IsElected()) {
      for (bool more = !shared_.tiles.walk[stage.index()].done(); more; stage_.Next()) {
        const int at = stage_.index();
        shared_.pipeline.AwaitFull(stage_);
        more = !shared_.blocks.last[at];
        const TileRows rows = shared_.blocks.left[at].rows;
        sm90::Arrive(&shared_.pipeline.empty[at]);
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
        sm90::AddBox(map, shared_.dq[consumer].columns[i], consumer * kShare + i * kSumColumns,
                     rows.head, residue, row, batch);
      }
      sm90::CommitBoxes();
    }
    sm90::AwaitBoxesRead();
#pragma unroll
    for (int consumer = 0; consumer < kConsumers; ++consumer) {
      sm90::Arrive(&shared_.dq_pipelines[consumer].empty[dq_stage_.index()]);
    }
    dq_stage_.Next();
  }

  const KeyArguments& arguments_;
  Shared& shared_;
  Stage stage_;
  StageOf<1> dq_stage_;
};

}  // namespace ringmaster::attention::kernels
