#!/usr/bin/env python3
"""Faults in real processes while a job trains: the job ends, and every loss is the undisturbed run's, bit for bit."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess

import harness


class RecoveryTest(harness.DisturbedTest):
    steps = 300
    disturbed_at = 30
    # What is random within a step must not stand in the way of equal bits.
    settings = ('dropout=0.1',)

    def tearDown(self):
        super().tearDown()
        self.cluster.wait_for_workers(self.workers)

    def check(self, name, episodes_min=1):
        job = self.wait_for_end(name)
        self.assertEqual(self.losses(name), self.expected)
        episodes = job['status'].get('episodes', [])
        self.assertGreaterEqual(len(episodes), episodes_min)
        return episodes

    def test_a_killed_worker(self):
        for rank in (0, 1):
            with self.subTest(rank=rank):
                job = self.start(f'killed-{rank}')
                os.kill(self.cluster.worker_pid(self.worker_of_rank(job, rank)), signal.SIGKILL)
                (episode,) = self.check(f'killed-{rank}')
                self.assertEqual(episode['cause'], 'WORKER_EXIT')
                self.assertTrue(episode['finished'])
                self.assertIn(episode['restore'], ('PEER', 'OWN'))
                self.assertEqual(int(episode.get('lost_steps', 0)), 0)
                for phase in ('detect', 'abort', 'form', 'restore', 'first_step'):
                    self.assertIn(f'{phase}_ms', episode)

    # By itself and short: products of matrices take their time.
    def test_a_killed_worker_of_a_job_that_drops_attention(self):
        for name in ('dropping', 'dropping-killed'):
            self.submit(name, 80, ('attention.dropout=0.1',))
            if name == 'dropping-killed':
                job = self.wait_for_step(name, 20)
                os.kill(self.cluster.worker_pid(self.worker_of_rank(job, 1)), signal.SIGKILL)
            job = self.wait_for_end(name)
            self.assertEqual('episodes' in job['status'], name == 'dropping-killed')
        self.assertEqual(self.losses('dropping-killed'), self.losses('dropping'))

    def test_all_ranks_killed_restore_the_checkpoint(self):
        job = self.start('all-killed')
        for rank in (0, 1):
            os.kill(self.cluster.worker_pid(self.worker_of_rank(job, rank)), signal.SIGKILL)
        episodes = self.check('all-killed')
        self.assertIn('CHECKPOINT', {episode.get('restore') for episode in episodes})

    def test_a_killed_supervisor_takes_its_worker_along(self):
        job = self.start('host-lost')
        name = self.worker_of_rank(job, 1)
        self.cluster.workers[name].kill()
        self.check('host-lost')
        self.cluster.start_worker(name)

    def test_a_killed_coordinator_costs_no_step(self):
        self.start('coordinator-killed')
        self.cluster.coordinator.kill()
        self.cluster.start_coordinator()
        self.check('coordinator-killed', episodes_min=0)
        records = self.cluster.step_records('coordinator-killed')
        self.assertEqual({record['generation'] for record in records.values()}, {'1'})

    def test_who_follows_a_job_misses_nothing_of_it_when_the_coordinator_is_killed(self):
        self.start('followed')
        followers = {}
        for command in ('logs', 'metrics'):
            out = open(f'{self.folder}/followed-{command}', 'w+', encoding='utf-8')
            self.addCleanup(out.close)
            followers[command] = out, subprocess.Popen(
                [f'{self.cluster.bin}/ringctl', f'--address={self.cluster.address}', command, '-f', 'followed'],
                stdout=out, stderr=subprocess.PIPE, text=True)
        for out, _ in followers.values():
            harness.wait_until(lambda out=out: os.path.getsize(out.name), f'{out.name} begins')
        self.cluster.coordinator.kill()
        self.cluster.start_coordinator()
        self.check('followed', episodes_min=0)
        printed = {}
        for command, (out, process) in followers.items():
            _, errors = process.communicate(timeout=harness.SECONDS)
            self.assertEqual(process.returncode, 0, errors)
            out.seek(0)
            printed[command] = out.read().splitlines()
        self.assertEqual(printed['metrics'], self.cluster.ringctl('metrics', 'followed').splitlines())
        everything = self.cluster.ringctl('logs', 'followed').splitlines()
        for rank in ('rank 0 ', 'rank 1 '):
            of_rank = lambda lines, rank=rank: [line for line in lines if line.startswith(rank)]
            # A worker may say something still after the job's end.
            seen = of_rank(printed['logs'])
            self.assertEqual(seen, of_rank(everything)[:len(seen)])
            self.assertTrue(any('attached' in line for line in seen), seen)

    def test_a_coordinator_that_lost_its_data_gets_its_workers_back(self):
        # Each start raises the epoch that workers have heard of; the empty directory begins with 1 again.
        self.cluster.coordinator.kill()
        self.cluster.start_coordinator()
        self.cluster.wait_for_workers(self.workers)
        self.cluster.coordinator.kill()
        shutil.rmtree(f'{self.cluster.state}/data')
        os.mkdir(f'{self.cluster.state}/data')
        self.cluster.start_coordinator()
        self.cluster.wait_for_workers(self.workers)
        self.submit('after-the-loss', self.steps, self.settings)
        self.check('after-the-loss', episodes_min=0)

    def test_coordinator_and_worker_killed_together(self):
        job = self.start('both-killed')
        self.cluster.coordinator.kill()
        os.kill(self.cluster.worker_pid(self.worker_of_rank(job, 0)), signal.SIGKILL)
        self.cluster.start_coordinator()
        self.check('both-killed')

    def test_a_stopped_worker_is_replaced_and_does_no_harm_when_it_wakes(self):
        # Nothing but the lease tells: its connections stay open, and its peer waits for longer than that.
        job = self.start('stopped', ['recovery.hop_deadline=60s'])
        worker = self.cluster.worker_pid(self.worker_of_rank(job, 1))
        os.kill(worker, signal.SIGSTOP)
        try:
            self.wait_for('stopped', lambda job: int(job['status']['generation']) > 1, 'a new generation')
        finally:
            # While the ring of the others forms and works.
            os.kill(worker, signal.SIGCONT)
        (episode,) = self.check('stopped')
        self.assertEqual(episode['cause'], 'LEASE_EXPIRED')

    def test_a_cancelled_job_ends_while_it_recovers(self):
        job = self.start('cancelled')
        os.kill(self.cluster.worker_pid(self.worker_of_rank(job, 0)), signal.SIGKILL)
        self.cluster.ringctl('cancel', 'cancelled')
        self.wait_for_end('cancelled', 'CANCELLED')


class InjectedFaultTest(harness.ClusterTest):
    """Exceptions, exhausted memory and kills inside a step: the step is done again. No peer is released by a deadline: all
    are longer than a test waits for the job's end."""

    workers = 0
    places = ('data', 'embedding', 'forward,layer=0', 'forward,layer=1', 'loss', 'backward,layer=1', 'backward,layer=0',
              'reduce', 'vote', 'update')
    settings = ('recovery.hop_deadline=1h', 'recovery.abort_deadline=1h')

    def tearDown(self):
        super().tearDown()
        self.stop_workers()

    def run_with(self, *faults):
        """Starts two workers, each with one of these faults, and a job; those of the last run are stopped first."""
        self.stop_workers()
        for index, fault in enumerate(faults):
            self.cluster.start_worker(f'worker-{index}', env={'RINGMASTER_FAULT': fault})
        self.cluster.wait_for_workers(2)
        name = f'job-{len(self.cluster.ringctl("list", "-o", "name").splitlines())}'
        self.submit(name, 60, self.settings)
        return name

    def stop_workers(self):
        for name in list(self.cluster.workers):
            self.cluster.workers.pop(name).stop()

    def expected(self):
        if not hasattr(type(self), '_expected'):
            name = self.run_with('', '')
            self.wait_for_end(name)
            type(self)._expected = self.losses(name)
        return self._expected

    def check(self, kind, cause):
        """At every place of a step first rank 1 fails, and rank 0 when several reports of steps have ended that episode."""
        expected = self.expected()
        for place in self.places:
            with self.subTest(place=place):
                name = self.run_with(f'rank=0,step=55,phase={place},kind={kind},generation=2',
                                     f'rank=1,step=13,phase={place},kind={kind},generation=1')
                episodes = self.wait_for_end(name)['status'].get('episodes', [])
                self.assertEqual(self.losses(name), expected)
                self.assertEqual([episode['cause'] for episode in episodes], [cause, cause])
                for rank, episode in zip((1, 0), episodes):
                    # It is blamed, and no other process was replaced.
                    blamed = f'workers/worker-{rank}'
                    if kind == 'kill':
                        self.assertEqual(episode['lost_workers'], [blamed])
                    else:
                        self.assertRegex(episode['message'], rf'^{blamed} \(rank {rank}\): .*injected')
                        self.assertNotIn('lost_workers', episode)

    def test_an_exception_in_a_step(self):
        self.check('throw', 'STEP_EXCEPTION')

    def test_memory_exhausted_in_a_step(self):
        self.check('oom', 'OUT_OF_MEMORY_FAULT')

    def test_a_kill_in_a_step(self):
        self.check('kill', 'WORKER_EXIT')

    def test_a_fault_that_comes_again_and_again_ends_the_job(self):
        name = self.run_with('', 'rank=1,step=13,phase=forward,kind=oom')
        job = self.wait_for_end(name, 'FAILED')
        self.assertEqual(job['status']['failure_class'], 'OUT_OF_MEMORY')
        self.assertIn('13', job['status']['state_reason'])


class DiskFullTest(harness.ClusterTest):
    """The shared directory is a small file system of its own."""

    workers = 2

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        shared = cls.cluster.shared
        mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=16m', 'none', shared], capture_output=True,
                                 text=True, check=False)
        if mounted.returncode:
            raise harness.unittest.SkipTest(f'no file system of its own: {mounted.stderr.strip()}')
        cls.addClassCleanup(subprocess.run, ['umount', '-l', shared], check=True)

    def fill(self, filler):
        """To the last byte."""
        with open(filler, 'ab', buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError as error:
                self.assertEqual(error.errno, errno.ENOSPC)

    def wait_for_failed_checkpoint(self, after_step):
        """The job when its newest checkpoint to fail is of a later step."""
        def failed(job):
            found = re.match('checkpoint of step ([0-9]+) failed .*No space left', job['status'].get('state_reason', ''))
            return found and int(found[1]) > after_step
        return self.wait_for('full', failed, f'a checkpoint that fails after step {after_step}')

    def test_training_goes_on_and_a_later_checkpoint_succeeds(self):
        filler = os.path.join(self.cluster.shared, 'filler')
        # None is deleted, which would make room.
        self.submit('full', 400, ['checkpoint.keep_last=100'])
        self.wait_for('full', lambda job: job['status'].get('last_checkpoint'), 'a checkpoint')
        # The job writes meanwhile.
        self.fill(filler)
        self.wait_for_failed_checkpoint(after_step=0)
        # The parts of that one are gone.
        self.fill(filler)
        before = int(self.cluster.job('full')['status']['progress']['step'])
        status = self.wait_for_failed_checkpoint(after_step=before)['status']
        self.assertEqual(status['state'], 'RUNNING')
        kept = json.loads(self.cluster.ringctl('checkpoints', 'get', status['last_checkpoint'], '-o', 'json'))
        self.assertLessEqual(int(kept['step']), before)
        for shard in kept['shards']:
            self.assertEqual(os.path.getsize(shard['path']), int(shard['bytes']))
        # The job's own log has no room either.
        with open(os.path.join(self.cluster.state, 'logs', 'worker-0.log'), encoding='utf-8') as log:
            self.assertIn('No space left', log.read())
        os.remove(filler)
        job = self.wait_for_end('full')
        self.assertTrue(job['status']['last_checkpoint'].endswith('400'), job['status']['last_checkpoint'])
        self.assertNotIn('episodes', job['status'])
        self.assertEqual(sorted(self.losses('full')), list(range(1, 401)))


if __name__ == '__main__':
    harness.main()
