#!/usr/bin/env python3
"""What deploy/local/setup says, and asks of apt, without changing anything: setup_test.py CHECKOUT"""

import os
import shutil
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

    def asked_of_apt_get(self, packaged):
        """What `setup --tests` has apt-get do where only kubectl is missing and the package lists have `packaged`. Goes
        no further than the packages: there is no Python."""
        with tempfile.TemporaryDirectory() as folder:
            programs = {'apt-get': f'echo "$@" >> {folder}/asked',
                        'apt-cache': f'case " {" ".join(packaged)} " in *" $2 "*) echo "$2 | 1.0" ;; esac',
                        'dpkg-query': 'printf installed', 'id': 'echo 0', 'python3': 'exit 1'}
            for name, body in programs.items():
                with open(f'{folder}/{name}', 'w', encoding='ascii') as file:
                    file.write(f'#!/bin/sh\n{body}\n')
                os.chmod(f'{folder}/{name}', 0o755)
            for name in ('bash', 'dirname', 'env', 'mkdir', 'mktemp', 'rm'):
                os.symlink(shutil.which(name), f'{folder}/{name}')
            done = setup('--tests', PATH=folder, TMPDIR=folder, RINGMASTER_DEPS=f'{folder}/deps')
            self.assertIn('setup: pip install torch', done.stdout, done.stderr)
            if not os.path.exists(f'{folder}/asked'):
                return []
            with open(f'{folder}/asked', encoding='ascii') as file:
                return [line.split(' -qq ')[1].rstrip() for line in file]

    def test_apt_get_is_asked_only_for_what_is_missing_and_packaged(self):
        self.assertEqual(self.asked_of_apt_get(['apt']), [])
        self.assertEqual(self.asked_of_apt_get(['apt', 'kubernetes-client']),
                         ['update', 'install -y --no-install-recommends kubernetes-client'])
        # No lists yet.
        self.assertEqual(self.asked_of_apt_get([]), ['update'])


if __name__ == '__main__':
    unittest.main(argv=sys.argv[:1], verbosity=2)
