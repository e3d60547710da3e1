#!/usr/bin/env python3
"""Priorities, with real processes: who is placed first, and a running job that gives its workers to another one without
losing a step; every loss is the undisturbed run's, bit for bit."""

import harness


class PriorityTest(harness.DisturbedTest):
    workers = 2
    coordinator_args = ('--preemption', '--preemption-min-runtime', '0')
    # No checkpoint but the ones that a preemption and the end write.
    settings = ('checkpoint.interval_steps=-1',)

    def check(self, name, preemptor):
        ends = [self.wait_for_end(job)['end_time'].rstrip('Z') for job in (preemptor, name)]
        self.assertEqual(ends, sorted(ends))
        self.assertEqual(self.losses(name), self.expected)
        job = self.cluster.job(name)
        self.assertNotIn('episodes', job['status'])
        self.assertEqual(int(job['status']['generation']), 2)
        self.assertEqual(sorted(self.cluster.step_records(name)), list(range(1, self.steps + 1)))

    def test_the_later_job_of_a_higher_priority_runs_first(self):
        # It has both workers, for longer than it takes to submit the others.
        self.submit('busy', 1000000, ('priority=10',))
        self.wait_for_step('busy', 1)
        for name, priority in ('patient', 0), ('urgent', 5), ('promoted', -5):
            self.submit(name, 5, (f'priority={priority}',))
        self.cluster.ringctl('priority', 'promoted', '9')
        order = ['promoted', 'urgent', 'patient']
        self.assertEqual([self.cluster.job(name)['status']['pending_reason']['queue_position'] for name in order],
                         [1, 2, 3])
        self.cluster.ringctl('cancel', 'busy')
        jobs = [self.wait_for_end(name) for name in order]
        starts = [job['start_time'].rstrip('Z') for job in jobs]
        self.assertEqual(starts, sorted(starts))

    def test_a_running_job_gives_way_and_loses_no_step(self):
        self.start('lower')
        self.submit('higher', 20, ('priority=1',))
        job = self.wait_for('lower', lambda job: job['status']['state'] == 'QUEUED', 'the queue')
        self.assertIn('trainingJobs/higher of priority 1 takes its place', job['status']['state_reason'])
        self.check('lower', 'higher')

    def test_the_coordinator_is_killed_meanwhile(self):
        self.start('orphaned')
        self.submit('pressing', 20, ('priority=1',))
        self.cluster.coordinator.kill()
        self.cluster.start_coordinator()
        self.check('orphaned', 'pressing')


if __name__ == '__main__':
    harness.main()
