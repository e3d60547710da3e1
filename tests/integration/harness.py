"""Real processes for tests: a cluster on free ports, a job so small that a step takes milliseconds, and a client of the
API that is generated from the proto files with the stock tools."""

import os
import subprocess
import sys
import tempfile
import unittest

CHECKOUT = os.path.realpath(os.path.join(os.path.dirname(__file__), '..', '..'))
sys.path.insert(0, os.path.join(CHECKOUT, 'deploy', 'local'))

import grpc  # pylint: disable=wrong-import-position
from grpc_tools import protoc  # pylint: disable=wrong-import-position

from cluster import Cluster, wait_until  # pylint: disable=wrong-import-position

# What a loaded machine may take for anything that must happen; no test passes by waiting for it.
SECONDS = 60


def main():
    """SCRIPT BIN [unittest arguments]"""
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]], verbosity=2)


def binaries():
    return sys.argv[1]


def generate_api(folder):
    """Generates the Python modules of proto/ into `folder` and returns those of ringmaster.v1, by name."""
    protos = os.path.join(CHECKOUT, 'proto')
    files = [os.path.relpath(os.path.join(root, name), protos) for root, _, names in os.walk(protos)
             for name in names if name.endswith('.proto') and not root.endswith('store')]
    import grpc_tools  # pylint: disable=import-outside-toplevel
    well_known = os.path.join(os.path.dirname(grpc_tools.__file__), '_proto')
    if protoc.main(['protoc', f'-I{protos}', f'-I{well_known}', f'--python_out={folder}', f'--grpc_python_out={folder}',
                    *files]):
        raise RuntimeError('protoc failed')
    sys.path.insert(0, folder)


def make_certificate(folder):
    """A self-signed certificate for loopback, which is its own authority."""
    subprocess.run(['openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes',
                    '-days', '2', '-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost,IP:127.0.0.1',
                    '-keyout', f'{folder}/tls.key', '-out', f'{folder}/tls.crt'], check=True, capture_output=True)


class Api:
    """Stubs of one coordinator: api.jobs.CreateTrainingJob(api.pb.CreateTrainingJobRequest(...))."""

    _folder = None

    def __init__(self, address):
        if Api._folder is None:
            Api._folder = tempfile.TemporaryDirectory(prefix='ringmaster-api-')
            generate_api(Api._folder.name)
        # pylint: disable=import-outside-toplevel,import-error
        from google.rpc import error_details_pb2
        from ringmaster.v1 import (checkpoint_service_pb2, checkpoint_service_pb2_grpc, cluster_service_pb2,
                                   cluster_service_pb2_grpc, errors_pb2, job_pb2, job_service_pb2, job_service_pb2_grpc)
        self.details, self.job, self.pb, self.errors = error_details_pb2, job_pb2, job_service_pb2, errors_pb2
        self.cluster_pb, self.checkpoint_pb = cluster_service_pb2, checkpoint_service_pb2
        self.channel = grpc.insecure_channel(address)
        self.jobs = job_service_pb2_grpc.JobServiceStub(self.channel)
        self.workers = cluster_service_pb2_grpc.ClusterServiceStub(self.channel)
        self.checkpoints = checkpoint_service_pb2_grpc.CheckpointServiceStub(self.channel)

    def error(self, call):
        """(code, message, {detail type: detail}) of a call that must fail."""
        try:
            call()
        except grpc.RpcError as failed:
            found = {}
            for key, value in failed.trailing_metadata() or ():
                if key == 'grpc-status-details-bin':
                    for detail in self.details.Status.FromString(value).details:
                        name = detail.TypeName()
                        kind = getattr(self.details, name.rsplit('.', 1)[1], None) or getattr(
                            self.errors, name.rsplit('.', 1)[1])
                        found[kind.__name__] = kind.FromString(detail.value)
            return failed.code(), failed.details(), found
        raise AssertionError('the call was accepted')


def text_file(folder, size=40000):
    """A deterministic text with structure."""
    path = os.path.join(folder, 'text.txt')
    words = ['ring', 'rank', 'segment', 'dilation', 'branch', 'hop', 'step', 'shard', 'lease', 'epoch']
    with open(path, 'w', encoding='ascii') as file:
        state, length = 1, 0
        while length < size:
            state = state * 1103515245 + 12345 & 0x7fffffff
            word = words[state >> 16 & 7] + (' ' if state >> 8 & 7 else '\n')
            length += file.write(word)
    return path


# Longer than the sequences that attention sums in fp64 whatever the precision.
JOB = '''
model: {{layers: 2, dim: 32, heads: 4, vocab_size: 256}}
attention: {{segment_lengths: [32, 512, 512], dilation_rates: [1, 2, 4]}}
data: {{paths: ["{text}"], sequence_length: 512}}
parallel: {{ring_size: 2}}
optimizer: {{lr: 0.003}}
schedule: {{warmup_steps: 10}}
validation: {{interval_steps: 20, sequences: 2}}
checkpoint: {{interval_steps: 20}}
recovery: {{hop_deadline: 5s, abort_deadline: 3s}}
steps: {steps}
'''


class ClusterTest(unittest.TestCase):
    """Each test class has one cluster, with its state in a folder of its own that is shown when a test fails."""

    workers = 3
    coordinator_args = ()
    worker_args = ('--threads=1',)
    worker_env = None

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix='ringmaster-test-')
        cls.addClassCleanup(folder.cleanup)
        cls.folder = folder.name
        cls.text = text_file(cls.folder)
        cls.cluster = Cluster(binaries(), cls.folder, cls.workers, cls.coordinator_args, cls.worker_args, cls.worker_env)
        cls.addClassCleanup(cls.cluster.stop)
        cls.cluster.wait_for_workers(cls.workers)
        cls.api = Api(cls.cluster.address)

    def tearDown(self):
        failed = any(error for _, error in getattr(self._outcome, 'errors', []) or []) or \
            getattr(self._outcome, 'success', True) is False
        if failed:
            for log in sorted(os.listdir(os.path.join(self.folder, 'logs'))):
                with open(os.path.join(self.folder, 'logs', log), encoding='utf-8', errors='replace') as file:
                    print(f'---- {log}\n' + ''.join(file.readlines()[-40:]))

    def job_file(self, steps=60, text=JOB):
        path = os.path.join(self.folder, f'{self.id().rsplit(".", 1)[-1]}.yaml')
        with open(path, 'w', encoding='utf-8') as file:
            file.write(text.format(text=self.text, steps=steps))
        return path

    def submit(self, name, steps=60, settings=()):
        words = [word for setting in (f'name={name}', *settings) for word in ('--set', setting)]
        self.cluster.ringctl('submit', self.job_file(steps), *words)

    def wait_for(self, name, condition, what, seconds=SECONDS):
        """The job as soon as `condition` holds for it."""
        job = {}

        def seen():
            nonlocal job
            try:
                job = self.cluster.job(name)
            except RuntimeError as error:  # the coordinator may be starting again
                if 'no coordinator answers' not in str(error):
                    raise
                return False
            return condition(job)
        try:
            wait_until(seen, f'{name}: {what}', seconds, pause=0.05)
        except TimeoutError as error:
            raise AssertionError(f'{error}; the job: {job.get("status")}') from None
        return job

    def wait_for_step(self, name, step):
        return self.wait_for(name, lambda job: int(job['status'].get('progress', {}).get('step', 0)) >= step,
                             f'step {step}')

    def wait_for_end(self, name, state='SUCCEEDED', seconds=SECONDS):
        job = self.wait_for(name, lambda job: job['status']['state'] in ('SUCCEEDED', 'FAILED', 'CANCELLED'),
                            'its end', seconds)
        self.assertEqual(job['status']['state'], state, job['status'])
        return job

    def worker_of_rank(self, job, rank):
        (worker,) = [entry['worker'] for entry in job['status']['ranks'] if entry.get('rank', 0) == rank]
        return worker.removeprefix('workers/')

    def losses(self, name):
        """{step: (loss, validation loss)}, as exact texts."""
        return {step: (record['loss'], record.get('validation_loss'))
                for step, record in self.cluster.step_records(name).items()}


class DisturbedTest(ClusterTest):
    """Jobs that something happens to; `expected` are the losses of one that nothing happens to."""

    steps = 200
    disturbed_at = 20  # steps
    settings = ()  # of all jobs

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        test = cls('losses')
        test.submit('undisturbed', cls.steps, cls.settings)
        test.wait_for_end('undisturbed')
        cls.expected = test.losses('undisturbed')

    def start(self, name, settings=()):
        """The job when it is to be disturbed."""
        self.submit(name, self.steps, (*self.settings, *settings))
        return self.wait_for_step(name, self.disturbed_at)
