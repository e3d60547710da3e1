#!/usr/bin/env python3
"""Queues, with real processes: who may submit what, how many workers its jobs have, and what is stored of it."""

import json

import harness


class QueuesTest(harness.ClusterTest):
    workers = 3

    def queue(self, name):
        (found,) = [queue for queue in json.loads(self.cluster.ringctl('queues', 'list', '-o', 'json'))
                    if queue['name'] == f'queues/{name}']
        return found

    def refused(self, message, *words):
        with self.assertRaisesRegex(RuntimeError, message):
            self.cluster.ringctl(*words)

    def restart_coordinator(self):
        self.cluster.coordinator.kill()
        self.cluster.start_coordinator()

    def test_a_queue_bounds_priorities_and_takes_its_projects_jobs(self):
        self.assertRegex(self.cluster.ringctl('queues', 'create', 'vision', '--projects', 'default,vision',
                                              '--max-priority', '5'), r'(?m)^vision +5 .* default,vision$')
        self.cluster.ringctl('queues', 'create', 'speech', '--projects', 'speech')
        self.assertNotIn('speech', self.cluster.ringctl('queues', 'list'))
        self.assertIn('speech', self.cluster.ringctl('queues', 'list', '--all-projects'))
        job = self.job_file()
        self.refused('at most 5', 'submit', job, '--set', 'queue=vision', '--set', 'priority=6')
        self.refused("may submit to no queue 'speech'", 'submit', job, '--set', 'queue=speech')
        self.submit('held', 1000000, ('queue=vision', 'priority=5'))
        self.assertRegex(self.cluster.ringctl('describe', 'held'), r'(?m)^Queue: +vision$')
        self.refused('at most 5', 'priority', 'held', '6')
        self.wait_for_step('held', 1)
        self.refused('have not ended', 'queues', 'delete', 'vision')
        self.cluster.ringctl('queues', 'update', 'vision', '--projects=', '--max-priority', '-1')
        self.restart_coordinator()
        queue = self.queue('vision')
        self.assertEqual((queue['max_priority'], queue['held_workers']), (-1, 2))
        self.assertNotIn('projects', queue)
        self.assertEqual(self.cluster.job('held')['spec']['priority'], -1)
        self.cluster.ringctl('cancel', 'held')
        self.wait_for_end('held', 'CANCELLED')
        self.cluster.ringctl('queues', 'delete', 'vision')
        self.refused("may submit to no queue 'vision'", 'submit', job, '--set', 'queue=vision')

    def test_a_quota_holds_back_its_queue_and_no_other(self):
        self.cluster.ringctl('queues', 'create', 'small', '--max-workers', '1')
        alone = ('queue=small', 'parallel.ring_size=1')
        self.submit('first', 1000000, alone)
        self.wait_for_step('first', 1)
        self.submit('second', 20, alone)
        # As many workers as it needs are idle, and another queue's job, which is younger, gets them.
        self.submit('other', 20)
        self.wait_for_end('other')

        def check():
            # As soon as the workers are back.
            job = self.wait_for('second', lambda job: job['status']['pending_reason']['code'] == 'WAITING_FOR_QUOTA',
                                'its reason to wait')
            self.assertEqual(job['status']['pending_reason']['message'],
                             'needs 1 workers; of the 1 that jobs of queues/small may hold together 1 are held')
            self.assertRegex(self.cluster.ringctl('queues', 'list'), r'(?m)^small +1000 +1 +1/1 +1 +1 +all$')
        check()
        self.restart_coordinator()
        check()
        self.cluster.ringctl('queues', 'update', 'small', '--max-workers', '2')
        self.wait_for_end('second')
        self.cluster.ringctl('cancel', 'first')
        self.wait_for_end('first', 'CANCELLED')


if __name__ == '__main__':
    harness.main()
