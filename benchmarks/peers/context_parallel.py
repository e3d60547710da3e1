#!/usr/bin/env python3
"""Dense causal attention on several GPUs by torch's context_parallel: context_parallel.py [--ranks 2] TOKENS...

TOKENS of the whole sequence, heads x head size 16 x 128, bf16. Runs each length on one GPU, by plain SDPA, and on --ranks,
a process each, and prints a JSON line for each: milliseconds of the slowest rank forward, and forward and backward (median
of ten after a second), and the TFLOP/s of all ranks together. Ends with the first error: ranks wait for each other.
"""

import argparse
import contextlib
import os
import socket
import statistics

import torch
import torch.distributed as dist
import torch.multiprocessing
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.experimental import context_parallel
from torch.nn.attention import SDPBackend, sdpa_kernel

from measuring import (BACKWARD_OVER_FORWARD, REPEATS, SETTLE_MS, WARM_UPS, describe_machine, elapsed, emit, enqueue,
                       speeds)

HEADS, HEAD_DIM = 16, 128
FLOPS_PER_MS = 5e11  # about, of one GPU
BACKENDS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]


def slowest_ms(call, ranks, flops):
    """The largest of the ranks' medians. All ranks settle with as many calls, each of `flops`."""
    def run(count):
        return [elapsed(pair) for pair in [enqueue(call) for _ in range(count)]]

    run(WARM_UPS + int(SETTLE_MS * FLOPS_PER_MS / flops))
    if ranks > 1:
        dist.barrier()
    torch.cuda.synchronize()
    slowest = torch.tensor(statistics.median(run(REPEATS)), device='cuda')
    if ranks > 1:
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return slowest.item()


def measure(tokens, ranks, mesh):
    q, k, v = (torch.randn(1, HEADS, tokens, HEAD_DIM, device='cuda', dtype=torch.bfloat16) for _ in range(3))
    flops = 4 * HEAD_DIM * HEADS * tokens**2 / 2
    shared = contextlib.nullcontext()
    if ranks > 1:
        shared = context_parallel(mesh, buffers=[q, k, v], buffer_seq_dims=[2, 2, 2], no_restore_buffers={q, k, v})
    with shared, sdpa_kernel(BACKENDS, set_priority=True):
        attend = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)
        with torch.no_grad():
            forward_ms = slowest_ms(attend, ranks, flops / ranks)
        dout = torch.randn_like(q)
        for tensor in (q, k, v):
            tensor.requires_grad_()
        both_ms = slowest_ms(lambda: torch.autograd.grad(attend(), (q, k, v), dout), ranks,
                             (1 + BACKWARD_OVER_FORWARD) * flops / ranks)
    return {**speeds(flops, forward_ms, both_ms), 'repeats': REPEATS}


def run_rank(rank, ranks, port, lengths):
    torch.cuda.set_device(rank)
    mesh = None
    if ranks > 1:
        os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
        dist.init_process_group('nccl', rank=rank, world_size=ranks, device_id=torch.device('cuda', rank))
        mesh = init_device_mesh('cuda', (ranks,))
    for tokens in lengths:
        case = {'benchmark': 'context_parallel', 'peer': 'torch context_parallel' if ranks > 1 else 'torch SDPA',
                'tokens': tokens, 'ranks': ranks, 'heads': HEADS, 'head_dim': HEAD_DIM}
        figures = measure(tokens, ranks, mesh)
        if rank == 0:
            emit({**case, **describe_machine('cuda'), **figures})
    if ranks > 1:
        dist.destroy_process_group()


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--ranks', type=int, default=2)
    parser.add_argument('tokens', type=int, nargs='+')
    args = parser.parse_args()
    for ranks in (1, args.ranks):
        torch.multiprocessing.spawn(run_rank, (ranks, free_port(), args.tokens), nprocs=ranks)


if __name__ == '__main__':
    main()
