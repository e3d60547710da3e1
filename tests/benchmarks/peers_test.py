#!/usr/bin/env python3
"""What benchmarks/peers restates computes the attention that it says, and its gradients, on the CPU: peers_test.py ROOT DEPS."""

import json
import os
import subprocess
import sys
import tempfile
import unittest

ROOT, DEPS = sys.argv[1:3]
PEERS = f'{ROOT}/benchmarks/peers'


def python(*arguments):
    return subprocess.run([f'{PEERS}/torch_python', *arguments], capture_output=True, text=True, check=False,
                          env={**os.environ, 'RINGMASTER_DEPS': DEPS})


class PeersTest(unittest.TestCase):
    def rows(self, program, *arguments):
        done = python(f'{PEERS}/{program}', '--device', 'cpu', '--no-compile', *arguments)
        if '    import torch\n' in done.stderr:  # the line of the traceback
            self.skipTest(f'torch cannot be imported here: {done.stderr.strip().splitlines()[-1]}')
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def test_all_compute_what_a_dense_softmax_over_the_multiset_of_keys_does(self):
        rows = self.rows('longnet_gpu.py', '--check')
        self.assertEqual({row['check'] for row in rows}, {
            'dense', 'gather', 'gather_exact', 'gather_compiled', 'views_eager', 'views_compiled', 'torchscale', 'flex'})
        for row in rows:
            self.assertEqual(set(row['errors']), {'out', 'dq', 'dk', 'dv'})

    def test_a_case_that_fails_is_a_line_beside_the_others(self):
        # Rates of which none is a multiple of all others are not FlexAttention's; 96 tokens are no multiple of 64.
        rows = self.rows('longnet_gpu.py', '--tokens', '64', '96', '--shapes', '2x8', '--rates', '1,2,3', '--first-segment',
                         '32', '--variants', 'views_eager,flex,dense', '--dense-tokens', '64')
        said = {(row['tokens'], row['by']): next(key for key in ('forward_ms', 'error', 'left_out') if key in row)
                for row in rows}
        self.assertEqual(said, {(64, 'views_eager'): 'forward_ms', (64, 'flex'): 'error', (64, 'dense'): 'forward_ms',
                                (96, 'views_eager'): 'error', (96, 'flex'): 'error', (96, 'dense'): 'left_out'})

    def test_flex_sees_the_blocks_of_a_mask(self):
        rows = self.rows('block_sparse_gpu.py', '--check')
        self.assertEqual(len(rows), 6)
        for row in rows:
            self.assertEqual(set(row['errors']), {'out', 'dq', 'dk', 'dv'})

    def test_masks_are_read_as_the_bits_that_were_written(self):
        # One head, 70 blocks of 16, causal; row 0 sees block 0, row 69 blocks 1, 64 and 69, the others their own.
        rows = [[1 << i, 0] if i < 64 else [0, 1 << i - 64] for i in range(69)] + [[1 << 1, 1 | 1 << 5]]
        head = {'name': 'written', 'heads': 1, 'tokens': 70 * 16, 'block_size': 16, 'causal': True}
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, 'mask')
            with open(path, 'wb') as file:
                file.write(json.dumps(head).encode() + b'\n')
                file.write(b''.join(word.to_bytes(8, 'little') for row in rows for word in row))
            dense, flex = self.rows('block_sparse_gpu.py', '--masks', path, '--shape', '1x8')
        self.assertEqual((dense['by'], flex['by'], flex['mask'], flex['causal']), ('dense', 'flex', 'written', True))
        seen = 70 * (16 * 17 // 2) + 2 * 16 * 16
        self.assertEqual(flex['density'], round(seen / (1120 * 1121 // 2), 4))


if __name__ == '__main__':
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]], verbosity=2)
