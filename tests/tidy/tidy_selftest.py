#!/usr/bin/env python3
"""Proves that the tidy rules bite: each case adds one wrong file to a clean tree and expects the one complaint."""

import os
import tempfile
import unittest

import ladder
import tidy
from source_tree import functions

HEADER = '#pragma once\n'


class Tree:
    """A small checkout that breaks no rule."""

    def __init__(self, folder):
        self.root = folder
        self.write('ARCHITECTURE.md', 'base/ coordinator/ attention/ models/ worker/ tests/ cli/ proto/\n')
        self.write('base/version.h', HEADER)
        self.write('coordinator/core/CMakeLists.txt', 'add_library(core STATIC core.cc)\n')
        self.write('coordinator/core/core.cc', '#include "base/version.h"\n#include "attention/plan/plan.h"\n')

    def write(self, path, text):
        path = os.path.join(self.root, path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'w', encoding='utf-8') as file:
            file.write(text)


class TidyTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.tree = Tree(folder.name)

    def complaints(self):
        return list(tidy.violations(self.tree.root))

    def expect(self, path, text, *words):
        self.tree.write(path, text)
        found = self.complaints()
        self.assertEqual(len(found), 1, found)
        for word in (path,) + words:
            self.assertIn(word, found[0])

    def test_clean_tree_has_no_complaint(self):
        self.assertEqual(self.complaints(), [])

    def test_forbidden_includes(self):
        cases = [
            ('coordinator/core/a.h', 'coordinator/server.h', 'coordinator'),
            ('coordinator/core/a.h', 'attention/dilated_attention.h', 'attention'),
            ('coordinator/core/a.h', 'ATen/ATen.h', 'torch'),
            ('coordinator/core/a.h', 'grpcpp/grpcpp.h', 'gRPC'),
            ('coordinator/core/a.h', 'sqlite3.h', 'SQLite'),
            ('coordinator/core/a.h', 'mutex', 'threads'),
            ('coordinator/a.h', 'torch/csrc/autograd/custom_function.h', 'torch'),
            ('coordinator/a.h', 'worker/session/session_core.h', 'worker/session'),
            ('attention/a.h', 'models/longnet.h', 'models'),
            ('attention/a.h', 'proto/ringmaster/v1/job.pb.h', 'proto'),
            ('attention/a.h', 'worker/comm/ucx_exchange.h', 'worker/comm'),
            ('attention/a.h', 'nccl.h', 'NCCL'),
            ('attention/plan/plan.h', 'ATen/ATen.h', 'torch'),
            ('attention/kernels/a.h', 'ATen/ATen.h', 'torch'),
            ('models/a.h', 'ucp/api/ucp.h', 'UCX'),
            ('worker/a.h', 'ucp/api/ucp.h', 'UCX'),
            ('worker/comm/a.h', 'grpcpp/channel.h', 'gRPC'),
            ('worker/session/a.h', 'worker/comm/communicator.h', 'worker/comm'),
            ('cli/a.h', 'coordinator/core/core.h', 'coordinator/core'),
            ('base/a.h', 'proto/rpc_status.h', 'proto'),
            ('worker/a.h', 'tests/testing/fake_clock.h', 'tests'),
        ]
        for path, include, word in cases:
            with self.subTest(path=path, include=include):
                found = ladder.violations(path, f'#pragma once\n#include "{include}"\n')
                self.assertTrue(found and all(f'{path}:2' in line for line in found), found)
                self.assertTrue(any(word in line for line in found), found)

    def test_a_forbidden_include_fails_the_whole_check(self):
        self.tree.write('coordinator/core/core.cc', '#include "worker/comm/communicator.h"\n')
        self.assertEqual(len(self.complaints()), 1)

    def test_lengths(self):
        self.expect('base/a.h', HEADER + '\n' * 150, '151 lines')

    def test_function_length(self):
        body = 'x();\n' * 71
        self.tree.write('coordinator/CMakeLists.txt', 'add_library(c b.cc)')
        self.expect('coordinator/b.cc', f'namespace a {{\nvoid Long(int b) {{\n{body}}}\n}}\n', 'Long(int b)', ':2:')

    def test_words(self):
        self.expect('base/a.h', HEADER + 'std::cout << "{";\n', ':2:', 'std::cout')

    def test_markers(self):
        self.expect('base/a.h', HEADER + '// TO' 'DO: later\n', ':2:')

    def test_words_in_comments_and_strings_are_no_use(self):
        self.tree.write('base/a.h', HEADER + '// std::cout\nconst char* a = "catch (x)";\n')
        self.assertEqual(self.complaints(), [])

    def test_pure_core_has_no_clock(self):
        self.tree.write('coordinator/core/core.cc', 'auto t = std::chrono::steady_clock::now();\n')
        self.assertIn('pure core', self.complaints()[0])

    def test_a_worker_waits_by_the_steady_clock(self):
        for line in ('auto end = absl::Now() + patience;', 'mutex.AwaitWithTimeout(condition, patience);',
                     'mutex.LockWhenWithDeadline(condition, end);', 'done.WaitForNotificationWithTimeout(patience);'):
            with self.subTest(line):
                self.expect('worker/a.h', f'{HEADER}{line}\n', ':2:', 'WaitFor')
        self.tree.write('worker/a.h', f'{HEADER}call.set_deadline(absl::ToChronoTime(absl::Now() + patience));\n'
                                      'record.set_time(absl::ToUnixNanos(absl::Now()));\n')
        self.assertEqual(self.complaints(), [])

    def test_catch_outside_the_translators(self):
        self.expect('base/a.h', HEADER + 'try {} catch (...) {}\n', 'translators')

    def test_sleeping_test(self):
        self.tree.write('tests/CMakeLists.txt', 'a_test.cc')
        self.expect('tests/a_test.cc', 'std::this_thread::sleep_for(x);\n', 'sleep_for')

    def test_pragma_once(self):
        self.expect('base/a.h', 'int a;\n', '#pragma once')

    def test_unlisted_source(self):
        self.expect('coordinator/core/other.cc', '\n', 'CMakeLists.txt')

    def test_unmentioned_folder(self):
        self.tree.write('novelty/readme.md', '\n')
        self.assertIn('novelty/', self.complaints()[0])

    def test_functions_are_told_from_types_and_data(self):
        text = ('class A : public B {\n public:\n  A() : a_{1} {}\n  int G() const {\n    if (x) {\n    }\n  }\n};\n'
                'int k[] = {1, 2};\nstruct ABSL_MUST(1) C {\n};\nauto f = [](int) {\n};\n')
        self.assertIn((4, 4, 'int G() const'), functions(text))


if __name__ == '__main__':
    unittest.main()
