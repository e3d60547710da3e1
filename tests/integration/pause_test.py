#!/usr/bin/env python3
"""Jobs that are paused and go on, with real processes: no step is lost, and every loss is the undisturbed run's, bit for
bit."""

import glob
import os
import signal

import harness


class PauseTest(harness.DisturbedTest):
    workers = 2
    # No checkpoint but the ones that a pause and the end write.
    settings = ('checkpoint.interval_steps=-1',)

    def state(self, name):
        return self.cluster.job(name)['status']['state']

    def wait_for_state(self, name, state):
        return self.wait_for(name, lambda job: job['status']['state'] == state, state)

    def check(self, name, generations, episodes=0):
        job = self.wait_for_end(name)
        self.assertEqual(self.losses(name), self.expected)
        self.assertEqual(len(job['status'].get('episodes', [])), episodes)
        self.assertEqual(int(job['status']['generation']), generations)
        records = self.cluster.step_records(name)
        self.assertEqual(sorted(records), list(range(1, self.steps + 1)))
        return records

    def test_others_run_meanwhile(self):
        self.start('paused')
        self.assertIn(' pausing ', self.cluster.ringctl('pause', 'paused'))
        job = self.wait_for_state('paused', 'PAUSED')
        self.assertNotIn('ranks', job['status'])
        step = int(job['status']['progress']['step'])
        self.assertTrue(job['status']['last_checkpoint'].endswith(f'/step-{step}'), job)
        self.cluster.wait_for_workers(self.workers)
        # It has both workers.
        self.submit('meanwhile', steps=20)
        self.wait_for_end('meanwhile')
        self.assertEqual(self.state('paused'), 'PAUSED')
        self.assertIn('paused', self.cluster.ringctl('list', '--state', 'paused', '-o', 'name'))
        self.cluster.ringctl('resume', 'paused')
        records = self.check('paused', generations=2)
        self.assertEqual(records[step]['generation'], '1')
        self.assertEqual(records[step + 1]['generation'], '2')

    def test_the_coordinator_is_killed_while_it_pauses_and_while_it_is_paused(self):
        self.start('orphaned')
        self.cluster.ringctl('pause', 'orphaned')
        self.cluster.coordinator.kill()
        self.cluster.start_coordinator()
        self.wait_for_state('orphaned', 'PAUSED')
        self.cluster.coordinator.kill()
        self.cluster.start_coordinator()
        self.cluster.wait_for_workers(self.workers)
        self.assertEqual(self.state('orphaned'), 'PAUSED')
        self.cluster.ringctl('resume', 'orphaned')
        self.check('orphaned', generations=2)

    # Its peer's death may come before or after the step that they finish with.
    def test_a_worker_is_killed_while_it_pauses(self):
        job = self.start('bereaved')
        self.cluster.ringctl('pause', 'bereaved')
        os.kill(self.cluster.worker_pid(self.worker_of_rank(job, 1)), signal.SIGKILL)
        job = self.wait_for_state('bereaved', 'PAUSED')
        self.cluster.ringctl('resume', 'bereaved')
        self.check('bereaved', int(job['status']['generation']) + 1, len(job['status'].get('episodes', [])))

    def test_its_time_is_over(self):
        self.submit('limited', self.steps, (*self.settings, 'max_runtime=300ms'))
        job = self.wait_for_end('limited', 'FAILED')
        status = job['status']
        self.assertEqual(status['failure_class'], 'MAX_RUNTIME_REACHED')
        step = int(status['progress']['step'])
        self.assertTrue(status['last_checkpoint'].endswith(f'/step-{step}'), status)
        self.assertIn(status['last_checkpoint'], status['state_reason'])
        self.assertIn('of at most 300ms', self.cluster.ringctl('describe', 'limited'))
        (directory,) = glob.glob(os.path.join(job['spec']['directory'], 'checkpoints', 'step-*'))
        self.submit('unlimited', self.steps, (f'resume_from={directory}',))
        self.wait_for_end('unlimited')
        self.assertEqual({**self.losses('limited'), **self.losses('unlimited')}, self.expected)

    def test_a_pause_that_is_withdrawn(self):
        self.start('undecided')
        self.cluster.ringctl('pause', 'undecided')
        self.cluster.ringctl('resume', 'undecided')
        self.check('undecided', generations=2)


if __name__ == '__main__':
    harness.main()
