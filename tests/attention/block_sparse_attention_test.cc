#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <limits>

#include "attention/block_mask.h"
#include "attention/reference_attention.h"

namespace ringmaster::attention {
namespace {

// Rows 0 and 3 of the blocks of head 1 see nothing.
BlockMask SomeMask(int64_t tokens) {
  const BlockMaskShape shape = {.heads = 2, .tokens = tokens, .block_size = 64};
  return *BlockMask::Create(shape, [&](int64_t head, int64_t query, BlockRow& row) {
    if (head == 1 && query % 3 == 0) return;
    for (int64_t key = 0; key < shape.blocks(); ++key) {
      if ((head + query + key) % 2 == 0) row.Show(key);
    }
  });
}

// The oracle against another's attention with a mask of pairs, and autograd.
TEST(BlockSparseReferenceTest, IsAttentionWithAMaskOfPairs) {
  at::manual_seed(1);
  const int64_t tokens = 300;
  const BlockMask mask = SomeMask(tokens);
  for (const bool causal : {true, false}) {
    const auto randn = [&](int64_t heads) { return at::randn({1, tokens, heads, 4}, at::kDouble); };
    const at::Tensor q = randn(2), k = randn(1), v = randn(1), dout = randn(2);
    at::Tensor seen = at::zeros({2, tokens, tokens}, at::kBool);
    for (int64_t head = 0; head < 2; ++head) {
      for (int64_t query = 0; query < tokens; ++query) {
        for (int64_t key = 0; key < (causal ? query + 1 : tokens); ++key) {
          seen[head][query][key] = mask.visible(head, query / 64, key / 64);
        }
      }
    }
    const at::Tensor covered = seen.any(-1).transpose(0, 1).unsqueeze(0).unsqueeze(-1);
    for (const at::Tensor& x : {q, k, v}) x.set_requires_grad(true);
    const at::Tensor scores =
        q.transpose(1, 2).matmul(k.permute({0, 2, 3, 1})) * 0.5 +
        at::where(seen, 0.0, -std::numeric_limits<double>::infinity()).to(at::kDouble);
    const at::Tensor weights = at::where(seen.any(-1, true), scores, 0.0).softmax(-1);
    const at::Tensor out =
        at::where(covered, weights.matmul(v.transpose(1, 2)).transpose(1, 2), 0.0);
    const auto gradients = torch::autograd::grad({out}, {q, k, v}, {dout});
    const ReferenceResult got = ReferenceAttention(
        q.detach(), k.detach(), v.detach(), dout.masked_fill(covered.logical_not(), std::nan("")),
        BlockSparseAttentionOptions{.mask = mask, .causal = causal});
    EXPECT_LT(RelativeError(got.out, out), 1e-13);
    EXPECT_TRUE(got.lse.isneginf().equal(covered.squeeze(-1).logical_not()));
    EXPECT_LT(RelativeError(got.lse, scores.logsumexp(-1).transpose(1, 2)), 1e-13);
    EXPECT_LT(RelativeError(got.dq, gradients[0]), 1e-12);
    EXPECT_LT(RelativeError(got.dk, gradients[1]), 1e-12);
    EXPECT_LT(RelativeError(got.dv, gradients[2]), 1e-12);
  }
}

}  // namespace
}  // namespace ringmaster::attention
