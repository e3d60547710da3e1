"""A coordinator and workers as processes of this machine, for the demo, the integration tests and benchmarks.

    with Cluster('build/release/bin', '/tmp/state', workers=3) as cluster:
        cluster.ringctl('submit', 'job.yaml', '--wait')

Every process listens on a free port of loopback and says in a file which; logs are under {state}/logs. Leaving the
block ends all processes, those of supervised workers included.
"""

import json
import os
import signal
import subprocess
import time

START_SECONDS = 60


def wait_until(condition, what, seconds=START_SECONDS, pause=0.02):
    """The first true value of `condition`; TimeoutError with `what` after so many seconds."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f'{what}: not within {seconds} s')
        time.sleep(pause)
    return value


def children(pid):
    try:
        with open(f'/proc/{pid}/task/{pid}/children', encoding='ascii') as file:
            return [int(child) for child in file.read().split()]
    except FileNotFoundError:
        return []


class Process:
    """A program whose output goes to a log file, and which writes where it listens to an address file."""

    def __init__(self, command, log, address_file, env=None):
        if os.path.exists(address_file):
            os.remove(address_file)
        self.command, self.log, self._address_file = command, log, address_file
        with open(log, 'ab') as output:
            # A group of its own: a supervised worker's child goes with it.
            self.popen = subprocess.Popen([*command, f'--address-file={address_file}'], stdin=subprocess.DEVNULL,
                                          stdout=output, stderr=output, start_new_session=True,
                                          env={**os.environ, **(env or {})})

    @property
    def pid(self):
        return self.popen.pid

    def addresses(self):
        """The lines of the address file, once it is there."""
        def ready():
            self.require_running()
            return os.path.exists(self._address_file)
        wait_until(ready, f'{self.command[0]} listens')
        with open(self._address_file, encoding='ascii') as file:
            return file.read().split()

    def require_running(self):
        """RuntimeError with the end of the log when the program has ended."""
        if self.popen.poll() is not None:
            with open(self.log, encoding='utf-8', errors='replace') as file:
                raise RuntimeError(f'{self.command[0]} ended with {self.popen.returncode}:\n{file.read()[-2000:]}')

    def kill(self):
        """kill -9 of this process alone, and its burial."""
        self.popen.kill()
        self.popen.wait()

    def stop(self, seconds=10):
        """SIGTERM; after `seconds` kill -9 of the whole group. Returns the exit code."""
        self.popen.terminate()
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            try:
                os.killpg(self.popen.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.popen.wait()


class Cluster:
    def __init__(self, bin_dir, state, workers=0, coordinator_args=(), worker_args=(), worker_env=None):
        self.bin, self.state = os.path.abspath(bin_dir), os.path.abspath(state)
        self.shared = os.path.join(self.state, 'shared')
        for folder in ('data', 'shared', 'logs'):
            os.makedirs(os.path.join(self.state, folder), exist_ok=True)
        self._coordinator_args, self._worker_args, self._worker_env = coordinator_args, worker_args, worker_env
        self._listen, self._http_listen = '127.0.0.1:0', '127.0.0.1:0'
        self.coordinator, self.workers = None, {}
        try:
            self.start_coordinator()
            for index in range(workers):
                self.start_worker(f'worker-{index}')
        except BaseException:
            self.stop()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def start_coordinator(self):
        """Starts it, or starts it again with the same data at the same address."""
        self.coordinator = Process(
            [f'{self.bin}/ringmaster-coordinator', f'--data-dir={self.state}/data', f'--shared-dir={self.shared}',
             f'--listen={self._listen}', f'--http-listen={self._http_listen}', *self._coordinator_args],
            f'{self.state}/logs/coordinator.log', f'{self.state}/coordinator.address')
        self.address, self.http_address = self.coordinator.addresses()
        self._listen, self._http_listen = self.address, self.http_address

    def start_worker(self, name, *args, device='cpu', env=None):
        self.workers[name] = Process(
            [f'{self.bin}/ringmaster-worker', '--supervise', f'--coordinator={self.address}', f'--worker-id={name}',
             f'--device={device}', '--http-listen=127.0.0.1:0', *self._worker_args, *args],
            f'{self.state}/logs/{name}.log', f'{self.state}/{name}.address',
            {**(self._worker_env or {}), **(env or {})})
        return self.workers[name]

    def worker_pid(self, name):
        """The worker itself: its supervisor's child that has threads; None while it is being restarted."""
        found = [child for child in children(self.workers[name].pid)
                 if os.path.exists(f'/proc/{child}/task') and len(os.listdir(f'/proc/{child}/task')) > 1]
        return found[0] if found else None

    def stop(self):
        processes = [*self.workers.values(), *([self.coordinator] if self.coordinator else [])]
        for process in processes:
            process.popen.terminate()
        for process in processes:
            process.stop()

    def ringctl(self, *words, check=True, seconds=60, **options):
        """Runs ringctl against this coordinator and returns what it printed."""
        done = subprocess.run([f'{self.bin}/ringctl', f'--address={self.address}', *words], check=False,
                              # A sample of a byte model need not be text.
                              text=True, errors='replace', timeout=seconds, **{'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, **options})
        if check and done.returncode:
            raise RuntimeError(f'ringctl {" ".join(words)} ended with {done.returncode}: {done.stderr}')
        return done.stdout

    def job(self, name):
        return json.loads(self.ringctl('get', name, '-o', 'json'))

    def wait_for_workers(self, count, seconds=START_SECONDS):
        def idle():
            for process in self.workers.values():
                process.require_running()
            return [worker for worker in json.loads(self.ringctl('workers', '-o', 'json') or '[]')
                    if worker['state'] == 'IDLE']
        return wait_until(lambda: len(idle()) >= count, f'{count} idle workers', seconds, pause=0.1)

    def step_records(self, name):
        """{step: record}, as `ringctl metrics` prints them; numbers are texts, so that equal text means equal bits."""
        lines = self.ringctl('metrics', name, '-o', 'jsonl').splitlines()
        records = [json.loads(line, parse_float=str, parse_int=str) for line in lines]
        return {int(record['step']): record for record in records}
