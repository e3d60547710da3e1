"""Each restatement by its name."""

import torch

from longnet_autograd import Flex, dense, gather, row_groups, torchscale
from longnet_parts import parts_of
from longnet_views import CompiledSum, EagerSum, Passes, Rows, Views

VARIANTS = ('dense', 'views_eager', 'views_eager_graph', 'gather', 'gather_exact', 'torchscale', 'views_compiled',
            'views_compiled_graph', 'gather_compiled', 'flex')


class Autograd:
    """A differentiable function as the two things that are measured."""

    def __init__(self, function):
        self.function = function

    def forward(self, q, k, v):
        with torch.no_grad():
            return self.function(q, k, v)

    def both(self, dout, q, k, v):
        inputs = [x.detach().requires_grad_() for x in (q, k, v)]
        out = self.function(*inputs)
        return (out, *torch.autograd.grad(out, inputs, dout))


class Beneath:
    """Passes beneath autograd."""

    def __init__(self, passes):
        self.passes = passes

    def forward(self, q, k, v):
        return self.passes.forward(q, k, v)[0]

    def both(self, dout, q, k, v):
        out, lse = self.passes.forward(q, k, v)
        return (out, *self.passes.backward(dout, q, k, v, out, lse))


def make(variant, tokens, heads, branches, device, compiled, flex_block=128, slice_tokens=65536):
    """The variant for one length. Longer ones are compiled for `slice_tokens` at a time, where these are independent of each
    other: segments are, so that one compilation serves all lengths."""
    name = variant.removesuffix('_graph')
    if name == 'dense':
        return Autograd(dense)
    if name == 'torchscale':
        return Autograd(lambda q, k, v: torchscale(q, k, v, branches))
    if name == 'flex':
        return Autograd(Flex(tokens, heads, branches, device, compiled, flex_block, slice_tokens))
    if name in ('gather', 'gather_compiled'):
        function = compiled(gather) if name == 'gather_compiled' else gather
        groups = row_groups(tokens, heads, branches, device)
        return Autograd(lambda q, k, v: function(q, k, v, groups))
    parts = parts_of(tokens, heads, branches)
    ways = [Rows(part, heads, device) if name == 'gather_exact' else Views(part) for branch in parts for part in branch]
    combine = CompiledSum(parts, compiled, slice_tokens) if name == 'views_compiled' else EagerSum(ways)
    return Beneath(Passes(ways, combine))


def random_inputs(tokens, heads, dim, device, dtype, seed=0):
    generator = torch.Generator(device).manual_seed(seed)
    return [torch.randn(tokens, heads, dim, device=device, dtype=dtype, generator=generator) for _ in range(4)]
