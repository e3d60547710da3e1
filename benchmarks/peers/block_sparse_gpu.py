#!/usr/bin/env python3
"""What a PyTorch user could do instead of our block-sparse attention on one GPU: bf16, batch 1, random numbers.

  block_sparse_gpu.py [--masks FILE...] [--tokens N...] [--densities D,...] [--shape HxD] [--window 1024]
  block_sparse_gpu.py --check [--device cpu] [--no-compile]

dense is cuDNN's attention of all tokens; flex is FlexAttention with blocks of 128 x 128, full ones wherever every pair is
seen; flex_window the same with a window of tokens that is exact, not made of whole blocks. The masks are those of the files
(block_masks.py says what these are), so that ours are the same bits; without files random blocks for each head and the
diagonal, causal and not, and a window of blocks. Prints one JSON line a case, as longnet_gpu.py does; TFLOP/s count the
pairs that are seen, and `times_dense` is how many times as fast as dense it is, forward and forward + backward.
"""

import argparse
import sys

import torch

from block_masks import Mask, random_mask, read_mask, window_mask
from flex_blocks import blocks_of, flex_attention
from longnet_autograd import dense
from longnet_oracle import LIMITS, error
from longnet_variants import Autograd, random_inputs
from measuring import Meter, attempt, compile_with


def not_later(_batch, _head, query, key):
    return query >= key


def flex(mask, device, compiled):
    """Of q, k, v [N, H, D]."""
    attention = flex_attention(compiled, device)
    full, partial = (blocks.to(device) for blocks in mask.split())
    blocks = blocks_of(partial, full, mask.block_size, mask.tokens, not_later if mask.causal else None)
    return lambda q, k, v: attention(*(x[None].transpose(1, 2) for x in (q, k, v)), block_mask=blocks).transpose(1, 2)[0]


def flex_window(tokens, window, device, compiled, block_size=128):
    """Of q, k, v [N, H, D]: a query sees itself and the window - 1 tokens before it."""
    attention = flex_attention(compiled, device)
    if window % block_size:
        raise ValueError(f'a window of {window} is no multiple of {block_size}')
    block = torch.arange(tokens // block_size, device=device)
    behind, last = block[:, None] - block, window // block_size

    def near(_batch, _head, query, key):
        return (query >= key) & (query - key < window)

    blocks = blocks_of(((behind == 0) | (behind == last))[None], ((behind > 0) & (behind < last))[None], block_size, tokens, near)
    return lambda q, k, v: attention(*(x[None].transpose(1, 2) for x in (q, k, v)), block_mask=blocks).transpose(1, 2)[0]


def window_pairs(tokens, window):
    return window * (window + 1) // 2 + (tokens - window) * window


def measure(call, inputs, pairs, meter):
    """`pairs` of all heads."""
    q, k, v, dout = inputs
    flops = 4 * q.shape[-1] * pairs

    def both():
        return call.both(dout, q, k, v)

    both()
    peak = meter.peak_bytes(both)
    return {**meter.speeds(flops, lambda: call.forward(q, k, v), both),
            'bytes_per_token': None if peak is None else round(peak / q.shape[0])}


def times_dense(found, beside):
    passes = ('forward_ms', 'forward_backward_ms')
    return {'times_dense': [round(beside[what] / found[what], 3) for what in passes]} if passes[0] in beside else {}


def run_masks(masks, dim, args):
    """Masks of one length, one number of heads, causal or not alike, beside dense attention of it."""
    meter, compiled = Meter(args.device), compile_with(args.compile)
    tokens, heads, causal = masks[0].tokens, masks[0].heads, masks[0].causal
    inputs = random_inputs(tokens, heads, dim, meter.device, torch.bfloat16 if meter.is_cuda else torch.float32)
    row = {'benchmark': 'block_sparse', 'tokens': tokens, 'heads': heads, 'head_dim': dim, 'causal': causal}
    pairs = tokens * (tokens + 1) // 2 if causal else tokens**2
    beside = attempt({**row, 'by': 'dense', 'mask': 'none', 'density': 1.0}, lambda: measure(
        Autograd(lambda q, k, v: dense(q, k, v, causal)), inputs, heads * pairs, meter))
    for mask in masks:
        def flex_case(mask=mask):
            found = measure(Autograd(flex(mask, meter.device, compiled)), inputs, mask.pairs(), meter)
            return {**found, **times_dense(found, beside)}
        attempt({**row, 'by': 'flex', 'mask': mask.name, 'density': round(mask.density(), 4)}, flex_case)
        if mask.name == f'window-{args.window}':
            seen = window_pairs(tokens, args.window)

            def window_case(mask=mask, seen=seen):
                call = Autograd(flex_window(tokens, args.window, meter.device, compiled, mask.block_size))
                found = measure(call, inputs, heads * seen, meter)
                return {**found, **times_dense(found, beside)}
            attempt({**row, 'by': 'flex_window', 'mask': mask.name, 'density': round(seen / pairs, 4)}, window_case)
    del inputs
    meter.clean()


def default_masks(args):
    for tokens in args.tokens:
        for causal in (False, True):
            yield from (random_mask(args.shape[0], tokens, density, causal, args.block) for density in args.densities)
    yield window_mask(args.shape[0], max(args.tokens), args.window, args.block)


def oracle(mask_tokens, inputs, dout):
    """(out, dq, dk, dv) in fp64; mask_tokens bool [H, N, N]."""
    q, k, v = (x.detach().double().requires_grad_() for x in inputs)
    scores = torch.einsum('qhd,khd->hqk', q, k) / q.shape[-1]**0.5
    out = torch.einsum('hqk,khd->qhd', torch.softmax(scores.masked_fill(~mask_tokens, float('-inf')), -1), v)
    return (out.detach(), *torch.autograd.grad(out, (q, k, v), dout.double()))


def check(device, compiled):
    device = torch.device(device)
    dtype, tokens, block, dim = (torch.bfloat16, 2048, 128, 128) if device.type == 'cuda' else (torch.float32, 256, 16, 8)
    q, k, v, dout = random_inputs(tokens, 3, dim, device, dtype)
    token = torch.arange(tokens)
    masks = [random_mask(3, tokens, density, causal, block) for density in (0.25, 1) for causal in (False, True)]
    cases = [(f'flex {mask.name} {mask.causal}', flex(mask, device, compiled), expanded(mask)) for mask in masks]
    window = 4 * block
    behind = token[:, None] - token
    cases.append(('flex_window', flex_window(tokens, window, device, compiled, block),
                  ((behind >= 0) & (behind < window)).expand(3, -1, -1)))
    cases.append(('dense', lambda q, k, v: dense(q, k, v, False), torch.ones(3, tokens, tokens, dtype=torch.bool)))
    right = True
    for name, function, seen in cases:
        row = attempt({'check': name}, lambda f=function, m=seen: {'errors': {
            what: error(value, want) for what, value, want in zip(
                ('out', 'dq', 'dk', 'dv'), Autograd(f).both(dout, q, k, v), oracle(m.to(device), (q, k, v), dout))}})
        right &= all(x < LIMITS[dtype] for x in row.get('errors', {'none': float('inf')}).values())
    return right


def expanded(mask: Mask):
    tokens = mask.blocks.repeat_interleave(mask.block_size, -1).repeat_interleave(mask.block_size, -2)
    return tokens.tril() if mask.causal else tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true')
    parser.add_argument('--masks', nargs='+', default=[])
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--tokens', type=int, nargs='+', default=[16384, 65536])
    parser.add_argument('--shape', type=lambda text: tuple(int(x) for x in text.split('x')), default=(16, 128))
    parser.add_argument('--densities', type=lambda text: [float(x) for x in text.split(',')], default=[1, .5, .25, .1, .05])
    parser.add_argument('--block', type=int, default=128)
    parser.add_argument('--window', type=int, default=1024)
    parser.add_argument('--no-compile', dest='compile', action='store_false', help='run what is to be compiled as it is')
    args = parser.parse_args()
    if args.check:
        sys.exit(0 if check(args.device, compile_with(args.compile)) else 1)
    groups = {}
    for mask in map(read_mask, args.masks) if args.masks else default_masks(args):
        groups.setdefault((mask.tokens, mask.causal, mask.heads), []).append(mask)
    for masks in groups.values():
        run_masks(masks, args.shape[1], args)


if __name__ == '__main__':
    main()
