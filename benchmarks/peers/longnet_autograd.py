"""LongNet attention written for autograd: as gathers, as torchscale computes it, and for FlexAttention. q, k, v [N, H, D].

The first two mix the branches with constant weights, as torchscale does and as eager fused attention suggests, which has
no gradient through its denominators; what that makes of the gradients of q and k is another function than the exact one.
"""

import torch

from flex_blocks import blocks_of, flex_attention
from longnet_parts import attend, pad, parts_of

# What stands for the denominator of a row without keys, in torchscale.
NO_KEYS = -1e8


def row_groups(tokens, heads, branches, device):
    """For each branch the rows of q [N * H, D] by number, [segments, rows, heads of as many rows] each."""
    number = torch.arange(tokens * heads, device=device).view(tokens, heads)
    groups = []
    for parts in parts_of(tokens, heads, branches):
        by_rows = {}
        for part in parts:
            by_rows.setdefault(part.rows, []).append(part.view(number).transpose(1, 2))
        groups.append([torch.cat(numbers, 2) for numbers in by_rows.values()])
    return groups


def gather(q, k, v, groups, causal=True):
    """Rows by index, one attention for each branch (two where the rate does not divide the segment), scattered and mixed."""
    tokens, heads, dim = q.shape
    flat = [x.reshape(tokens * heads, dim) for x in (q, k, v)]
    outs, lses = [], []
    for branch in groups:
        out = q.new_zeros(tokens * heads, dim)
        lse = torch.full((tokens * heads,), float('-inf'), device=q.device)
        for index in branch:
            rows = index.reshape(-1)
            own, own_lse = attend(*(x.index_select(0, rows).view(*index.shape, dim).transpose(1, 2) for x in flat), causal)
            out.index_copy_(0, rows, own.transpose(1, 2).reshape(-1, dim))
            lse.index_copy_(0, rows, own_lse.detach().to(lse.dtype).transpose(1, 2).reshape(-1))
        outs.append(out)
        lses.append(lse)
    weights = torch.softmax(torch.stack(lses), 0).to(q.dtype)
    return sum(w.unsqueeze(-1) * o for w, o in zip(weights, outs)).view(tokens, heads, dim)


def torchscale(q, k, v, branches, causal=True):
    """Heads are dealt to offsets in contiguous groups, by the diagonal of (offset of token, group of heads); what is not on
    it becomes zeros again, with denominators that weigh nothing. Here segments are cut to length after they were padded."""
    outs, lses = [], []
    for w, r in branches:
        w = min(w, q.shape[0])
        out, lse = attend(*(on_diagonal(x, w, r) for x in (q, k, v)), causal)
        outs.append(off_diagonal(out, q.shape, w, r))
        with torch.no_grad():
            lses.append(off_diagonal(lse.unsqueeze(-1), (*q.shape[:2], 1), w, r))
            lses[-1].masked_fill_(lses[-1] == 0, NO_KEYS)
    with torch.no_grad():
        lses = torch.stack(lses)
        weights = torch.exp(lses - lses.amax(0))
        weights /= weights.sum(0)
    return sum(out * weight.to(out.dtype) for out, weight in zip(outs, weights))


def on_diagonal(x, w, r):
    """[N, H, D] as [segments, r * heads a group, rows, D]."""
    x = x.reshape(-1, w, *x.shape[1:])
    x = pad(pad(x, 2, 0, -x.shape[2] % r, 0), 1, 0, -w % r, 0)
    segments, length, heads, dim = x.shape
    x = x.view(segments, length // r, r, r, heads // r, dim).diagonal(0, 2, 3)  # [segments, rows, heads a group, D, r]
    return x.permute(0, 1, 4, 2, 3).reshape(segments, length // r, heads, dim).transpose(1, 2)


def off_diagonal(x, shape, w, r):
    """The inverse of on_diagonal, with zeros elsewhere: [N, H, D]."""
    segments, heads, rows, dim = x.shape
    x = x.transpose(1, 2).reshape(segments, rows, r, heads // r, dim).permute(0, 1, 3, 4, 2)
    x = torch.diag_embed(x, 0, 2, 3)  # [segments, rows, r, r, heads a group, D]
    return x.reshape(segments, rows * r, heads, dim)[:, :w, :shape[1]].reshape(shape)


class Flex:
    """FlexAttention on tokens that lie ordered by their residue modulo the largest rate inside each longest segment, so that
    every branch is made of whole blocks. One softmax: a key of m branches counts m times by adding log(m) to its score.
    Inputs are taken as lying in that order already."""

    def __init__(self, tokens, heads, branches, device, compiled, block, slice_tokens):
        self.branches = [(min(w, tokens), r) for w, r in branches]
        self.segment, self.rate = max(w for w, _ in self.branches), max(r for _, r in self.branches)
        self.rows = self.segment // self.rate
        if any(self.rate % r or w % (self.rate * block) for w, r in self.branches) or tokens % self.segment:
            raise ValueError(f'rates must divide {self.rate}, segments be multiples of {self.rate} x {block}')
        self.heads, self.device = heads, device
        self.times, self.visible, self.score = modifiers(self.branches, self.rate, self.rows)
        self.attention = flex_attention(compiled, device)
        self.slice = slice_tokens if tokens % slice_tokens == 0 and slice_tokens % self.segment == 0 else tokens
        self.mask = self.blocks(block)

    def blocks(self, block):
        """Which blocks are looked at; full ones are strictly earlier everywhere."""
        first = torch.arange(0, self.segment, block, device=self.device)
        head = torch.arange(self.heads, device=self.device)[:, None, None]
        any_branch = self.times(head, first[:, None], first) > 0
        q_rows, k_rows = first[:, None] % self.rows, first % self.rows
        full, partial = any_branch & (k_rows < q_rows), any_branch & (k_rows == q_rows)
        return blocks_of(partial, full, block, self.segment, self.visible)

    def order(self, tokens):
        """Of all tokens, in residue-major order: which one lies where."""
        inside = torch.arange(self.segment, device=self.device).view(self.rows, self.rate).t().reshape(-1)
        return (torch.arange(0, tokens, self.segment, device=self.device)[:, None] + inside).reshape(-1)

    def __call__(self, q, k, v):
        """q, k, v [N, H, D] in residue-major order."""
        outs = []
        for own in zip(*(x.split(self.slice) for x in (q, k, v))):
            own = (x.view(-1, self.segment, *x.shape[1:]).transpose(1, 2) for x in own)
            out = self.attention(*own, score_mod=self.score, block_mask=self.mask)
            outs.append(out.transpose(1, 2).reshape(-1, *q.shape[1:]))
        return outs[0] if len(outs) == 1 else torch.cat(outs)


def modifiers(branches, rate, rows):
    """For tokens in residue-major order: how many branches show `key` to `query`, causality aside; whether any does, and it
    is not later; and the score that it gets for it."""

    def times(head, query, key):
        q_residue, k_residue, q_row, k_row = query // rows, key // rows, query % rows, key % rows
        count = 0
        for w, r in branches:
            together = q_row // (w // rate) == k_row // (w // rate)
            count = count + (together & (q_residue % r == head % r) & (k_residue % r == head % r)).to(torch.int32)
        return count

    def visible(_batch, head, query, key):
        earlier = query % rows * rate + query // rows >= key % rows * rate + key // rows
        return (times(head, query, key) > 0) & earlier

    def score(value, _batch, head, query, key):
        return value + torch.log(times(head, query, key).to(torch.float32))

    return times, visible, score


def dense(q, k, v, causal=True):
    """Attention of all tokens, by cuDNN where there is a GPU."""
    inputs = (x[None].transpose(1, 2) for x in (q, k, v))
    return attend(*inputs, causal)[0].transpose(1, 2)[0]
