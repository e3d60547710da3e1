#!/usr/bin/env python3
"""Our block-sparse attention on a GPU beside what a PyTorch user could do instead, on the same masks, in one run on one GPU.

    compare_block_sparse.py --bin DIR [--python PY] [--tokens 16384 65536] [--shape 16x128] [--out FILE]

Runs benchmarks/peers/ceilings.py, DIR/block_sparse_benchmark, which makes the masks, and benchmarks/peers/block_sparse_gpu.py
on them (which says what the peers are). Prints and writes what compare_gpu.py does; ours get half of the time at most.
"""

import argparse
import glob
import os
import sys
import tempfile

from compare_gpu import PEERS, Run, describe, markdown, times

PASSES = ('forward_ms', 'forward_backward_ms')


def run_all(args):
    run = Run(args)
    run.program('ceilings', args.python, os.path.join(PEERS, 'ceilings.py'), *args.ceiling_arguments.split())
    with tempfile.TemporaryDirectory() as masks:
        run.program('ringmaster', os.path.join(args.bin, 'block_sparse_benchmark'), f'--masks={masks}',
                    f'--shape={args.shape}', f'--densities={args.densities}', f'--window={args.window}', *map(str, args.tokens),
                    share=0.5)
        files = sorted(glob.glob(f'{masks}/*.mask'))
        if files:
            run.program('peers', args.python, os.path.join(PEERS, 'block_sparse_gpu.py'), '--shape', args.shape, '--window',
                        str(args.window), *args.peer_arguments.split(), '--masks', *files)
    return run


def beside(row, peer):
    """How many times as fast as the peer, forward and forward + backward."""
    if not row or not peer or PASSES[0] not in row or PASSES[0] not in peer:
        return '-'
    return ' / '.join(f'{peer[what] / row[what]:.2f}' for what in PASSES)


def of_ideal(row, dense):
    """The share of 1 / density that it is faster than dense by."""
    if not row or not dense or PASSES[0] not in row or PASSES[0] not in dense:
        return '-'
    return ' / '.join(f'{dense[what] / row[what] * row["density"]:.2f}' for what in PASSES)


def shown(row):
    return times(row) if row and PASSES[0] in row else '-'


def tables(rows, failures):
    text = [describe(rows)]
    shapes = {(row['tokens'], row['causal']): None for row in rows if 'mask' in row}
    for tokens, causal in shapes:
        own = [row for row in rows if (row.get('tokens'), row.get('causal')) == (tokens, causal)]
        ours = {row['mask']: row for row in own if row['benchmark'] == 'block_sparse_attention'}
        peers = {(row['by'], row['mask']): row for row in own if row['benchmark'] == 'block_sparse'}
        dense, lines = peers.get(('dense', 'none')), []
        for name in dict.fromkeys(row['mask'] for row in own if row['mask'] != 'none'):
            row, flex, window = ours.get(name), peers.get(('flex', name)), peers.get(('flex_window', name))
            lines.append([name, (row or flex or {}).get('density', '-'), shown(row), beside(row, dense), of_ideal(row, dense),
                          shown(flex), beside(row, flex), shown(window)])
        text.append(f'\n{tokens} tokens, {"causal" if causal else "not causal"}, {own[0]["heads"]} heads of '
                    f'{own[0]["head_dim"]}; dense {shown(dense)} ms; forward / forward + backward\n')
        text.append(markdown(['mask', 'density', 'ms', 'times dense', 'of 1 / density', 'flex, ms', 'times flex',
                              'flex, exact window, ms'], lines))
    return '\n'.join(text + [f'\nMissing: {failure}' for failure in failures])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--bin', required=True, help='where block_sparse_benchmark and the plugin are')
    parser.add_argument('--python', default='python3')
    parser.add_argument('--tokens', type=int, nargs='+', default=[16384, 65536])
    parser.add_argument('--shape', default='16x128')
    parser.add_argument('--densities', default='1,0.5,0.25,0.1,0.05')
    parser.add_argument('--window', type=int, default=1024)
    parser.add_argument('--seconds', type=float, default=460)
    parser.add_argument('--out')
    parser.add_argument('--peer-arguments', default='', help='more of them for block_sparse_gpu.py')
    parser.add_argument('--ceiling-arguments', default='', help='more of them for ceilings.py')
    args = parser.parse_args()
    run = run_all(args)
    print(tables(run.rows, run.failures), flush=True)
    sys.exit(1 if run.failures else 0)


if __name__ == '__main__':
    main()
