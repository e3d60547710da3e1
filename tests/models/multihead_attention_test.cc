#include "models/multihead_attention.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <string>
#include <vector>

#include "attention/dilated_attention.h"
#include "gtest/gtest.h"
#include "tests/models/small_models.h"

namespace ringmaster::models {
namespace {

constexpr int64_t kTokens = 37;

// [heads, tokens, tokens]: in how many branches a query of a head sees a key.
at::Tensor Multiplicity(const LongNetConfig& config, int64_t tokens) {
  at::Tensor counts = at::zeros({config.heads, tokens, tokens}, at::kDouble);
  auto count = counts.accessor<double, 3>();
  for (const auto& [w, r] : config.attention.branches) {
    for (int64_t head = 0; head < config.heads; ++head) {
      const int64_t offset = config.attention.offset_mode == attention::OffsetMode::kPaper
                                 ? head % r
                                 : head / ((config.heads + r - 1) / r);
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t s = t / w * w; s <= t && t % w % r == offset; ++s) {
          count[head][t][s] += s % w % r == offset ? 1 : 0;
        }
      }
    }
  }
  return counts;
}

// The layer written down from its definition: dense, positions counted from the sequence's start.
at::Tensor Restated(const LongNetConfig& config, const std::vector<at::Tensor>& p,
                    const at::Tensor& x) {
  const int64_t tokens = x.size(1), size = config.head_dim(), half = size / 2;
  const at::Tensor position = at::arange(tokens, at::kDouble).view({-1, 1, 1});
  const at::Tensor share = at::arange(half, at::kDouble) / static_cast<double>(half);
  const at::Tensor angle = position * at::pow(10000.0, -share);
  const at::Tensor decay = at::pow((share + 0.4) / 1.4, position / 512);
  const auto turned = [&](const at::Tensor& y, double direction) {
    if (config.positions == Positions::kNone) return y;
    const auto pair = y.chunk(2, -1);
    const at::Tensor factor =
        config.positions == Positions::kXpos ? decay.pow(direction) : at::ones_like(decay);
    return at::cat({pair[0] * angle.cos() - pair[1] * angle.sin(),
                    pair[1] * angle.cos() + pair[0] * angle.sin()},
                   -1) *
           at::cat({factor, factor}, -1);
  };
  const auto heads = [&](int64_t i, int64_t count) {
    return (x.matmul(p[i].t()) + p[i + 1]).view({x.size(0), tokens, count, size});
  };
  const int64_t group = config.heads / config.kv_heads;
  const at::Tensor q = turned(heads(0, config.heads), 1).transpose(1, 2);
  const at::Tensor k =
      turned(heads(2, config.kv_heads), -1).repeat_interleave(group, 2).transpose(1, 2);
  const at::Tensor v = heads(4, config.kv_heads).repeat_interleave(group, 2).transpose(1, 2);
  const at::Tensor scores = q.matmul(k.transpose(-1, -2)) / std::sqrt(static_cast<double>(size));
  const at::Tensor weights = scores.exp() * Multiplicity(config, tokens);
  const at::Tensor sums = weights.sum(-1, /*keepdim=*/true);
  at::Tensor y = (weights / (sums + sums.eq(0)))
                     .matmul(v)
                     .transpose(1, 2)
                     .reshape({x.size(0), tokens, config.dim});
  if (config.sub_ln) {
    y = y - y.mean(-1, true);
    y = y / (y.square().mean(-1, true) + 1e-5).sqrt() * p[6] + p[7];
  }
  return y.matmul(p[config.sub_ln ? 8 : 6].t()) + p[config.sub_ln ? 9 : 7];
}

struct Case {
  LongNetConfig config;
  std::vector<at::Tensor> parameters;
  at::Tensor x;

  explicit Case(const LongNetConfig& with) : config(with) {
    const TestModel m(config);
    for (int64_t i = 0; i < MultiheadAttentionParameters(config); ++i) {
      EXPECT_NE(m.layout.specs()[3 + i].name.find("layers.0.attention."), std::string::npos);
      parameters.push_back(m.parameters[3 + i].clone().set_requires_grad(true));
    }
    at::manual_seed(5);
    x = at::randn({2, kTokens, config.dim}, at::kDouble).set_requires_grad(true);
  }
};

std::vector<LongNetConfig> Configs() {
  std::vector<LongNetConfig> configs;
  for (const Positions positions : {Positions::kRotary, Positions::kXpos, Positions::kNone}) {
    for (const bool sub_ln : {true, false}) {
      configs.push_back(SmallConfig());
      configs.back().positions = positions;
      configs.back().sub_ln = sub_ln;
      // Rows that no branch covers, heads of one group in different residues.
      configs.back().attention.branches = {{8, 2}, {24, 3}};
      configs.back().attention.offset_mode =
          sub_ln ? attention::OffsetMode::kPaper : attention::OffsetMode::kTorchscale;
    }
  }
  return configs;
}

TEST(MultiheadAttentionTest, AgreesWithAPlainRestatementAndItsGradients) {
  for (const LongNetConfig& config : Configs()) {
    const Case c(config);
    const std::vector<int64_t> positions =
        attention::ShardMap::Contiguous(kTokens, 1, 1).Positions(0);
    const RotaryTables rotary = MakeRotaryTables(config, positions, c.x.options());
    const at::Tensor found =
        MultiheadAttention(config, c.parameters, rotary, c.x, [&](const QueryKeyValue& qkv) {
          return attention::DilatedAttention(qkv.query, qkv.key, qkv.value, config.attention).out;
        });
    const at::Tensor expected = Restated(config, c.parameters, c.x);
    EXPECT_TRUE(at::allclose(found, expected, 1e-11, 1e-11));
    std::vector<at::Tensor> inputs = c.parameters;
    inputs.push_back(c.x);
    const at::Tensor dout = at::randn_like(found);
    const auto ours = torch::autograd::grad({found}, inputs, {dout});
    const auto theirs = torch::autograd::grad({expected}, inputs, {dout});
    for (size_t i = 0; i < inputs.size(); ++i) {
      EXPECT_TRUE(at::allclose(ours[i], theirs[i], 1e-9, 1e-9)) << "input " << i;
    }
  }
}

// Positions are the sequence's, not the rank's, and are applied before rows are exchanged.
TEST(MultiheadAttentionTest, RanksGiveTheRestatementsRows) {
  for (const LongNetConfig& config : Configs()) {
    const Case c(config);
    const at::Tensor expected = Restated(config, c.parameters, c.x).detach();
    const auto map = attention::ShardMap::Contiguous(kTokens, 3, 1);
    OnRanks(3, [&](int rank, attention::GroupedExchange& exchange) {
      const at::NoGradGuard no_grad;
      const RotaryTables rotary = MakeRotaryTables(config, map.Positions(rank), c.x.options());
      const at::Tensor found = MultiheadAttention(
          config, c.parameters, rotary, LocalTokens(c.x, map, rank), [&](const QueryKeyValue& qkv) {
            return attention::DilatedAttention(qkv.query, qkv.key, qkv.value, config.attention, map,
                                               &exchange)
                .out;
          });
      EXPECT_TRUE(at::allclose(found, LocalTokens(expected, map, rank), 1e-11, 1e-11)) << rank;
    });
  }
}

}  // namespace
}  // namespace ringmaster::models
