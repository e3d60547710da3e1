#!/usr/bin/env python3
"""Who may do what, with real processes over TLS: tokens of users and of workers."""

import glob
import json
import os
import socket
import stat
import subprocess
import tempfile
import unittest

import harness


class TokensTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix='ringmaster-tokens-')
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        harness.make_certificate(self.folder)
        self.ca = f'{self.folder}/tls.crt'
        self.cluster = harness.Cluster(
            harness.binaries(), self.folder, workers=0,
            coordinator_args=('--require-tokens', f'--tls-cert={self.ca}', f'--tls-key={self.folder}/tls.key'),
            worker_args=('--threads=1', f'--tls-ca={self.ca}'))
        self.addCleanup(self.cluster.stop)
        self.admin = f'{self.folder}/data/admin-token'

    def run_as(self, token_file, *words, tls=True, address=None, **env):
        """ringctl's end, with a token from a file, or without one."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith('RINGMASTER_')}
        if token_file:
            environment['RINGMASTER_TOKEN_FILE'] = token_file
        if tls:
            environment['RINGMASTER_TLS_CA'] = self.ca
        return subprocess.run([f'{harness.binaries()}/ringctl', f'--address={address or self.cluster.address}', *words],
                              check=False, text=True, timeout=harness.SECONDS, capture_output=True,
                              env={**environment, **env})

    def told(self, token_file, *words, **env):
        done = self.run_as(token_file, *words, **env)
        self.assertEqual(done.returncode, 0, f'{words}: {done.stderr}')
        return done.stdout

    def refused(self, message, token_file, *words, **env):
        done = self.run_as(token_file, *words, **env)
        self.assertEqual(done.returncode, 7, done)
        self.assertIn(message, done.stderr)

    def token(self, name, *words):
        """The file of a new token."""
        path = f'{self.folder}/{name}.token'
        with open(path, 'w', encoding='ascii') as file:
            file.write(self.told(self.admin, 'tokens', 'create', name, *words))
        return path

    def id_of(self, name):
        tokens = json.loads(self.told(self.admin, 'tokens', 'list', '-o', 'json'))
        (found,) = [token['name'] for token in tokens if token['display_name'] == name]
        return found

    def submit(self, token_file, name):
        text = harness.text_file(self.folder)
        path = f'{self.folder}/{name}.yaml'
        with open(path, 'w', encoding='utf-8') as file:
            file.write(harness.JOB.format(text=text, steps=5))
        return self.run_as(token_file, 'submit', path, '--set', f'name={name}')

    def idle_workers(self):
        return [worker['name'] for worker in json.loads(self.told(self.admin, 'workers', '-o', 'json') or '[]')
                if worker['state'] == 'IDLE']

    def log(self, name):
        with open(f'{self.folder}/logs/{name}.log', encoding='utf-8') as file:
            return file.read()

    def audit_records(self):
        """Of all files, in their order."""
        records = []
        for path in glob.glob(f'{self.folder}/data/audit*.jsonl'):
            with open(path, encoding='ascii') as file:
                records += [json.loads(line) for line in file if line.endswith('\n')]
        return sorted(records, key=lambda record: record['time'].rstrip('Z'))

    def test_users(self):
        self.assertEqual(stat.S_IMODE(os.stat(self.admin).st_mode), 0o600)
        viewer = self.token('viewer', '--scope=viewer')
        submitter = self.token('submitter', '--scope=submitter', '--only-project=default', '--expires-in=12h')
        self.refused('set --token-file', None, 'list')
        self.assertEqual(self.told(viewer, 'list', '-o', 'name'), '')
        done = self.submit(viewer, 'refused')
        self.assertEqual(done.returncode, 7, done)
        self.assertIn('takes a token of scope submitter', done.stderr)
        self.assertEqual(self.submit(submitter, 'accepted').returncode, 0)
        self.assertIn('trainingJobs/accepted', self.told(viewer, 'list', '-o', 'name'))
        self.refused('good for projects/default only', submitter, '--project=other', 'list')
        self.refused('takes a token of scope admin', submitter, 'tokens', 'list')
        # Without a file, and not as an argument, which everybody could read.
        with open(viewer, encoding='ascii') as file:
            secret = file.read().strip()
        self.told(None, 'list', RINGMASTER_TOKEN=secret)

        before = self.told(self.admin, 'tokens', 'list')
        # A line is written soon after its call has ended.
        harness.wait_until(lambda: len(self.audit_records()) == 8, 'the audit log')
        self.cluster.coordinator.kill()
        self.cluster.start_coordinator()
        self.assertIn('trainingJobs/accepted', self.told(viewer, 'list', '-o', 'name'))
        self.told(self.admin, 'tokens', 'revoke', self.id_of('viewer'))
        self.refused('was revoked', viewer, 'list')
        self.assertEqual(before.count('in force'), 3)
        self.assertEqual(self.told(self.admin, 'tokens', 'list').count('in force'), 2)
        self.assertNotIn(secret, before + self.log('coordinator'))
        self.cluster.coordinator.stop()
        records = self.audit_records()
        told = [(record['method'].rpartition('.')[2], record['outcome'], record.get('reason', '')) for record in records]
        self.assertEqual(told, [
            ('CreateToken', 'OK', ''), ('CreateToken', 'OK', ''), ('ListTrainingJobs', 'UNAUTHENTICATED', 'TOKEN_MISSING'),
            ('CreateTrainingJob', 'PERMISSION_DENIED', 'SCOPE_TOO_NARROW'), ('CreateTrainingJob', 'OK', ''),
            ('ListTrainingJobs', 'PERMISSION_DENIED', 'OTHER_PROJECT'),
            ('ListTokens', 'PERMISSION_DENIED', 'SCOPE_TOO_NARROW'), ('ListTokens', 'OK', ''), ('ListTokens', 'OK', ''),
            ('RevokeToken', 'OK', ''), ('ListTrainingJobs', 'UNAUTHENTICATED', 'TOKEN_REVOKED'),
            ('ListTokens', 'OK', '')])
        self.assertNotIn(secret[-64:], json.dumps(records))
        with open(f'{self.folder}/data/coordinator.db', 'rb') as file:
            self.assertNotIn(secret[-64:].encode('ascii'), file.read())

    def test_token_does_not_travel_in_the_clear(self):
        done = self.run_as(self.admin, 'list', tls=False, address='example.org:7077')
        self.assertEqual(done.returncode, 2, done)
        self.assertIn('in the clear', done.stderr)
        for text in '', 'two words', 'two\nlines':
            with open(f'{self.folder}/bad', 'w', encoding='ascii') as file:
                file.write(text)
            done = self.run_as(f'{self.folder}/bad', 'list')
            self.assertEqual(done.returncode, 2, done)
            self.assertIn('does not hold one token', done.stderr)

    def test_workers(self):
        worker, viewer = self.token('worker', '--scope=worker'), self.token('viewer', '--scope=viewer')
        self.refused('takes a token of scope viewer', worker, 'list')
        for name, arguments in (('without', ()), ('wrong', (f'--token-file={viewer}',))):
            self.cluster.start_worker(name, *arguments)
        self.cluster.start_worker('one', f'--token-file={worker}')
        self.cluster.start_worker('two', f'--token-file={worker}')
        harness.wait_until(lambda: len(self.idle_workers()) >= 2, 'two workers')
        self.assertEqual(self.submit(self.admin, 'trained').returncode, 0)
        self.assertIn('succeeded', self.told(self.admin, 'watch', 'trained'))
        self.assertEqual(sorted(self.idle_workers()), ['workers/one', 'workers/two'])
        for name, reason in (('without', 'a token is needed'), ('wrong', 'takes a token of scope worker')):
            harness.wait_until(lambda name=name, reason=reason: reason in self.log(name), f'{name} is told why')
        self.told(self.admin, 'tokens', 'revoke', self.id_of('worker'))
        harness.wait_until(lambda: not self.idle_workers(), 'no worker')
        # A new token in the same file lets them in again.
        self.token('worker-2', '--scope=worker')
        os.replace(f'{self.folder}/worker-2.token', worker)
        harness.wait_until(lambda: len(self.idle_workers()) >= 2, 'two workers again')


class LoopbackTest(harness.ClusterTest):
    workers = 0

    def test_plain_loopback_asks_for_no_token_and_may_be_sent_one(self):
        secret = self.cluster.ringctl('tokens', 'create', 'somebody', '--scope=viewer')
        path = f'{self.folder}/token'
        with open(path, 'w', encoding='ascii') as file:
            file.write(secret)
        self.cluster.ringctl('list')
        self.cluster.ringctl('list', f'--token-file={path}')
        self.assertFalse(os.path.exists(f'{self.folder}/data/admin-token'))
        done = subprocess.run([f'{harness.binaries()}/ringctl', f'--address={self.cluster.address}', 'tokens', 'create',
                               'somebody', '--scope=root'], check=False, text=True, capture_output=True)
        self.assertEqual(done.returncode, 2)
        self.assertIn('there is no "root"', done.stderr)
        # That would be anybody's way in when tokens are asked for.
        with self.assertRaisesRegex(RuntimeError, 'asks for no tokens'):
            self.cluster.ringctl('tokens', 'create', 'somebody', '--scope=admin')

    def test_proxy_gets_nothing_in_the_clear(self):
        # Nobody listens there.
        with socket.socket() as proxy:
            proxy.bind(('127.0.0.1', 0))
            done = subprocess.run(
                [f'{harness.binaries()}/ringctl', f'--address={self.cluster.address}', 'list'], check=False, text=True,
                capture_output=True, timeout=harness.SECONDS, env={
                    **os.environ, 'http_proxy': f'http://127.0.0.1:{proxy.getsockname()[1]}', 'no_grpc_proxy': ''})
        self.assertEqual(done.returncode, 0, done)

    def test_tokens_over_plain_loopback(self):
        with tempfile.TemporaryDirectory(prefix='ringmaster-tokens-') as folder, \
                harness.Cluster(harness.binaries(), folder, coordinator_args=('--require-tokens',)) as cluster:
            with self.assertRaisesRegex(RuntimeError, 'set --token-file'):
                cluster.ringctl('list')
            cluster.ringctl('list', f'--token-file={folder}/data/admin-token')


if __name__ == '__main__':
    harness.main()
