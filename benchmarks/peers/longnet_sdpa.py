#!/usr/bin/env python3
"""What a PyTorch user would write: LongNet attention as gathers and eager SDPA, and dense causal SDPA.

  longnet_sdpa.py [--threads T] [--repeats R] [--dense-repeats R] N...

Prints one JSON line for each length and each of the two, like attention_benchmark. The restatement computes the
operator's function (each head selects `head mod r`), with torchscale's detached mixing weights, as eager SDPA does not
return its denominators' gradient. All heads get as many rows of a segment: where its length is no multiple of the rate, as
with rates 6 and 12 here, heads of low offset go without their last row, from 4096 tokens on under 0.2 % of the branch's
rows. A length must be a multiple of the segments that are shorter.
"""

import argparse
import json
import time

import torch

HEADS, HEAD_DIM = 8, 64
BRANCHES = [(2048, 1), (4096, 2), (8192, 4), (16384, 6), (32768, 12)]


def rows_of(tokens, w, r):
    """For each head the selected tokens of each full segment, [segments, HEADS, rows]; all heads get as many rows."""
    w = min(w, tokens)
    rows = w // r
    starts = torch.arange(tokens // w) * w
    offsets = torch.arange(HEADS) % r
    return starts[:, None, None] + offsets[None, :, None] + torch.arange(rows)[None, None, :] * r


class BranchAttention(torch.autograd.Function):
    """SDPA that also returns the log of its denominators, without a gradient through them."""

    @staticmethod
    def forward(ctx, q, k, v):
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    def backward(ctx, dout, _):
        q, k, v, out, lse = ctx.saved_tensors
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(dout, q, k, v, out, lse, 0.0, True)


def longnet(q, k, v, plans):
    """q, k, v [1, N, H, D]."""
    _, tokens, heads, size = q.shape
    outs, lses = [], []
    flat_q, flat_k, flat_v = (x.reshape(tokens * heads, size) for x in (q, k, v))
    for index, shape in plans:
        gathered = (x.index_select(0, index).view(*shape, size) for x in (flat_q, flat_k, flat_v))
        out, lse = BranchAttention.apply(*gathered)
        whole = out.new_zeros(tokens * heads, size).index_copy(0, index, out.reshape(-1, size))
        whole_lse = lse.new_full((tokens * heads,), float('-inf')).index_copy(0, index, lse.reshape(-1))
        outs.append(whole)
        lses.append(whole_lse)
    weights = torch.softmax(torch.stack(lses), 0).detach()
    return sum(w[:, None] * o for w, o in zip(weights, outs)).view(1, tokens, heads, size)


def dense(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def measure(who, function, tokens, repeats):
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, tokens, HEADS, HEAD_DIM, requires_grad=True) for _ in range(3))
    dout = torch.randn(1, tokens, HEADS, HEAD_DIM)
    forward, both = [], []
    warm_ups = 1 if repeats > 1 else 0  # a single run takes minutes: its first page faults do not count
    for i in range(warm_ups + repeats):
        start = time.perf_counter()
        out = function(q, k, v)
        middle = time.perf_counter()
        torch.autograd.grad(out, (q, k, v), dout)
        if i >= warm_ups:
            forward.append(middle - start)
            both.append(time.perf_counter() - start)
    print(json.dumps({'benchmark': 'attention', 'who': who, 'tokens': tokens, 'heads': HEADS, 'head_dim': HEAD_DIM,
                      'dtype': 'fp32', 'threads': torch.get_num_threads(), 'repeats': repeats,
                      'forward_s': round(sorted(forward)[repeats // 2], 6),
                      'forward_backward_s': round(sorted(both)[repeats // 2], 6),
                      'best_forward_backward_s': round(min(both), 6)}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--threads', type=int)
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--dense-repeats', type=int, help='of the quadratic one; default: --repeats')
    parser.add_argument('tokens', type=int, nargs='+')
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    for tokens in args.tokens:
        plans = []
        for w, r in BRANCHES:
            rows = rows_of(tokens, w, r)
            index = (rows * HEADS + torch.arange(HEADS)[None, :, None]).reshape(-1)
            plans.append((index, rows.shape))
        measure('pytorch-longnet', lambda q, k, v, p=plans: longnet(q, k, v, p), tokens, args.repeats)
        measure('pytorch-dense', dense, tokens, args.dense_repeats or args.repeats)


if __name__ == '__main__':
    main()
