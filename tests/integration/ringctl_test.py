#!/usr/bin/env python3
"""ringctl as scripts use it: exit codes, pipes, formats. No workers: nothing trains."""

import fcntl
import json
import os
import pty
import select
import shutil
import struct
import subprocess
import termios
import unittest

import harness


class RingctlTest(harness.ClusterTest):
    workers = 0

    def run_it(self, *words, address=None, **options):
        return subprocess.run([f'{harness.binaries()}/ringctl', f'--address={address or self.cluster.address}', *words],
                              check=False, text=True, timeout=harness.SECONDS, stderr=subprocess.PIPE,
                              **{'stdout': subprocess.PIPE, **options})

    def expect(self, code, message, *words, **options):
        done = self.run_it(*words, **options)
        self.assertEqual(done.returncode, code, done)
        self.assertIn(message, done.stderr)
        self.assertEqual(done.stderr.count('\n'), 1, done.stderr)

    def test_exit_codes(self):
        self.expect(2, 'did you mean "submit"', 'submt')
        self.expect(2, 'unknown command "lst" (did you mean "list"?)', 'checkpoints', 'lst')
        self.expect(2, 'dim % heads == 0 must hold; nearest valid: 28, 32\n', 'submit', self.job_file(), '--set',
                    'model.dim=30')
        self.expect(2, 'cannot be read', 'submit', '/nonexistent.yaml')
        self.expect(2, 'cannot be read', 'submit', self.folder)
        self.expect(2, 'cannot be read', 'list', f'--tls-ca={self.folder}')
        self.expect(2, '--tls-ca', 'list', '--tls-cert=/a', '--tls-key=/b')
        self.expect(2, 'each other', 'list', '--tls-ca=/a', '--tls-cert=/b')
        # What is done on this machine alone asks nothing of the way to a coordinator.
        self.expect(3, '/absent', 'checkpoints', 'convert-torchscale', '/absent', '--directory=/absent', '--heads=1',
                    '--segment-lengths=1', '--dilation-rates=1', f'--tls-ca={self.folder}')
        self.expect(2, 'unknown key', 'submit', self.job_file(), '--set', 'optimiser.lr=1')
        self.expect(3, 'there is no training job', 'get', 'absent')
        for words in ('list',), ('watch', 'absent'), ('logs', '-f', 'absent'), ('metrics', '-f', 'absent'):
            self.expect(4, 'no coordinator answers', *words, address='127.0.0.1:1')

    def test_top_without_a_terminal_prints_one_picture(self):
        self.cluster.ringctl('submit', self.job_file(), '--set', 'name=pictured')
        self.addCleanup(self.cluster.start_worker('alone').stop)
        harness.wait_until(lambda: 'alone' in self.cluster.ringctl('top'), 'the worker')
        text = self.cluster.ringctl('top')
        self.assertRegex(text, r'^NAME +STATE +STEP')
        self.assertIn('pictured', text)
        self.assertNotIn('\033', text)
        self.expect(4, 'no coordinator answers', 'top', address='127.0.0.1:1')

    def test_top_is_kept_up_to_date_until_q_or_ctrl_c(self):
        for index, key in enumerate((b'q', b'\x03')):
            ours, theirs = pty.openpty()
            self.addCleanup(os.close, ours)
            self.addCleanup(os.close, theirs)
            before = termios.tcgetattr(theirs)
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('HHHH', 20, 60, 0, 0))
            top = subprocess.Popen([f'{harness.binaries()}/ringctl', f'--address={self.cluster.address}', 'top'],
                                   stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
            self.addCleanup(top.wait)
            self.addCleanup(top.kill)
            drawn = b''

            def shows(word, terminal=ours):
                nonlocal drawn
                if select.select([terminal], [], [], 0.1)[0]:
                    drawn += os.read(terminal, 1 << 16)
                return word in drawn
            harness.wait_until(lambda: shows(b'q quits'), 'the screen')
            name = f'drawn-{index}'
            self.cluster.ringctl('submit', self.job_file(), '--set', f'name={name}')
            harness.wait_until(lambda: shows(name.encode('ascii')), 'the new job')
            lines = drawn.split(b'\x1b[H')[1].replace(b'\x1b[K', b'').replace(b'\x1b[J', b'').split(b'\r\n')
            self.assertLessEqual(max(map(len, lines)), 60)
            os.write(ours, key)
            self.assertEqual(top.wait(harness.SECONDS), 0)
            # The terminal and its screen are as they were.
            self.assertEqual(termios.tcgetattr(theirs), before)
            self.assertIn(b'\x1b[?1049h', drawn)
            self.assertTrue(shows(b'\x1b[?1049l'))

    def test_output_that_cannot_be_written_is_a_failure(self):
        with open('/dev/full', 'w', encoding='ascii') as full:
            for words in ('version',), ('--version',), ('--help',), ('metrics', '--help'):
                self.expect(6, 'standard output', *words, stdout=full)
            self.cluster.ringctl('submit', self.job_file(), '--set', 'name=written')
            self.expect(6, 'writing standard output failed', 'metrics', 'written', stdout=full)
        self.expect(6, 'writing /dev/full failed', 'metrics', 'written', '--file', '/dev/full')

    def test_waiting_keeps_standard_output_parseable(self):
        self.cluster.ringctl('submit', self.job_file(), '--set', 'name=other')
        with subprocess.Popen([f'{harness.binaries()}/ringctl', f'--address={self.cluster.address}', 'submit',
                               self.job_file(), '--set', 'name=waited', '--wait', '-o', 'json'],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as waiting:
            self.wait_for('other', lambda job: True, 'its row')
            harness.wait_until(lambda: 'waited' in self.cluster.ringctl('list', '-o', 'name'), 'the job')
            self.cluster.ringctl('cancel', 'waited')
            out, err = waiting.communicate(timeout=harness.SECONDS)
        self.assertEqual(json.loads(out)['name'], 'projects/default/trainingJobs/waited')
        self.assertIn('cancelled', err)
        self.assertEqual(waiting.returncode, 1)

    def test_list_finds_jobs(self):
        for name in 'found-b', 'found-a', 'lost':
            self.cluster.ringctl('submit', self.job_file(), '--set', f'name={name}', '--set', 'labels.team=vision')
        words = self.cluster.ringctl('list', '-o', 'name', '--order-by', 'name', '--filter',
                                     'state = queued AND labels.team = vision AND name = */found-*').split()
        self.assertEqual([word.rpartition('/')[2] for word in words], ['found-a', 'found-b'])
        self.expect(2, "filter: at character 1: a job has no field 'stat'", 'list', '--filter', 'stat = QUEUED')
        self.expect(2, "order_by: 'name up' is not", 'list', '--order-by', 'name up')

    def test_labels_are_set_and_removed(self):
        self.cluster.ringctl('submit', self.job_file(), '--set', 'name=labelled', '--set', 'labels.team=vision')
        self.cluster.ringctl('label', 'labelled', 'tier=gold', 'team-')
        self.assertEqual(self.cluster.job('labelled')['labels'], {'tier': 'gold'})
        found = self.cluster.ringctl('list', '-o', 'name', '--filter', 'labels.tier = gold').split()
        self.assertEqual(len(found), 1, found)
        self.expect(2, 'neither', 'label', 'labelled', 'tier')
        self.expect(2, 'training_job.labels', 'label', 'labelled', 'Tier=1')
        self.expect(2, 'names nothing', 'label', 'labelled', 'Tier-')
        self.expect(2, 'is named twice', 'label', 'labelled', 'tier=1', 'tier-')
        self.cluster.ringctl('cancel', 'labelled')

    def test_priorities_order_the_queue(self):
        for name, priority in ('patient', -5), ('urgent', 5):
            self.cluster.ringctl('submit', self.job_file(), '--set', f'name={name}', '--set', f'priority={priority}')
        self.assertRegex(self.cluster.ringctl('list', '--filter', 'priority > 0'), r'(?m)^urgent .* 5 ')
        self.assertRegex(self.cluster.ringctl('priority', 'patient', '-7'), r'(?m)^patient .* -7 ')
        self.assertRegex(self.cluster.ringctl('describe', 'patient'), r'(?m)^Priority: +-7$')
        self.expect(2, 'training_job.spec.priority', 'priority', 'patient', '1001')
        self.cluster.ringctl('priority', 'patient', '1000')
        self.assertEqual(self.cluster.job('patient')['status']['pending_reason']['queue_position'], 1)
        for name in 'patient', 'urgent':
            self.cluster.ringctl('cancel', name)

    def test_describe_has_the_formats_of_get(self):
        self.cluster.ringctl('submit', self.job_file(), '--set', 'name=described')
        self.assertIn('Waiting:', self.cluster.ringctl('describe', 'described'))
        self.assertEqual(json.loads(self.cluster.ringctl('describe', 'described', '-o', 'json')),
                         self.cluster.job('described'))

    def test_metrics_open_the_file_once_there_is_an_answer(self):
        path = f'{self.folder}/kept.csv'
        with open(path, 'w', encoding='ascii') as file:
            file.write('what was measured before')
        self.expect(2, 'csv, jsonl, tensorboard', 'metrics', 'absent', '-o', 'xml', '--file', path)
        self.expect(3, 'there is no training job', 'metrics', 'absent', '--file', path)
        self.expect(4, 'no coordinator answers', 'metrics', 'absent', '--file', path, address='127.0.0.1:1')
        with open(path, encoding='ascii') as file:
            self.assertEqual(file.read(), 'what was measured before')
        # A job without a step yet.
        self.cluster.ringctl('submit', self.job_file(), '--set', 'name=measured')
        self.expect(2, 'cannot be opened', 'metrics', 'measured', '--file', self.folder)
        self.cluster.ringctl('metrics', 'measured', '--file', path)
        with open(path, encoding='ascii') as file:
            self.assertRegex(file.read(), r'^step,generation,.*\n$')

    def test_an_empty_value_takes_no_other_flag(self):
        self.cluster.ringctl('submit', self.job_file(), '--set', 'name=unnamed')
        printed = self.cluster.ringctl('metrics', 'unnamed')
        self.assertEqual(self.run_it('metrics', 'unnamed', '--file=', '--start-step=0', cwd=self.folder).stdout, printed)
        self.assertNotIn('--start-step=0', os.listdir(self.folder))

    def test_generate_hands_its_options_to_the_worker_program(self):
        beside = f'{self.folder}/bin'
        os.makedirs(beside)
        shutil.copy(f'{harness.binaries()}/ringctl', beside)
        with open(f'{beside}/ringmaster-worker', 'w', encoding='ascii') as script:
            script.write('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        os.chmod(script.name, 0o755)
        told = lambda *words: sorted(subprocess.run([f'{beside}/ringctl', 'generate', '--checkpoint=/c', *words],
                                                    check=True, capture_output=True, text=True,
                                                    timeout=harness.SECONDS).stdout.splitlines())
        options = ['--checkpoint=/c', '--prompt=', '--seed=1', '--temperature=0.8', '--threads=0', '--tokens=200', 'generate']
        self.assertEqual(told(), options)
        self.assertEqual(told('--prompt', 'a b'), [word.replace('--prompt=', '--prompt=a b') for word in options])
        # What a shell makes of an empty variable.
        self.assertEqual(told('--prompt=', '--seed=3'), [word.replace('--seed=1', '--seed=3') for word in options])

    def test_a_directory_to_import_may_be_written_as_shells_do(self):
        os.makedirs(f'{self.folder}/shared/step-1', exist_ok=True)
        for words in (f'{self.folder}/shared/step-1/', f'{self.folder}/shared/../shared/./step-1'):
            # There is no manifest; the path itself is fine.
            self.expect(2, f'no readable file {self.folder}/shared/step-1/manifest.json', 'checkpoints', 'import', words)


if __name__ == '__main__':
    harness.main()
