#!/usr/bin/env python3
"""Our attention on a GPU beside what a PyTorch user could do instead, in one run on one GPU.

    compare_gpu.py --bin DIR [--python PY] [--tokens N ...] [--shapes 16x128,12x64] [--rates 1,2,4,8,16] [--out FILE]

Runs benchmarks/peers/ceilings.py, DIR/rank_attention_benchmark and benchmarks/peers/longnet_gpu.py (which says what the
peers are), PY being a python3 whose torch finds the GPU. Prints a table in Markdown; each JSON line of the programs goes to
FILE, with time and commit, as soon as it is there. What is left out, so that all ends within --seconds:
dense attention beyond 128K tokens; CUDA graphs beyond 32K; gather under torch.compile, and FlexAttention, except at the
middle one of the lengths (FlexAttention also at the longest); and whatever has not begun when the time is over. torch's
peers run in a few processes, the ones that compile last, so that one that ends badly takes no other with it.
"""

import argparse
import datetime
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
PEERS = os.path.join(HERE, '..', 'peers')
OURS = 'ringmaster'
# Processes of peers: first those that are ready at once, then those that compile.
GROUPS = (('views_eager', 'views_eager_graph', 'dense', 'gather', 'torchscale'), ('views_compiled', 'views_compiled_graph'),
          ('gather_compiled',), ('flex',))
# Not our function, or not PyTorch's own way of it: shown, but not what the ratio is of.
OTHERS = ('dense', 'torchscale')


def commit_of(bin_dir):
    """What the programs were built from; None when ringctl, which says so, is not beside them."""
    try:
        said = subprocess.run([os.path.join(bin_dir, 'ringctl'), '--version'], check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return said.partition('(')[2].partition(')')[0] or None


class Run:
    """The programs' lines, kept and written as they come."""

    def __init__(self, args):
        self.args, self.rows, self.failures = args, [], []
        self.end = time.monotonic() + args.seconds
        self.file = open(args.out, 'w', encoding='utf-8') if args.out else None  # pylint: disable=consider-using-with
        self.stamp = {'time': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
                      'commit': commit_of(args.bin)}

    def program(self, name, *command, share=1.0):
        """Runs it, for `share` of the time that is left at most."""
        left = (self.end - time.monotonic()) * share
        if left <= 0:
            self.failures.append(f'{name}: not begun, the time was over')
            return
        print(f'+ {shlex.join(command)}', file=sys.stderr, flush=True)
        begin = time.monotonic()
        # A group of its own: processes that compile for it hold its output open, too.
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
            over = threading.Timer(left, os.killpg, (process.pid, signal.SIGKILL))
            over.start()
            try:
                for line in process.stdout:
                    self.take(line)
                status = process.wait()
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
            finally:
                over.cancel()
        print(f'+ {time.monotonic() - begin:.0f} s', file=sys.stderr, flush=True)
        if status != 0:
            self.failures.append(f'{name}: ended by the time limit' if time.monotonic() >= begin + left
                                 else f'{name}: exit status {status}')

    def take(self, line):
        print(line, end='', file=sys.stderr, flush=True)
        try:
            row = {**self.stamp, **json.loads(line)}
        except json.JSONDecodeError:
            return
        self.rows.append(row)
        if self.file:
            print(json.dumps(row), file=self.file, flush=True)


def run_all(args):
    run = Run(args)
    tokens = [str(n) for n in args.tokens]
    middle, longest = sorted(args.tokens)[len(args.tokens) // 2], max(args.tokens)
    run.program('ceilings', args.python, os.path.join(PEERS, 'ceilings.py'), *args.ceiling_arguments.split())
    run.program(OURS, os.path.join(args.bin, 'rank_attention_benchmark'), f'--shapes={args.shapes}',
                f'--rates={args.rates}', *tokens)
    for group in GROUPS:
        wanted = [name for name in group if name in args.peers]
        if wanted:
            run.program(', '.join(wanted), args.python, os.path.join(PEERS, 'longnet_gpu.py'), '--shapes', args.shapes, '--rates',
                        args.rates, '--variants', ','.join(wanted), '--only', f'gather_compiled={middle}', '--only',
                        f'flex={middle},{longest}', *args.peer_arguments.split(), '--tokens', *tokens)
    return run


def times(row):
    return f'{row["forward_ms"]:.3g} / {row["forward_backward_ms"]:.4g}'


def fastest(peers, what):
    """Among those that compute the function; None when there is none."""
    able = [row for row in peers.values() if what in row and row['by'] not in OTHERS]
    return min(able, key=lambda row: row[what], default=None)


def ratio(peer, ours, what):
    return f'{peer[what] / ours[what]:.2f} ({peer["by"]})' if peer else '-'


def our_line(tokens, ours, peers, matmul):
    share = '-' if not matmul else ' / '.join(f'{ours[f"{pass_}_tflops"] / matmul:.0%}' for pass_ in ('forward', 'forward_backward'))
    torchscale = peers.get('torchscale', {})
    beside = ' / '.join(f'{torchscale[what] / ours[what]:.1f}' if what in torchscale else '-'
                        for what in ('forward_ms', 'forward_backward_ms'))
    best = [ratio(fastest(peers, what), ours, what) for what in ('forward_ms', 'forward_backward_ms')]
    return [tokens, times(ours), f'{ours["forward_tflops"]:.0f} / {ours["forward_backward_tflops"]:.0f}', share, *best, beside,
            f'{ours["bytes_per_token"] / 1000:.1f}']


def peer_cell(row):
    if row is None or 'left_out' in row:
        return '-'
    if 'error' in row:
        return 'out of memory' if 'OutOfMemory' in row['error'] else row['error'].partition(':')[0]
    memory = row['bytes_per_token']
    tail = '' if memory is None else f', {memory / 1000:.1f}'
    return f'{times(row)} ({row["forward_tflops"]:.0f} / {row["forward_backward_tflops"]:.0f}{tail})'


def markdown(header, lines):
    return '\n'.join('| ' + ' | '.join(str(cell) for cell in line) + ' |'
                     for line in (header, ['---'] * len(header), *lines))


def flatness(ours):
    """Time a token of the longest over that of 64K, or of the shortest that is not below it."""
    base = min((n for n in ours if n >= 65536), default=None)
    if base is None or max(ours) == base:
        return ''
    longest = max(ours)
    of = [ours[longest][what] / longest / (ours[base][what] / base) for what in ('forward_ms', 'forward_backward_ms')]
    return f'\nTime a token at {longest} over that at {base}: {of[0]:.3f} forward, {of[1]:.3f} forward + backward.\n'


def ceilings_of(rows):
    return next((row for row in rows if row['benchmark'] == 'ceilings'), {})


def describe(rows):
    """The GPU and its ceilings."""
    return '; '.join(f'{key} {value}' for key, value in ceilings_of(rows).items()
                     if key not in ('benchmark', 'time', 'commit', 'repeats'))


def tables(rows, failures):
    """All that was measured, in Markdown."""
    matmul, text = ceilings_of(rows).get('matmul_tflops'), [describe(rows)]
    shapes = sorted({(row['heads'], row['head_dim']) for row in rows if 'heads' in row}, key=lambda shape: -shape[1])
    for heads, dim in shapes:
        own = [row for row in rows if (row.get('heads'), row.get('head_dim')) == (heads, dim)]
        ours = {row['tokens']: row for row in own if row['benchmark'] == 'rank_attention'}
        peers = {}
        for row in own:
            if row['benchmark'] == 'longnet':
                peers.setdefault(row['tokens'], {})[row['by']] = row
        text.append(f'\n{heads} heads of {dim}, rates {own[0]["rates"]}; forward / forward + backward\n')
        text.append(markdown(['tokens', 'ms', 'TFLOP/s', 'of the matmul', 'fastest peer, forward', 'forward + backward',
                              'torchscale', 'KB a token'],
                             [our_line(n, ours[n], peers.get(n, {}), matmul) for n in sorted(ours)]))
        text.append(flatness(ours))
        names = [name for group in GROUPS for name in group if any(name in peers[n] for n in peers)]
        text.append('\nPeers: ms (TFLOP/s, KB a token)\n')
        text.append(markdown(['tokens', *names],
                             [[n, *(peer_cell(peers[n].get(name)) for name in names)] for n in sorted(peers)]))
    text += [f'\nMissing: {failure}' for failure in failures]
    return '\n'.join(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--bin', required=True, help='where rank_attention_benchmark and the plugin are')
    parser.add_argument('--python', default='python3')
    parser.add_argument('--tokens', type=int, nargs='+', default=[8192, 65536, 131072, 262144, 1048576])
    parser.add_argument('--shapes', default='16x128,12x64')
    parser.add_argument('--rates', default='1,2,4,8,16')
    parser.add_argument('--peers', type=lambda text: text.split(','), default=[name for group in GROUPS for name in group])
    parser.add_argument('--seconds', type=float, default=460)
    parser.add_argument('--out')
    parser.add_argument('--peer-arguments', default='', help='more of them for longnet_gpu.py')
    parser.add_argument('--ceiling-arguments', default='', help='more of them for ceilings.py')
    args = parser.parse_args()
    run = run_all(args)
    print(tables(run.rows, run.failures), flush=True)
    sys.exit(1 if run.failures else 0)


if __name__ == '__main__':
    main()
