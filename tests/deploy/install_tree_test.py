#!/usr/bin/env python3
"""Installs the tree and proves that it can be moved and carries all it needs: install_tree_test.py BUILD TORCH

BUILD is a complete build folder, TORCH the folder with libtorch_cpu.so.
"""

import os
import re
import subprocess
import sys
import tempfile
import unittest

from bare_root import RUNTIME, BareRoot, install

BUILD, TORCH = sys.argv[1:3]
# What a host needs torch for, or the GPU driver; LibTorch brings it.
FROM_TORCH = r'lib(torch|c10|cudart|cupti|gomp|nccl)'


def run(*command, **options):
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=100, **options).stdout


def is_elf(path):
    with open(path, 'rb') as file:
        return file.read(4) == b'\x7fELF'


class InstallTreeTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix='ringmaster-tree-')
        cls.addClassCleanup(folder.cleanup)
        staged, cls.tree = os.path.join(folder.name, 'staged'), os.path.join(folder.name, 'moved')
        install(BUILD, staged)
        os.rename(staged, cls.tree)
        cls.programs = sorted(os.listdir(os.path.join(cls.tree, 'bin')))
        cls.folder = folder.name

    def elf_files(self):
        for root, _, names in os.walk(self.tree):
            yield from (path for path in (os.path.join(root, name) for name in names) if is_elf(path))

    def test_it_has_all_parts(self):
        self.assertEqual({'ringmaster-coordinator', 'ringmaster-worker', 'ringctl', 'attention_runner'},
                         set(self.programs))
        for part in ('lib/ucx/libuct_cma.so.0', 'share/ringmaster/proto/ringmaster/v1/job_service.proto',
                     'share/ringmaster/deploy/kubernetes', 'share/ringmaster/deploy/prometheus',
                     'share/ringmaster/deploy/grafana', 'share/doc/ringmaster/README.md',
                     'share/doc/ringmaster/licences/libucx0'):
            self.assertTrue(os.path.exists(os.path.join(self.tree, part)), part)

    def test_every_library_is_in_the_tree_or_the_hosts(self):
        for program in self.programs:
            for name, path in re.findall(r'^\s*(\S+) => (.*?)(?: \(0x\w+\))?$',
                                         run('ldd', os.path.join(self.tree, 'bin', program),
                                             env={**os.environ, 'LD_LIBRARY_PATH': TORCH}), re.M):
                if name not in RUNTIME and not re.match(FROM_TORCH, name):
                    self.assertTrue(path.startswith(self.tree), f'{program} finds {name} at {path}')
                self.assertNotEqual(path, 'not found', f'{program}: {name}')

    def test_nothing_refers_to_where_it_was_built(self):
        for path in self.elf_files():
            for where in re.findall(r'\((?:RPATH|RUNPATH)\).*\[(.*)\]', run('readelf', '-d', path)):
                for part in where.split(':'):
                    self.assertTrue(part.startswith('$ORIGIN'), f'{path}: {where}')

    def test_the_coordinator_and_ringctl_need_no_torch_cuda_or_ucx(self):
        for program in ('ringmaster-coordinator', 'ringctl'):
            self.assertNotRegex(run('ldd', os.path.join(self.tree, 'bin', program)),
                                r'lib(torch|c10|cuda|nccl|ucp|ucs|uct|ucm)')

    def test_programs_with_torch_settle_its_mathematics(self):
        for program in ('ringmaster-worker', 'attention_runner'):
            self.assertIn('SettleVectorMath', run('nm', '--demangle', os.path.join(self.tree, 'bin', program)))

    def test_programs_start_in_a_bare_root(self):
        root = BareRoot(self.folder, self.tree, TORCH)
        self.addCleanup(root.close)
        if reason := root.open(read_only=True):
            self.skipTest(reason)
        for program in self.programs:
            printed = run(*root.command(f'/opt/ringmaster/bin/{program}', '--version'))
            self.assertRegex(printed, rf'{program} \d+\.\d+\.\d+')


if __name__ == '__main__':
    unittest.main(argv=sys.argv[:1], verbosity=2)
