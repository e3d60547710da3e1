"""LongNet attention with an exact gradient, as passes beneath autograd over parts of each branch: every part's output is
mixed by its softmax's denominators, and every part's backward pass gets the mixed output and denominators.

How rows get to the attention: `Views` read them in place, `Rows` copies them by index. How parts get together: `EagerSum`
one elementwise operation after the other, `CompiledSum` as kernels of torch.compile.
"""

import torch

from longnet_parts import attend, attend_backward


class Views:
    def __init__(self, part):
        self.part = part

    def take(self, x):
        return self.part.view(x)

    def add(self, x, values):
        self.part.view(x).add_(values)

    def add_product(self, x, values, weight):
        self.part.view(x).addcmul_(values, weight)


class Rows:
    """By index; contiguous copies [segments, rows, heads, ...] seen as [segments, heads, rows, ...]."""

    def __init__(self, part, heads, device):
        tokens = part.segments * part.w
        number = torch.arange(tokens * heads, device=device).view(tokens, heads)
        self.part, self.index = part, part.view(number).transpose(1, 2).reshape(-1)

    def take(self, x):
        return x.flatten(0, 1).index_select(0, self.index).view(self._shape(x)).transpose(1, 2)

    def add(self, x, values):
        x.flatten(0, 1).index_add_(0, self.index, values.transpose(1, 2).reshape(-1, *x.shape[2:]).to(x.dtype))

    def add_product(self, x, values, weight):
        self.add(x, values * weight)

    def _shape(self, x):
        return (self.part.segments, self.part.rows, self.part.heads, *x.shape[2:])


class EagerSum:
    """Outputs are summed in fp32, gradients in their own type as soon as they are there: the least memory."""

    def __init__(self, ways):
        self.ways = ways

    def mix(self, q, outs, lses):
        lse = torch.full(q.shape[:2], float('-inf'), device=q.device, dtype=lses[0].dtype)
        for way, own in zip(self.ways, lses):
            view = way.part.view(lse)
            view.copy_(torch.logaddexp(view, own))
        total = None
        for way, own, own_lse in zip(self.ways, outs, lses):
            weight = (own_lse - way.part.view(lse)).exp_().unsqueeze(-1)
            if total is None and covers_all(way.part, q.shape[1]):
                total = token_major(own * weight)
                continue
            if total is None:
                total = torch.zeros(q.shape, device=q.device, dtype=lse.dtype)
            way.add_product(total, own, weight)
        return total.to(q.dtype), lse

    def add_up(self, inputs, gradients):
        totals = None
        for way, own in zip(self.ways, gradients):
            if totals is None and covers_all(way.part, inputs[0].shape[1]):
                totals = [token_major(x) for x in own]
                continue
            if totals is None:
                totals = [torch.zeros_like(x) for x in inputs]
            for total, x in zip(totals, own):
                way.add(total, x)
        return tuple(totals)


def covers_all(part, heads):
    return part.r == 1 and part.heads == heads


def token_major(x):
    """[segments, H, w, D] as [N, H, D]; no copy where it lies so already."""
    return x.transpose(1, 2).reshape(-1, x.shape[1], x.shape[3])


class CompiledSum:
    """Everything is summed in fp32 and rounded once. Wants a branch of rate 1. `compiled` is torch.compile or, to see the
    same arithmetic without it, the identity."""

    def __init__(self, parts, compiled, slice_tokens):
        if parts[0][0].r != 1:
            raise ValueError('the first branch must see every token')
        self.parts, self.slice = parts, slice_tokens
        self.mix_weights, self.mix_outs, self.sum_parts = map(compiled, (mix_weights, mix_outs, sum_parts))

    def slices(self, tokens, tensors):
        """(first token, its parts' tensors by branch) for each slice that can be mixed alone."""
        length = self.slice
        if tokens % length or any(length % branch[0].w for branch in self.parts):
            length = tokens
        for first in range(0, tokens, length):
            source = iter(tensors)
            yield slice(first, first + length), [
                [next(source)[first // p.w:(first + length) // p.w] for p in branch] for branch in self.parts]

    def mix(self, q, outs, lses):
        out = torch.empty_like(q)
        lse = torch.empty(q.shape[:2], device=q.device, dtype=lses[0].dtype)
        both = zip(self.slices(q.shape[0], outs), self.slices(q.shape[0], lses))
        for (here, own_outs), (_, own_lses) in both:
            weights = self.mix_weights(self.parts, lse[here], own_lses)
            self.mix_outs(self.parts, out[here], own_outs, weights)
        return out, lse

    def add_up(self, inputs, gradients):
        totals = tuple(torch.empty_like(x) for x in inputs)
        for total, of_parts in zip(totals, zip(*gradients)):
            for here, own in self.slices(total.shape[0], of_parts):
                self.sum_parts(self.parts, total[here], own)
        return totals


def mix_weights(parts, lse, lses):
    """Writes the log of the sum of all branches' denominators; returns each branch's share."""
    heads, whole = lse.shape[1], []
    for branch, tensors in zip(parts, lses):
        spread = [part.spread(x, heads, float('-inf')) for part, x in zip(branch, tensors)]
        most = spread[0]
        for x in spread[1:]:
            most = torch.maximum(most, x)  # one of them has the row, or none
        whole.append(most)
    most = whole[0]
    for x in whole[1:]:
        most = torch.maximum(most, x)
    total = sum(torch.exp(x - most) for x in whole).log() + most
    lse.copy_(total)
    return [torch.exp(x - total) for x in whole]


def mix_outs(parts, out, outs, weights):
    total = 0
    for branch, tensors, weight in zip(parts, outs, weights):
        for part, x in zip(branch, tensors):
            total = total + part.spread(x, out.shape[1], 0).to(weight.dtype) * weight.unsqueeze(-1)
    out.copy_(total)


def sum_parts(parts, total, tensors):
    result = 0
    for branch, of_branch in zip(parts, tensors):
        for part, x in zip(branch, of_branch):
            x = part.spread(x, total.shape[1], 0)
            result = result + (x if x.dtype == torch.float64 else x.float())
    total.copy_(result)


class Passes:
    """Of one length; q, k, v, dout [N, H, D] of the same strides."""

    def __init__(self, ways, combine, causal=True):
        self.ways, self.combine, self.causal = ways, combine, causal

    def forward(self, q, k, v):
        """(out [N, H, D], lse [N, H])."""
        results = [attend(way.take(q), way.take(k), way.take(v), self.causal) for way in self.ways]
        return self.combine.mix(q, [out for out, _ in results], [lse for _, lse in results])

    def backward(self, dout, q, k, v, out, lse):
        """(dq, dk, dv)."""
        return self.combine.add_up((q, k, v), (
            attend_backward(*(way.take(x) for x in (dout, q, k, v, out)), way.take(lse), self.causal) for way in self.ways))
