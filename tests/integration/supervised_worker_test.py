#!/usr/bin/env python3
"""A worker's process as a coordinator sees it: whose child it is, and what it says of its sums."""

import concurrent.futures
import os
import queue
import signal
import subprocess
import tempfile
import unittest

import harness
from cluster import children

import grpc

_api = tempfile.TemporaryDirectory(prefix='ringmaster-api-')
harness.generate_api(_api.name)
# pylint: disable=wrong-import-position,import-error
from ringmaster.v1 import worker_service_pb2 as pb, worker_service_pb2_grpc


class FakeCoordinator(worker_service_pb2_grpc.WorkerServiceServicer):
    """Welcomes whoever comes, and says what the test says."""

    def __init__(self):
        self.sessions = queue.Queue()
        self._server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
        worker_service_pb2_grpc.add_WorkerServiceServicer_to_server(self, self._server)
        self.address = f'127.0.0.1:{self._server.add_insecure_port("127.0.0.1:0")}'
        self._server.start()

    def stop(self):
        self._server.stop(None).wait()

    def Session(self, request_iterator, context):
        say = queue.Queue()
        # The stream's end.
        context.add_callback(lambda: say.put(None))
        self.sessions.put((next(request_iterator), say))
        welcome = pb.Directive(epoch=1)
        welcome.welcome.lease_ttl.seconds = 600
        welcome.welcome.heartbeat_interval.seconds = 100
        yield welcome
        yield from iter(say.get, None)

    def ReportFault(self, request, context):
        return pb.ReportFaultResponse()


class SupervisedWorkerTest(unittest.TestCase):
    def setUp(self):
        self.coordinator = FakeCoordinator()
        self.addCleanup(self.coordinator.stop)

    def start(self, *args):
        process = subprocess.Popen(
            [f'{harness.binaries()}/ringmaster-worker', f'--coordinator={self.coordinator.address}', '--worker-id=w',
             '--device=cpu', '--threads=1', *args], stdin=subprocess.DEVNULL)
        # Its child dies with it.
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def attached(self):
        """The next process' first report, and a queue of what it is told."""
        report, say = self.coordinator.sessions.get(timeout=harness.SECONDS)
        self.assertEqual(report.hello.worker, 'workers/w')
        return report, say

    def test_a_supervisors_children_have_its_id(self):
        # The next child is a proof that the one before is dead.
        supervisor = self.start('--supervise')
        first, _ = self.attached()
        self.assertRegex(first.hello.supervisor, '^[0-9a-f]{32}$')
        (worker,) = children(supervisor.pid)
        os.kill(worker, signal.SIGKILL)
        second, _ = self.attached()
        self.assertNotEqual(second.incarnation, first.incarnation)
        self.assertEqual(second.hello.supervisor, first.hello.supervisor)

    def test_another_supervisor_has_another_id_and_none_has_none(self):
        ids = []
        for args in (('--supervise',), ('--supervise',), ()):
            process = self.start(*args)
            ids.append(self.attached()[0].hello.supervisor)
            process.kill()
            process.wait()
        self.assertNotEqual(ids[0], ids[1])
        self.assertEqual(ids[2], '')

    def test_its_sums_have_one_order(self):
        # Whatever the alignment of a buffer: recovery is bit-equal only so.
        self.start()
        hello, _ = self.attached()
        order = os.environ.get('MKL_CBWR', 'AUTO')
        self.assertRegex(hello.hello.hardware.cpu_capability, f' MKL_CBWR={order}$')


if __name__ == '__main__':
    harness.main()
