#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <cstdint>
#include <random>
#include <thread>
#include <vector>

#include "attention/dilated_attention.h"
#include "models/longnet.h"
#include "models/parameters.h"
#include "worker/comm/in_process_exchange.h"

namespace ringmaster::models {

// Two blocks, GQA, three branches of which none divides 37 tokens.
inline LongNetConfig SmallConfig() {
  LongNetConfig config;
  config.layers = 2;
  config.dim = 16;
  config.heads = 4;
  config.kv_heads = 2;
  config.ffn_dim = 24;
  config.vocab_size = 256;
  config.attention.branches = {{8, 1}, {24, 2}, {64, 3}};
  return config;
}

// A model with its parameters, away from their initial values where those are 0 or 1.
struct TestModel {
  explicit TestModel(const LongNetConfig& config, at::ScalarType dtype = at::kDouble,
                     uint64_t seed = 1)
      : model(*LongNet::Create(config)), layout(ParameterSpecs(config)) {
    at::set_num_threads(1);
    flat = at::zeros({layout.size()}, dtype);
    parameters = layout.Views(flat);
    std::vector<ParameterSpec> specs = layout.specs();
    for (ParameterSpec& spec : specs) {
      spec.stddev = std::max(spec.stddev, 0.1);
    }
    InitializeParameters(specs, seed, parameters);
    ClearGradients();
  }

  void ClearGradients() {
    flat_gradients = at::zeros_like(flat);
    gradients = layout.Views(flat_gradients);
  }

  LongNet model;
  ParameterLayout layout;
  at::Tensor flat;
  std::vector<at::Tensor> parameters;
  at::Tensor flat_gradients;
  std::vector<at::Tensor> gradients;
};

inline at::Tensor RandomTokens(int64_t batch, int64_t tokens, int64_t vocab, uint64_t seed) {
  std::mt19937_64 random(seed);
  at::Tensor result = at::zeros({batch, tokens}, at::kLong);
  for (int64_t i = 0; i < batch * tokens; ++i) {
    result.mutable_data_ptr<int64_t>()[i] = static_cast<int64_t>(random() % vocab);
  }
  return result;
}

inline SequenceShard WholeSequence(const TestModel& m, int64_t tokens) {
  return m.model.Place(attention::ShardMap::Contiguous(tokens, 1, 1), 0, nullptr, m.flat.options());
}

// The columns of `whole` [B, N, ...] that `rank` holds.
inline at::Tensor LocalTokens(const at::Tensor& whole, const attention::ShardMap& map, int rank) {
  const std::vector<int64_t> positions = map.Positions(rank);
  at::Tensor index = at::zeros({static_cast<int64_t>(positions.size())}, at::kLong);
  std::copy(positions.begin(), positions.end(), index.mutable_data_ptr<int64_t>());
  return whole.index_select(1, index);
}

// Runs `body(rank, exchange)` on a thread for each of `ranks` ranks.
template <typename Body>
void OnRanks(int ranks, Body body) {
  const auto communicators = worker::ConnectInProcess(ranks);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      at::set_num_threads(1);
      body(rank, communicators[rank]->world());
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
}

// The sum over the ranks of a map of what a pass of each, a thread with a model of its own, gives.
struct RanksSum {
  double loss = 0;
  at::Tensor flat_gradients;
};
inline RanksSum ForwardBackwardOnRanks(
    const LongNetConfig& config, const attention::ShardMap& map, const at::Tensor& tokens,
    const at::Tensor& labels, const LongNet::PassOptions& options,
    attention::Strategy strategy = attention::Strategy::kGrouped) {
  std::vector<RanksSum> parts(map.ranks());
  OnRanks(map.ranks(), [&](int rank, attention::GroupedExchange& exchange) {
    TestModel m(config);
    const SequenceShard shard = m.model.Place(map, rank, &exchange, m.flat.options(), strategy);
    const at::Tensor loss =
        m.model.ForwardBackward(m.parameters, shard, LocalTokens(tokens, map, rank),
                                LocalTokens(labels, map, rank), 1, m.gradients, options);
    parts[rank] = {loss.item<double>(), m.flat_gradients};
  });
  RanksSum sum{.flat_gradients = at::zeros_like(parts[0].flat_gradients)};
  for (const RanksSum& part : parts) {
    sum.loss += part.loss;
    sum.flat_gradients.add_(part.flat_gradients);
  }
  return sum;
}

}  // namespace ringmaster::models
