#!/usr/bin/env python3
"""What this GPU does at best, to hold attention against: ceilings.py [--device cuda] [--size 8192]

Prints one JSON line: TFLOP/s of a bf16 product of square matrices, TB/s of a copy on the device (read and written bytes),
the GPU and its clocks as far as they can be read, the versions of torch, CUDA and cuDNN.
"""

import argparse

import torch

from measuring import Meter, attempt, describe_machine


def measure(meter, size):
    a, b = (torch.randn(size, size, device=meter.device).to(torch.bfloat16) for _ in range(2))
    product_ms, repeats = meter.milliseconds(lambda: a @ b)
    source = torch.ones(2 * size**2 * 4, dtype=torch.uint8, device=meter.device)
    target = torch.empty_like(source)
    copy_ms, _ = meter.milliseconds(lambda: target.copy_(source))
    return {'matmul_tflops': round(2 * size**3 / product_ms / 1e9, 3), 'copy_tb_per_s': round(2 * source.numel() / copy_ms / 1e9, 3),
            'repeats': repeats}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--size', type=int, default=8192)
    args = parser.parse_args()
    meter = Meter(args.device)
    attempt({'benchmark': 'ceilings', **describe_machine(args.device)}, lambda: measure(meter, args.size))


if __name__ == '__main__':
    main()
