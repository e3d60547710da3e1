#!/usr/bin/env python3
"""Workers that show certificates instead of tokens, and certificates that are replaced while all goes on."""

import json
import os
import subprocess
import tempfile
import unittest

import harness


class Authority:
    """Issues certificates: issue('worker', 'URI:spiffe://test/ringmaster/worker') makes worker.crt and worker.key."""

    def __init__(self, folder, name):
        self.folder, self.name = folder, name
        os.makedirs(folder, exist_ok=True)
        self._openssl('req', '-x509', *self._key('authority'), '-days', '2', '-subj', f'/CN={name}', '-out', 'ca.crt')

    def _openssl(self, *words, **options):
        subprocess.run(['openssl', *words], cwd=self.folder, check=True, capture_output=True, **options)

    @staticmethod
    def _key(name):
        return '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-keyout', f'{name}.key'

    def issue(self, name, san):
        self._openssl('req', '-new', *self._key(name), '-subj', f'/CN={name}', '-out', f'{name}.csr')
        with open(f'{self.folder}/{name}.san', 'w', encoding='ascii') as file:
            file.write(f'subjectAltName={san}\n')
        self._openssl('x509', '-req', '-in', f'{name}.csr', '-CA', 'ca.crt', '-CAkey', 'authority.key', '-days', '2',
                      '-CAcreateserial', '-extfile', f'{name}.san', '-out', f'{name}.crt')

    def flags(self, name):
        return [f'--tls-ca={self.folder}/ca.crt', f'--tls-cert={self.folder}/{name}.crt',
                f'--tls-key={self.folder}/{name}.key']


def authority(folder, name):
    made = Authority(folder, name)
    made.issue('server', 'DNS:localhost,IP:127.0.0.1')
    made.issue('worker', 'URI:spiffe://test/ringmaster/worker')
    made.issue('other', 'URI:spiffe://test/ringmaster/worker/other')
    made.issue('user', 'DNS:user')
    return made


class CertificatesTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix='ringmaster-certificates-')
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.first = authority(f'{self.folder}/first', 'first')
        self.second = authority(f'{self.folder}/second', 'second')
        # What the processes are told of: a link that changes all files at once, as a Kubernetes volume does.
        self.live = f'{self.folder}/live'
        os.symlink(self.first.folder, self.live)
        self.cluster = harness.Cluster(
            harness.binaries(), self.folder, workers=0, worker_args=('--threads=1',), coordinator_args=(
                '--require-tokens', f'--tls-cert={self.live}/server.crt', f'--tls-key={self.live}/server.key',
                f'--tls-client-ca={self.live}/ca.crt'))
        self.addCleanup(self.cluster.stop)
        self.token = f'--token-file={self.folder}/data/admin-token'

    def run_as(self, *words):
        return subprocess.run([f'{harness.binaries()}/ringctl', f'--address={self.cluster.address}', *words],
                              check=False, text=True, timeout=harness.SECONDS, capture_output=True)

    def idle_workers(self, issuer):
        done = self.run_as(*issuer.flags('user'), self.token, 'workers', '-o', 'json')
        return [worker['name'] for worker in json.loads(done.stdout or '[]') if worker['state'] == 'IDLE']

    def test_certificate_says_who_is_a_worker(self):
        self.assertEqual(self.run_as(*self.first.flags('user'), self.token, 'list').returncode, 0)
        # Of another authority, and none.
        foreign = [f'--tls-ca={self.first.folder}/ca.crt', *self.second.flags('user')[1:]]
        for flags in foreign, foreign[:1]:
            self.assertEqual(self.run_as(*flags, self.token, 'list').returncode, 4)
        # A user's certificate says nothing of what one may do, and a worker's makes nobody a user.
        done = self.run_as(*self.first.flags('user'), 'list')
        self.assertEqual((done.returncode, '--token-file' in done.stderr), (7, True), done.stderr)
        done = self.run_as(*self.first.flags('worker'), 'list')
        self.assertEqual(done.returncode, 7)
        self.assertIn('takes a token of scope viewer', done.stderr)
        self.assertEqual(self.run_as(*self.first.flags('worker'), self.token, 'list').returncode, 0)

        self.cluster.start_worker('other', *self.first.flags('other'))
        self.cluster.start_worker('one', *self.first.flags('worker'))
        harness.wait_until(lambda: self.idle_workers(self.first), 'a worker')

        def other_log():
            with open(f'{self.folder}/logs/other.log', encoding='utf-8') as file:
                return file.read()
        harness.wait_until(lambda: 'a token is needed' in other_log(), 'the other is refused')
        self.assertEqual(self.idle_workers(self.first), ['workers/one'])
        self.cluster.coordinator.stop()
        for kind, session in (('', ('spiffe://test/ringmaster/worker', 'OK')), ('-unknown', ('', 'UNAUTHENTICATED'))):
            with open(f'{self.folder}/data/audit{kind}.jsonl', encoding='ascii') as file:
                sessions = {(record.get('caller', ''), record['outcome']) for record in map(json.loads, file)
                            if record['method'] == 'WorkerService.Session'}
            self.assertEqual(sessions, {session})

    def test_replaced_certificates_are_taken_up(self):
        flags = [f'--tls-ca={self.live}/ca.crt', f'--tls-cert={self.live}/worker.crt',
                 f'--tls-key={self.live}/worker.key']
        worker = self.cluster.start_worker('one', *flags)
        harness.wait_until(lambda: self.idle_workers(self.first), 'the worker')
        before = self.cluster.worker_pid('one')
        os.symlink(self.second.folder, f'{self.live}.new')
        os.replace(f'{self.live}.new', self.live)
        # The coordinator shows the second authority's certificate, and asks for one of it; who is there stays.
        harness.wait_until(lambda: self.idle_workers(self.second), 'the new certificates')
        self.assertEqual(self.run_as(*self.first.flags('user'), self.token, 'list').returncode, 4)
        # The worker shows its new one when it connects again.
        self.cluster.coordinator.kill()
        self.cluster.start_coordinator()
        harness.wait_until(lambda: self.idle_workers(self.second), 'the worker again')
        worker.require_running()
        self.assertEqual(self.cluster.worker_pid('one'), before)

    def test_files_that_do_not_fit_are_told_at_the_start(self):
        for arguments, message in (
                ((f'--tls-cert={self.live}/server.crt', f'--tls-key={self.live}/worker.key'), 'a certificate and its key'),
                ((f'--tls-cert={self.live}/server.key', f'--tls-key={self.live}/server.key'), 'a certificate and its key'),
                ((f'--tls-cert={self.live}/server.crt', f'--tls-key={self.live}/server.key',
                  f'--tls-client-ca={self.live}/server.key'), 'does not hold a certificate')):
            done = subprocess.run([f'{harness.binaries()}/ringmaster-coordinator', f'--data-dir={self.folder}/other',
                                   '--listen=127.0.0.1:0', '--http-listen=', *arguments], check=False, text=True,
                                  capture_output=True, timeout=harness.SECONDS)
            self.assertEqual(done.returncode, 1, done)
            self.assertIn(message, done.stderr)


if __name__ == '__main__':
    harness.main()
