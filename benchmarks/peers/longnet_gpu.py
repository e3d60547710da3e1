#!/usr/bin/env python3
"""What a PyTorch user could do instead of our LongNet attention on one GPU: causal, bf16, batch 1, random numbers.

  longnet_gpu.py [--tokens N...] [--shapes HxD,...] [--rates R,...] [--variants NAME,...] [--device cuda] [--no-compile]
  longnet_gpu.py --check [--device cpu] [--no-compile]

Variants:
  dense           cuDNN's attention of all tokens; up to --dense-tokens
  gather          rows copied by index, an attention a branch, scattered, mixed with constant weights; autograd
  gather_compiled the same under torch.compile
  gather_exact    rows copied by index, exact gradient, beneath autograd
  views_eager     rows read in place through strides, exact gradient, beneath autograd; sums as elementwise operations
  views_compiled  the same, sums by torch.compile
  views_eager_graph, views_compiled_graph: the same as one CUDA graph, up to --graph-tokens
  torchscale      torchscale's algorithm: diagonals of padded heads, mixed with constant weights; autograd
  flex            FlexAttention on tokens ordered by residue, inputs taken as lying so already; autograd

Prints one JSON line a case: milliseconds (median; `repeats` says of how many), effective TFLOP/s (the mask's area alone,
backward 2.5 times the forward pass) and the most memory a token beside q, k, v and dout, index tables left out. A case
that fails is a line with "error". --check compares each with a dense fp64 softmax over the multiset of keys.
"""

import argparse
import sys

import torch

from longnet_oracle import check
from longnet_parts import forward_flops, parts_of
from longnet_variants import VARIANTS, make, random_inputs
from measuring import Meter, attempt, compile_with, emit


def measure(variant, tokens, heads, dim, branches, args):
    meter = Meter(args.device)
    call = make(variant, tokens, heads, branches, meter.device, compile_with(args.compile), args.flex_block, args.slice)
    q, k, v, dout = random_inputs(tokens, heads, dim, meter.device, torch.bfloat16 if meter.is_cuda else torch.float32)
    flops = forward_flops(parts_of(tokens, heads, [(tokens, 1)] if variant == 'dense' else branches), dim, True)
    forward, both = (lambda: call.forward(q, k, v)), (lambda: call.both(dout, q, k, v))
    both()
    peak = meter.peak_bytes(both)
    if variant.endswith('_graph'):
        # Neither the host's time nor allocations are in it; what it holds is not comparable.
        forward, both, peak = meter.captured(forward), meter.captured(both), None
    return {**meter.speeds(flops, forward, both), 'bytes_per_token': None if peak is None else round(peak / tokens)}


def left_out(variant, tokens, args):
    if variant == 'dense' and tokens > args.dense_tokens:
        return f'quadratic: measured up to {args.dense_tokens} tokens'
    if variant.endswith('_graph') and (tokens > args.graph_tokens or args.device == 'cpu'):
        return f'gains nothing: measured up to {args.graph_tokens} tokens, on a GPU'
    if args.only.get(variant) and tokens not in args.only[variant]:
        return f'slow to compile or to run: measured at {args.only[variant]} tokens'
    return None


def run(args):
    for heads, dim in args.shapes:
        for tokens in args.tokens:
            branches = [(args.first_segment * 2**i, r) for i, r in enumerate(args.rates)]
            for variant in args.variants:
                row = {'benchmark': 'longnet', 'by': variant, 'tokens': tokens, 'heads': heads, 'head_dim': dim,
                       'rates': args.rates}
                reason = left_out(variant, tokens, args)
                if reason:
                    emit({**row, 'left_out': reason})
                    continue
                attempt(row, lambda v=variant, n=tokens, h=heads, d=dim, b=branches: measure(v, n, h, d, b, args))
                Meter(args.device).clean()


def numbers(text):
    return [int(x) for x in text.split(',')]


def shapes(text):
    return [tuple(int(x) for x in shape.split('x')) for shape in text.split(',')]


def lengths_of(text):
    """VARIANT=N,N,..."""
    variant, lengths = text.split('=')
    return variant, numbers(lengths)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true')
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--tokens', type=int, nargs='+', default=[8192, 65536, 131072, 262144, 1048576])
    parser.add_argument('--shapes', type=shapes, default=[(16, 128), (12, 64)], help='heads x head size')
    parser.add_argument('--rates', type=numbers, default=[1, 2, 4, 8, 16], help="of segments 2048, 4096, ...; the paper's: "
                        '1,2,4,6,12')
    parser.add_argument('--variants', type=lambda text: text.split(','), default=list(VARIANTS))
    parser.add_argument('--only', type=lengths_of, action='append', default=[], help='VARIANT=N,N: no other lengths')
    parser.add_argument('--first-segment', type=int, default=2048)
    parser.add_argument('--dense-tokens', type=int, default=131072)
    parser.add_argument('--graph-tokens', type=int, default=32768)
    parser.add_argument('--flex-block', type=int, default=128)
    parser.add_argument('--slice', type=int, default=65536, help='tokens that compiled code takes at a time')
    parser.add_argument('--no-compile', dest='compile', action='store_false', help='run what is to be compiled as it is')
    args = parser.parse_args()
    args.only = dict(args.only)
    unknown = set(args.variants) - set(VARIANTS)
    if unknown:
        parser.error(f'no such variant: {", ".join(sorted(unknown))}')
    if args.check:
        sys.exit(0 if check(args.device, args.variants, compile_with(args.compile)) else 1)
    run(args)


if __name__ == '__main__':
    main()
