#!/usr/bin/env python3
"""Jobs that wait are placed by priority, with real processes."""

import harness


class PriorityTest(harness.ClusterTest):
    workers = 2

    def test_the_later_job_of_a_higher_priority_runs_first(self):
        # It has both workers, for longer than it takes to submit the others.
        self.submit('busy', steps=1000000)
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


if __name__ == '__main__':
    harness.main()
