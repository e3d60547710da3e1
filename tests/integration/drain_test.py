#!/usr/bin/env python3
"""A worker is cordoned, drained and given back, with real processes: the job goes on with the spare one, no step is lost,
and every loss is the undisturbed run's, bit for bit."""

import json

import harness
from cluster import wait_until  # pylint: disable=wrong-import-order


class DrainTest(harness.DisturbedTest):
    workers = 3
    # No checkpoint but the ones that a drain and the end write.
    settings = ('checkpoint.interval_steps=-1',)

    def is_drained(self, name):
        workers = json.loads(self.cluster.ringctl('workers', '-o', 'json'))
        return any(worker.get('drained') for worker in workers if worker['name'] == f'workers/{name}')

    def wait_until_drained(self, name):
        wait_until(lambda: self.is_drained(name), f'{name} is drained', harness.SECONDS, pause=0.05)

    def check(self, name, generations):
        job = self.wait_for_end(name)
        self.assertEqual(self.losses(name), self.expected)
        self.assertNotIn('episodes', job['status'])
        self.assertEqual(int(job['status']['generation']), generations)
        records = self.cluster.step_records(name)
        self.assertEqual(sorted(records), list(range(1, self.steps + 1)))
        return job

    def members(self, job):
        return {self.worker_of_rank(job, rank) for rank in (0, 1)}

    def test_the_job_goes_on_with_the_spare(self):
        job = self.start('moved')
        drained = self.worker_of_rank(job, 0)
        self.assertRegex(self.cluster.ringctl('drain', drained, '--reason', 'a new disk'), 'draining: a new disk')
        self.wait_until_drained(drained)
        self.assertRegex(self.cluster.ringctl('workers'), rf'(?m)^{drained} .* drained: a new disk$')
        job = self.wait_for('moved', lambda job: int(job['status']['generation']) == 2, 'its second ring')
        self.assertNotIn(drained, self.members(job))
        self.check('moved', generations=2)
        self.assertRegex(self.cluster.ringctl('uncordon', drained), r'(?m) -$')

    def test_without_others_it_waits_for_one(self):
        self.cluster.ringctl('cordon', 'worker-0')
        job = self.start('waits')
        self.assertNotIn('worker-0', self.members(job))
        drained = self.worker_of_rank(job, 1)
        self.cluster.ringctl('drain', drained)
        self.wait_until_drained(drained)
        job = self.wait_for('waits', lambda job: job['status']['state'] == 'QUEUED', 'the queue')
        self.assertIn('2 with a cordon', job['status']['pending_reason']['message'])
        # The cordons are of the names, whoever coordinates.
        self.cluster.coordinator.kill()
        self.cluster.start_coordinator()
        self.cluster.wait_for_workers(self.workers)
        self.assertTrue(self.is_drained(drained))
        self.assertEqual(self.cluster.job('waits')['status']['state'], 'QUEUED')
        self.cluster.ringctl('uncordon', 'worker-0')
        self.check('waits', generations=2)
        self.assertTrue(self.is_drained(drained))
        self.cluster.ringctl('uncordon', drained)


if __name__ == '__main__':
    harness.main()
