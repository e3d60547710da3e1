#!/usr/bin/env python3
"""Starts the programs with exactly the arguments and the environment of the rendered manifests, as their user, in a
read-only root with nothing but the install tree, the declared volumes and loopback; trains a job over TLS:
kubernetes_run_test.py CHECKOUT BUILD TORCH"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

import manifests
from bare_root import BareRoot, install

CHECKOUT, BUILD, TORCH = sys.argv[1:4]
SECONDS = 120
JOB = '''
name: pods
model: {layers: 1, dim: 32, heads: 4}
attention: {segment_lengths: [32, 512], dilation_rates: [1, 2]}
data: {paths: [/shared/text.txt], sequence_length: 512}
parallel: {ring_size: 2}
steps: 20
'''


# In the coordinator's namespace, in others, and in full.
NAMES = ['ringmaster-coordinator' + suffix for suffix in ('', '.ringmaster', '.ringmaster.svc.cluster.local')]


def make_certificate(folder):
    """The keys of the Secret, made as the README says: a self-signed certificate is its own authority."""
    with open(os.path.join(CHECKOUT, 'deploy', 'kubernetes', 'README.md'), encoding='utf-8') as file:
        command = re.search(r'^ +(coordinator=.*?-out tls\.crt)$', file.read(), re.M | re.S).group(1)
    subprocess.run(['sh', '-ec', command], cwd=folder, check=True, capture_output=True)
    shutil.copy(f'{folder}/tls.crt', f'{folder}/ca.crt')


class KubernetesRunTest(unittest.TestCase):
    def setUp(self):
        if os.geteuid() != 0:
            self.skipTest('needs root to run as the user of the manifests')
        folder = tempfile.TemporaryDirectory(prefix='ringmaster-pods-')
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        os.chmod(self.folder, 0o755)
        install(BUILD, f'{self.folder}/tree')
        self.templates = {resource['metadata']['name']: resource['spec']['template']['spec']
                          for resource in manifests.render(os.path.join(CHECKOUT, 'deploy', 'kubernetes', 'base'))
                          if manifests.pod_templates(resource)}
        self.root = BareRoot(self.folder, f'{self.folder}/tree', TORCH, hosts=f'127.0.0.1 {" ".join(NAMES)}\n')
        self.addCleanup(self.root.close)
        self.volumes = {}
        for template in self.templates.values():
            for mount in template['containers'][0]['volumeMounts']:
                self.add_volume(template, mount)
        make_certificate(self.volumes['/etc/ringmaster/tls'])
        for name in os.listdir(self.volumes['/etc/ringmaster/tls']):
            self.give_away(os.path.join(self.volumes['/etc/ringmaster/tls'], name), 0o440)
        with open(os.path.join(self.volumes['/shared'], 'text.txt'), 'w', encoding='ascii') as file:
            file.write('In the beginning was the ring. ' * 2000)
        if reason := self.root.open(read_only=True):
            self.skipTest(reason)

    def give_away(self, path, mode):
        context = self.templates['ringmaster-worker']['securityContext']
        os.chown(path, context['runAsUser'], context['fsGroup'])
        os.chmod(path, mode)

    def add_volume(self, template, mount):
        """A folder with the rights that the volume has in the pod: its group may write, its user need not own it."""
        path = mount['mountPath']
        if path in self.volumes:
            return
        source = f'{self.folder}/volumes{path}'
        os.makedirs(source)
        os.chown(source, 0, template['securityContext']['fsGroup'])
        os.chmod(source, 0o1777 if path in ('/tmp', '/dev/shm') else 0o2775)
        self.volumes[path] = source
        # /dev is the host's here, shared memory included.
        if path != '/dev/shm':
            self.root.share(source, path)

    def start(self, name, pod, *more):
        template = self.templates[name]
        context, (container,) = template['securityContext'], template['containers']
        fields = {'metadata.name': pod, 'status.podIP': '127.0.0.1', 'spec.nodeName': 'node-0'}
        env = {entry['name']: entry.get('value') or fields[entry['valueFrom']['fieldRef']['fieldPath']]
               for entry in container.get('env', [])}
        words = [re.sub(r'\$\((\w+)\)', lambda match: env[match[1]], word)
                 for word in [*container['command'], *container['args'], *more]]
        with open(f'{self.folder}/{pod}.log', 'wb') as log:
            process = subprocess.Popen(
                self.root.command(*words, user=f'{context["runAsUser"]}:{context["runAsGroup"]}', env=env),
                stdout=log, stderr=log)
        self.addCleanup(process.wait)
        self.addCleanup(process.terminate)
        return process

    def probe(self, scheme, port, path):
        """The status of a GET from inside the pod's network, 0 when nothing listens. As the kubelet, it looks at no
        certificate."""
        script = (f'import ssl, urllib.request as r\ntry: print(r.urlopen("{scheme}://127.0.0.1:{port}{path}", timeout=5, '
                  'context=ssl._create_unverified_context()).status)\n'
                  'except r.HTTPError as e: print(e.code)\nexcept OSError: print(0)')
        return int(subprocess.run([*self.root.network_command(), sys.executable, '-c', script], check=True,
                                  capture_output=True, text=True).stdout)

    def wait_for_probes(self, name, process):
        (container,) = self.templates[name]['containers']
        ports = {port['name']: port['containerPort'] for port in container['ports']}
        for kind in ('startupProbe', 'livenessProbe', 'readinessProbe'):
            if kind in container:
                get, end = container[kind]['httpGet'], time.monotonic() + SECONDS
                while self.probe(get.get('scheme', 'HTTP').lower(), ports[get['port']], get['path']) != 200:
                    self.assertIsNone(process.poll(), self.logs())
                    self.assertLess(time.monotonic(), end, f'{name}: {kind}\n{self.logs()}')

    def logs(self):
        text = ''
        for name in sorted(os.listdir(self.folder)):
            if name.endswith('.log'):
                with open(os.path.join(self.folder, name), encoding='utf-8', errors='replace') as file:
                    text += f'---- {name}\n{file.read()[-3000:]}'
        return text

    def ringctl(self, *words, host=NAMES[-1], **options):
        done = subprocess.run(
            self.root.command('/opt/ringmaster/bin/ringctl', f'--address={host}:7077',
                              '--tls-ca=/etc/ringmaster/tls/ca.crt', '--token-file=/var/lib/ringmaster/admin-token',
                              *words),
            capture_output=True, text=True, check=False, timeout=SECONDS, **options)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr + self.logs())
        return done.stdout

    def make_worker_token(self):
        """The Secret of the workers, made as the README says: on the coordinator itself."""
        path = os.path.join(self.volumes['/etc/ringmaster/token'], 'token')
        with open(path, 'w', encoding='ascii') as file:
            file.write(self.ringctl('tokens', 'create', 'workers', '--scope', 'worker', host='127.0.0.1'))
        self.give_away(path, 0o440)

    def test_pods_train_a_job(self):
        coordinator = self.start('ringmaster-coordinator', 'ringmaster-coordinator-0')
        self.wait_for_probes('ringmaster-coordinator', coordinator)
        self.assertEqual(self.probe('https', 7078, '/metrics'), 401)
        self.make_worker_token()
        worker = self.start('ringmaster-worker', 'ringmaster-worker-0')
        self.wait_for_probes('ringmaster-worker', worker)
        # In a cluster each pod has an address of its own; here they share one, and only one can have the port.
        peer = self.start('ringmaster-worker', 'ringmaster-worker-1', '--http-listen=127.0.0.1:0')
        printed = self.ringctl('submit', '-', '--wait', input=JOB)
        self.assertIn('succeeded step 20/20', printed)
        (directory,) = os.listdir(os.path.join(self.volumes['/shared'], 'default'))
        self.assertRegex(directory, '^pods-[0-9a-f]{8}$')
        self.assertEqual(os.listdir(os.path.join(self.volumes['/shared'], 'default', directory, 'checkpoints')),
                         ['step-00000020'])
        for host in NAMES:
            listed = self.ringctl('workers', host=host)
            self.assertIn('ringmaster-worker-0', listed)
            self.assertIn('ringmaster-worker-1', listed)
        for process in (worker, peer, coordinator):
            process.terminate()
            self.assertEqual(process.wait(30), 0, self.logs())


if __name__ == '__main__':
    unittest.main(argv=sys.argv[:1], verbosity=2)
