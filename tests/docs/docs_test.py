#!/usr/bin/env python3
"""Holds the documents to the programs: docs_test.py CHECKOUT BIN"""

import functools
import glob
import os
import re
import subprocess
import sys
import unittest

CHECKOUT, BIN = sys.argv[1:3]
DAEMONS = ('ringmaster-coordinator', 'ringmaster-worker')


def read(*path):
    with open(os.path.join(CHECKOUT, *path), encoding='utf-8') as file:
        return file.read()


@functools.lru_cache(maxsize=None)
def said(program, *words):
    """What the program prints, wherever and however it ends."""
    done = subprocess.run([os.path.join(BIN, program), *words], capture_output=True, text=True, check=False, timeout=60)
    return done.stdout + done.stderr


def flags(program, *command):
    return set(re.findall(r'(?<![\w-])(--?[a-z][\w-]*)', said(program, *command, '--help')))


class DocsTest(unittest.TestCase):
    def test_links_and_paths_resolve(self):
        for page in ['README.md', 'ARCHITECTURE.md', 'CHANGELOG.md', *glob.glob('docs/*.md', root_dir=CHECKOUT),
                     *glob.glob('deploy/**/*.md', root_dir=CHECKOUT, recursive=True),
                     *glob.glob('benchmarks/*.md', root_dir=CHECKOUT)]:
            text = read(page)
            for target in re.findall(r'\]\(([^)#:]+)(?:#[^)]*)?\)', text):
                path = os.path.join(CHECKOUT, os.path.dirname(page), target)
                self.assertTrue(os.path.exists(path), f'{page} links to {target}')
            folders = 'base|proto|coordinator|attention|models|worker|cli|deploy|tests|benchmarks|docs|cmake'
            for path in re.findall(rf'`((?:{folders})/[\w./-]*)', text):
                names = glob.glob(os.path.join(CHECKOUT, path) + '*')
                self.assertTrue(names, f'{page} names {path}')

    def test_ringctl_commands_in_the_readme_exist(self):
        rows = re.findall(r'^\| (`ringctl .*?) \|', read('README.md'), re.M)
        self.assertGreater(len(rows), 8)
        for row in rows:
            for group in re.findall(r'`([^`]+)`', row):
                words = group.removeprefix('ringctl ').replace('[', ' ').replace(']', ' ').split()
                if words[0] in ('table', 'json', 'yaml', 'name') or words[0].startswith('-'):
                    continue
                self.assertNotIn('unknown command', said('ringctl', words[0], '--help'), row)
                self.assertIn('Usage', said('ringctl', words[0], '--help'), row)
                for flag in (word for word in words if word.startswith('-')):
                    self.assertIn(flag, flags('ringctl', words[0]), row)

    def test_every_ringctl_command_is_in_the_readme(self):
        commands = re.findall(r'^  (\w+) ', said('ringctl', '--help').partition('Subcommands:')[2], re.M)
        self.assertIn('submit', commands)
        table = ' '.join(re.findall(r'^\| `ringctl .*?\|', read('README.md'), re.M))
        self.assertEqual([command for command in commands if not re.search(rf'[` ]{command}\b', table)], [])

    def test_flags_and_documents_agree(self):
        text = read('docs', 'operations.md')
        for program in DAEMONS:
            section = re.search(rf'^## {program}\n(.*?)(?=^## |\Z)', text, re.M | re.S).group(1)
            documented = {flag for row in re.findall(r'^\| (`--.*?) \|', section, re.M)
                          for flag in re.findall(r'--[\w-]+', row)}
            self.assertEqual(documented, {flag for flag in flags(program) if flag.startswith('--')} -
                             {'--help', '--help-all', '--version'}, program)
        everything = flags('ringctl').union(*(flags(program) for program in DAEMONS))
        for command in re.findall(r'^  (\w+) ', said('ringctl', '--help'), re.M):
            everything |= flags('ringctl', command)
        for script in ('demo', 'setup'):
            everything |= flags(os.path.join(CHECKOUT, 'deploy', 'local', script))
        named = set(re.findall(r'(?<![\w-])--[a-z][\w-]+', read('README.md')))
        self.assertEqual(named - everything - {'--install', '--prefix'}, set())  # those are cmake's

    def test_the_metric_table_is_the_programs(self):
        text = read('docs', 'metrics.md')
        for program in DAEMONS:
            self.assertIn(said(program, '--print-metrics').strip(), text,
                          f'paste the output of {program} --print-metrics into docs/metrics.md')

    def test_documented_exit_codes_are_the_programs(self):
        codes = dict(re.findall(r'\bkExit(\w+) = (\d+)', read('base', 'exit_code.h')))
        said_codes = re.search(r'^Exit codes: (.*?)\n\n', read('README.md'), re.M | re.S).group(1)
        self.assertEqual(sorted(map(int, re.findall(r'(?:^|; )(\d) ', said_codes.replace('\n', ' ')))),
                         sorted(map(int, codes.values())))


if __name__ == '__main__':
    unittest.main(argv=sys.argv[:1], verbosity=2)
