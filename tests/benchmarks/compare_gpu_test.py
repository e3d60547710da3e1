#!/usr/bin/env python3
"""What benchmarks/attention/compare_*.py make of the programs' lines; no GPU: compare_gpu_test.py ROOT."""

import json
import os
import subprocess
import sys
import tempfile
import unittest

ROOT = sys.argv[1]
sys.path.insert(0, f'{ROOT}/benchmarks/attention')

import compare_block_sparse  # pylint: disable=wrong-import-position
import compare_gpu  # pylint: disable=wrong-import-position


def row(by, tokens, forward, both, **more):
    benchmark = 'rank_attention' if by == 'ringmaster' else 'longnet'
    return {'benchmark': benchmark, 'by': by, 'tokens': tokens, 'heads': 16, 'head_dim': 128, 'rates': [1, 2],
            'forward_ms': forward, 'forward_backward_ms': both, 'forward_tflops': 400, 'forward_backward_tflops': 300,
            'bytes_per_token': 20000, **more}


def lines(text):
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in text.splitlines() if line.startswith('|')]


class TablesTest(unittest.TestCase):
    def test_ours_stands_beside_the_fastest_that_computes_the_same(self):
        text = compare_gpu.tables([
            {'benchmark': 'ceilings', 'gpu': 'H', 'matmul_tflops': 800.0},
            row('ringmaster', 65536, 2.0, 8.0), row('dense', 65536, 1.0, 4.0), row('torchscale', 65536, 20.0, 40.0),
            row('views_eager', 65536, 3.0, 14.0), row('views_compiled', 65536, 4.0, 10.0)], [])
        ours, peers = lines(text)[2], lines(text)[5]
        self.assertEqual(ours, ['65536', '2 / 8', '400 / 300', '50% / 38%', '1.50 (views_eager)', '1.25 (views_compiled)',
                                '10.0 / 5.0', '20.0'])
        self.assertEqual(peers[1], '3 / 14 (400 / 300, 20.0)')

    def test_what_was_not_measured_is_said(self):
        failed = {key: value for key, value in row('gather', 65536, 0, 0).items() if not key.endswith(('_ms', '_tflops'))}
        text = compare_gpu.tables([row('ringmaster', 65536, 2.0, 8.0), {**failed, 'error': 'OutOfMemoryError: no'},
                                   {**failed, 'by': 'dense', 'left_out': 'quadratic'}], ['flex: not begun'])
        self.assertEqual(lines(text)[2][3:7], ['-', '-', '-', '- / -'])
        self.assertEqual(lines(text)[5], ['65536', '-', 'out of memory'])
        self.assertIn('Missing: flex: not begun', text)

    def test_time_a_token_is_compared_with_64k(self):
        text = compare_gpu.tables([row('ringmaster', 8192, 9, 9), row('ringmaster', 65536, 1.0, 4.0),
                                   row('ringmaster', 1048576, 17.6, 64.0)], [])
        self.assertIn('Time a token at 1048576 over that at 65536: 1.100 forward, 1.000 forward + backward', text)


class BlockSparseTablesTest(unittest.TestCase):
    def test_ours_stands_beside_peers_on_the_same_mask(self):
        def blocks(benchmark, by, mask, forward, both, causal=True):
            return {**row(by, 1024, forward, both), 'benchmark': benchmark, 'mask': mask, 'causal': causal, 'density': 0.25}

        text = compare_block_sparse.tables([
            blocks('block_sparse_attention', 'tiles', 'random-0.25', 1.0, 5.0), blocks('block_sparse', 'dense', 'none', 3.0, 10.0),
            blocks('block_sparse', 'flex', 'random-0.25', 2.0, 8.0), blocks('block_sparse', 'flex', 'random-0.25', 9, 9, False),
            {key: value for key, value in blocks('block_sparse', 'flex', 'other', 0, 0).items() if not key.endswith('_ms')}], [])
        self.assertEqual(lines(text)[2:4], [
            ['random-0.25', '0.25', '1 / 5', '3.00 / 2.00', '0.75 / 0.50', '2 / 8', '2.00 / 1.60', '-'],
            ['other', '0.25', '-', '-', '-', '-', '-', '-']])
        self.assertEqual(lines(text)[6], ['random-0.25', '0.25', '-', '-', '-', '9 / 9', '-', '-'])


class RunTest(unittest.TestCase):
    def run_with(self, folder, python, *arguments):
        for name, script in (('rank_attention_benchmark', f"echo '{json.dumps(row('ringmaster', 64, 2.0, 8.0))}'"),
                             ('python', python)):
            path = os.path.join(folder, name)
            with open(path, 'w', encoding='utf-8') as file:
                file.write(f'#!/bin/sh\n{script}\n')
            os.chmod(path, 0o755)
        out = os.path.join(folder, 'out.jsonl')
        done = subprocess.run([f'{ROOT}/benchmarks/attention/compare_gpu.py', '--bin', folder, '--python', f'{folder}/python',
                               '--tokens', '64', '--out', out, *arguments], capture_output=True, text=True, check=False)
        with open(out, encoding='utf-8') as file:
            return done, [json.loads(line) for line in file]

    def test_a_program_that_ends_badly_is_missing_and_the_others_are_not(self):
        peer = json.dumps(row('views_eager', 64, 3.0, 12.0))
        python = f"case \"$*\" in *ceilings*) exit 3;; *'--variants views_eager '*) echo '{peer}'; echo noise;; esac"
        with tempfile.TemporaryDirectory() as folder:
            done, rows = self.run_with(folder, python, '--peers', 'views_eager,flex')
        self.assertEqual((done.returncode, [r['by'] for r in rows]), (1, ['ringmaster', 'views_eager']), done.stderr)
        self.assertIn('1.50 (views_eager)', done.stdout)
        self.assertIn('Missing: ceilings: exit status 3', done.stdout)

    def test_it_ends_in_time(self):
        with tempfile.TemporaryDirectory() as folder:
            done, rows = self.run_with(folder, 'tail -f /dev/null & wait', '--seconds', '0.2')
        self.assertEqual((done.returncode, rows), (1, []))
        self.assertIn('Missing: ceilings: ended by the time limit', done.stdout)
        self.assertIn('Missing: ringmaster: not begun', done.stdout)


if __name__ == '__main__':
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]], verbosity=2)
