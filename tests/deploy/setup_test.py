#!/usr/bin/env python3
"""What deploy/local/setup says without changing anything: setup_test.py CHECKOUT"""

import os
import subprocess
import sys
import tempfile
import unittest

SETUP = os.path.join(sys.argv[1], 'deploy', 'local', 'setup')


def setup(*words, **env):
    return subprocess.run([SETUP, *words], capture_output=True, text=True, check=False, timeout=60,
                          env={**os.environ, **env})


class SetupTest(unittest.TestCase):
    def test_check_names_what_is_missing_and_installs_nothing(self):
        with tempfile.TemporaryDirectory() as folder:
            deps = os.path.join(folder, 'deps')
            done = setup('--check', '--cuda', '--tests', RINGMASTER_DEPS=deps)
            self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
            self.assertRegex(done.stdout, r'missing wheels in \S+: .*torch==.*nvidia-nccl')
            self.assertRegex(done.stdout, r'run \S*setup --cuda --tests\n')
            self.assertFalse(os.path.exists(deps))

    def test_unknown_options_are_refused(self):
        done = setup('--chekc')
        self.assertEqual(done.returncode, 2)
        self.assertIn('--check', done.stderr)


if __name__ == '__main__':
    unittest.main(argv=sys.argv[:1], verbosity=2)
