#!/usr/bin/env python3
"""What benchmarks/gpu_training.py accepts as shown, and what it says beside its speed; no GPU: gpu_training_test.py ROOT."""

import sys
import tempfile
import unittest

sys.path.insert(0, f'{sys.argv[1]}/benchmarks')

import gpu_training  # pylint: disable=wrong-import-position


class MissedTest(unittest.TestCase):
    def missed(self, case='ring-2-kill', **changes):
        result = {'case': case, 'steps': 200, 'largest_loss_difference': 0.05, 'episodes': [{'finished': True}], **changes}
        return ' '.join(gpu_training.missed(result, 200))

    def test_a_case_needs_all_its_steps(self):
        self.assertEqual(self.missed('ring-2', episodes=[]), '')
        self.assertRegex(self.missed('ring-2', steps=199), '199 records')
        self.assertRegex(self.missed(steps=201), '201 records')

    def test_a_kill_needs_a_recovery(self):
        self.assertEqual(self.missed(), '')
        self.assertRegex(self.missed(episodes=[]), 'no episode')
        self.assertRegex(self.missed(episodes=[gpu_training.show_episode({'cause': 'WORKER_EXIT'})]), 'no episode')

    def test_a_pause_comes_before_the_end(self):
        self.assertEqual(self.missed('ring-2-pause', paused_after_step=100), '')
        for step in (0, 200):
            self.assertRegex(self.missed('ring-2-pause', paused_after_step=step), 'no pause')

    def test_a_disturbance_needs_losses_like_the_undisturbed_ones(self):
        for case in ('ring-2-kill', 'ring-2-pause'):
            self.assertRegex(self.missed(case, paused_after_step=9, largest_loss_difference=None), 'no losses')
            for difference in (0.2, float('nan')):
                said = self.missed(case, paused_after_step=9, largest_loss_difference=difference)
                self.assertRegex(said, f'a loss {difference}')

    def test_only_losses_of_the_same_build_and_steps_are_compared(self):
        with tempfile.TemporaryDirectory() as folder:
            gpu_training.Losses(folder, 'this').keep('ring-2', {1: 5.5, 2: 5.0})
            this, other = (gpu_training.Losses(folder, commit) for commit in ('this', 'other'))
            self.assertEqual(this.largest_difference('ring-2', {1: 5.5, 2: 5.25}), 0.25)
            self.assertIsNone(this.largest_difference('ring-4', {1: 5.5, 2: 5.25}))
            self.assertIsNone(this.largest_difference('ring-2', {1: 5.5}))
            self.assertIsNone(other.largest_difference('ring-2', {1: 5.5, 2: 5.25}))


class PeerTest(unittest.TestCase):
    def test_speed_stands_beside_both_peers(self):
        result = {'case': 'one-rank', 'gpu': 'NVIDIA H200', 'tokens_per_second': 179200}
        beside = gpu_training.beside_peer(result)
        self.assertEqual((beside['ratio_to_peer'], beside['ratio_to_peer_6_heads_of_128']), (0.569, 0.5))
        self.assertIn('apart', beside['peer_measured'])
        self.assertEqual(gpu_training.beside_peer({**result, 'gpu': 'NVIDIA H100'}), {})


if __name__ == '__main__':
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]], verbosity=2)
