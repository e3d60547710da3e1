#!/usr/bin/env python3
"""deploy/local/demo, shortened, without and with --chaos; and that it fails when it should."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import types
import unittest

import harness

import demo

STEPS = 30


def packaged_text(folder):
    """PATH with a `bible` program: the package's, or one that prints other text in its form."""
    if shutil.which('bible'):
        return os.environ['PATH']
    with open(harness.text_file(folder, 400000), encoding='ascii') as file:
        verses = ''.join(f'Gen1:{number} {line}' for number, line in enumerate(file, 1))
    program = os.path.join(folder, 'bible')
    with open(program, 'w', encoding='ascii') as file:
        file.write(f'#!/bin/sh\ncat <<END\n{verses}END\n')
    os.chmod(program, 0o755)
    return f'{folder}:{os.environ["PATH"]}'


class DemoTest(unittest.TestCase):
    def run_demo(self, *words):
        with tempfile.TemporaryDirectory(prefix='ringmaster-demo-') as folder:
            done = subprocess.run(
                [sys.executable, demo.__file__, '--bin', harness.binaries(), '--dir', f'{folder}/state', *words],
                env={**os.environ, 'PATH': packaged_text(folder)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, errors='replace', check=False)
        self.assertEqual(done.returncode, 0, done.stdout)
        return done.stdout

    def test_it_trains(self):
        said = self.run_demo('--steps', '12')
        for promise in ('sequences of at least 8,192 bytes: 8,192',
                        'of at least three branches two span both ranks by the plan: 2 of 3', 'the bytes exchanged are those planned', 'training loss falls',
                        'a sample goes on from its prompt'):
            self.assertRegex(said, f'(?m)^Kept +{promise}')
        self.assertIn('succeeded step 12/12', said)
        for promise in ('it ends within 20 minutes', 'a second start takes under 60 s'):
            self.assertRegex(said, rf'(?m)^(Kept|Missed) +{promise}.*\(does not count in a shortened run\)$')

    def test_killed_workers_and_coordinators_change_no_loss(self):
        said = self.run_demo('--chaos', '--steps', str(STEPS), '--kill-steps', '5')
        self.assertRegex(said, f'(?m)^Kept +all {STEPS} losses equal')
        self.assertRegex(said, '(?m)^Kept +every killed worker is lost in an episode that ended')
        workers, coordinators = map(int, re.search('coordinators killed: (.*) and ([0-9]+)', said).groups())
        self.assertGreaterEqual(workers, 2, said)
        self.assertGreaterEqual(coordinators, 1, said)

    def test_nothing_to_kill_without_chaos(self):
        with tempfile.TemporaryDirectory(prefix='ringmaster-demo-') as folder:
            for kill_steps in ('5', '0'):
                done = subprocess.run([sys.executable, demo.__file__, '--bin', folder, '--dir', f'{folder}/state',
                                       '--kill-steps', kill_steps], capture_output=True, text=True, check=False)
                self.assertEqual((done.returncode, done.stdout), (2, ''))
                self.assertIn('--kill-steps is for --chaos', done.stderr)


class WatchingTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix='ringmaster-demo-')
        self.addCleanup(folder.cleanup)
        self.program = f'{folder.name}/ringctl'
        self.cluster = types.SimpleNamespace(bin=folder.name, address='nowhere')

    def watch_with(self, command):
        with open(self.program, 'w', encoding='ascii') as file:
            file.write(f'#!/bin/sh\n{command}\n')
        os.chmod(self.program, 0o755)
        return demo.watching(self.cluster, 'job')

    def test_it_ends_with_the_job(self):
        with self.watch_with('exit 3') as watcher:
            pass
        self.assertEqual(watcher.returncode, 3)

    def test_it_does_not_outlive_the_demo(self):
        with self.assertRaises(SystemExit), self.watch_with('exec sleep 600') as watcher:
            sys.exit(143)
        self.assertEqual(watcher.returncode, -signal.SIGTERM)


class PromisesTest(unittest.TestCase):
    def ends_with(self, whole, kept, of_whole_run):
        promises = demo.Promises(whole)
        with contextlib.redirect_stdout(io.StringIO()):
            promises.check(kept, 'it holds', of_whole_run)
        try:
            promises.require()
        except SystemExit as end:
            return end.code
        return None

    def test_a_missed_promise_ends_the_demo(self):
        missed = 'demo: missed: it holds'
        self.assertEqual(self.ends_with(whole=True, kept=False, of_whole_run=True), missed)
        self.assertEqual(self.ends_with(whole=False, kept=False, of_whole_run=False), missed)
        self.assertIsNone(self.ends_with(whole=False, kept=False, of_whole_run=True))
        self.assertIsNone(self.ends_with(whole=True, kept=True, of_whole_run=True))

    def test_a_sample_of_its_prompt_alone_is_none(self):
        for generated, kept in (('', False), ('x' * 99 + '\n', False), ('x' * 100, True)):
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                demo.check_sample(demo.PROMPT + generated, demo.Promises(whole=False))
            self.assertTrue(said.getvalue().startswith('Kept' if kept else 'Missed'), said.getvalue())

    def test_a_job_too_small_is_seen(self):
        def said_of(size, length, sent):
            """`sent`: what each branch exchanges as the only one."""
            spec = {'data': {'sequence_length': length},
                    'attention': {'segment_lengths': list(sent), 'dilation_rates': [1] * len(sent)}}

            def ringctl(*words):
                branch = re.search(r'segment_lengths=\[(\w+)\]', ' '.join(words))
                return json.dumps({'exchanged_bytes_per_step': sent[branch[1]]} if branch else {'spec': spec})
            said = io.StringIO()
            with tempfile.NamedTemporaryFile() as text, contextlib.redirect_stdout(said):
                os.truncate(text.name, size)
                demo.check_job(types.SimpleNamespace(ringctl=ringctl), text.name, demo.Promises(whole=True))
            return re.findall('^Kept|^Missed', said.getvalue(), re.M)
        large = {'size': 1000000, 'length': '8192', 'sent': {'512': '0', '1024': '8', '8192': '8'}}
        self.assertEqual(said_of(**large), ['Kept'] * 3)
        for place, small in enumerate(({'size': 999999}, {'length': '8191'}, {'sent': {'1024': '8', '8192': '8'}},
                                       {'sent': {'512': '0', '1024': '0', '8192': '8'}})):
            expected = ['Kept'] * 3
            expected[min(place, 2)] = 'Missed'
            self.assertEqual(said_of(**{**large, **small}), expected, small)

    def test_a_start_is_a_second_one_when_nothing_was_built(self):
        with tempfile.TemporaryDirectory(prefix='ringmaster-demo-') as folder:
            for program in demo.PROGRAMS:
                with open(f'{folder}/{program}', 'w', encoding='ascii'):
                    os.utime(f'{folder}/{program}', (1000, 1000))
            first = {1: {'time': '1970-01-01T01:00:00.5+00:00'}}  # second 3600.5
            cluster = types.SimpleNamespace(bin=folder, step_records=lambda name: first)
            for begun, says in ((3541, 'Kept'), (3540, 'Missed'), (999, None)):
                said = io.StringIO()
                with contextlib.redirect_stdout(said):
                    demo.show_start(cluster, 'job', begun, demo.Promises(whole=True))
                self.assertEqual(re.findall('^(Kept|Missed) ', said.getvalue(), re.M), [says] if says else [])

    def test_kills_and_their_episodes(self):
        def episode(*lost, **changes):
            """One of 1 s in all; None takes a key away."""
            whole = {'lost_workers': lost, 'finished': True, 'detect_ms': '9', 'abort_ms': '1', 'form_ms': '40',
                     'restore_ms': '0', 'first_step_ms': '950', **changes}
            return {key: value for key, value in whole.items() if value is not None}

        def missed(episodes, coordinator=False):
            """Which promises, when a, b and a again were killed, the last perhaps with the coordinator."""
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                demo.check_episodes(episodes, [('a', False), ('b', False), ('a', coordinator)], demo.Promises(whole=True))
            return re.findall('^Missed +(median|every killed|detection)', said.getvalue(), re.M)

        self.assertEqual(missed([episode('a'), episode('b'), episode('a', detect_ms='99')]), [])
        self.assertEqual(missed([episode('b', 'a'), episode('a')]), [])
        self.assertEqual(missed([episode('a'), episode('b'), episode('a', detect_ms='100')]), ['detection'])
        unknown = [episode('a'), episode('b'), episode('a', detect_ms=None)]
        self.assertEqual(missed(unknown), ['detection'])
        self.assertEqual(missed(unknown, coordinator=True), [])
        late = [episode('a'), episode('b'), episode('a', detect_ms='300')]
        self.assertEqual(missed(late), ['detection'])
        self.assertEqual(missed(late, coordinator=True), [])
        self.assertEqual(missed([episode('a'), episode('b'), episode()]), ['every killed', 'detection'])
        self.assertEqual(missed([episode('a', 'b')], coordinator=True), ['every killed'])
        self.assertEqual(missed([episode('a'), episode('b'), episode('a', finished=None)]), ['every killed'])
        # What is not known is no short time.
        for without in ({'finished': None}, {'form_ms': None}):
            self.assertIn('median', missed([episode('a', **without), episode('b', **without), episode('a')]))
        self.assertEqual(missed([]), ['median', 'every killed', 'detection'])

    def test_one_other_loss_is_seen(self):
        run = {1: {'loss': '5.5'}, 2: {'loss': '5.25', 'validation_loss': '5.125'}}
        with contextlib.redirect_stdout(io.StringIO()):
            self.assertTrue(demo.compare(run, run))
            for step, change in ((1, {'loss': '5.50000000001'}), (2, {'validation_loss': '5.126'})):
                self.assertFalse(demo.compare(run, {**run, step: {**run[step], **change}}))
            self.assertFalse(demo.compare(run, {1: run[1]}))


if __name__ == '__main__':
    harness.main()
