#!/usr/bin/env python3
"""A job from submission to its end, with real processes: what a user does and sees."""

import json
import os
import re

import harness


class TrainingTest(harness.ClusterTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        test = cls('test_it_succeeds')
        test.submit('main', steps=60)
        test.wait_for_end('main')

    def test_it_succeeds(self):
        job = self.cluster.job('main')
        self.assertEqual(int(job['status']['progress']['step']), 60)
        self.assertEqual(int(job['status']['generation']), 1)
        self.assertNotIn('episodes', job['status'])

    def test_every_step_has_one_record_and_the_loss_falls(self):
        records = self.cluster.step_records('main')
        self.assertEqual(sorted(records), list(range(1, 61)))
        losses = [float(records[step]['loss']) for step in sorted(records)]
        self.assertLess(abs(losses[0] - 5.545), 0.4)  # ln 256
        self.assertLess(losses[-1], losses[0] - 1)
        self.assertTrue(all('validation_loss' in records[step] for step in (20, 40, 60)))

    def test_bytes_exchanged_are_those_planned(self):
        progress = self.cluster.job('main')['status']['progress']
        self.assertGreater(int(progress['planned_bytes_per_step']), 0)
        self.assertEqual(progress['exchanged_bytes_per_step'], progress['planned_bytes_per_step'])

    def test_the_checkpoint_is_read_without_our_code(self):
        from safetensors import safe_open  # pylint: disable=import-outside-toplevel
        listed = json.loads(self.cluster.ringctl('checkpoints', 'list', 'main', '-o', 'json'))
        self.assertEqual([int(checkpoint['step']) for checkpoint in listed], [60, 40, 20])
        folder, tensors = listed[0]['directory'], {}
        with open(os.path.join(folder, 'manifest.json'), encoding='utf-8') as file:
            manifest = json.load(file)
        self.assertEqual(manifest['step'], 60)
        for shard in manifest['shards']:
            path = os.path.join(folder, shard['file'])
            self.assertEqual(os.path.getsize(path), shard['bytes'])
            with safe_open(path, framework='numpy') as file:
                for name in file.keys():
                    self.assertNotIn(name, tensors)
                    tensors[name] = file.get_tensor(name)
        self.assertTrue(any(tensor.shape == (256, 32) for tensor in tensors.values()), sorted(tensors))

    def test_a_sample_is_generated(self):
        words = ('generate', 'main', '--prompt', 'ring ', '--tokens', '50', '--temperature', '0')
        sample = self.cluster.ringctl(*words)
        self.assertGreaterEqual(len(sample.encode()), 50)
        self.assertEqual(sample, self.cluster.ringctl(*words))
        self.assertGreaterEqual(len(self.cluster.ringctl(*words, '--threads', '1').encode()), 50)

    def test_logs_and_metrics_outlive_the_workers(self):
        self.assertIn('ring', self.cluster.ringctl('logs', 'main'))
        csv = self.cluster.ringctl('metrics', 'main', '-o', 'csv').splitlines()
        self.assertEqual(len(csv), 61)
        self.assertNotIn('\x1b', self.cluster.ringctl('watch', 'main'))

    def test_watch_prints_no_escape_codes_in_a_pipe_and_ends_with_the_job(self):
        self.submit('watched', steps=30)
        printed = self.cluster.ringctl('watch', 'watched')
        self.assertRegex(printed.splitlines()[-1], r'succeeded step 30/30')
        self.assertNotRegex(printed, r'[\x1b\r]')

    def test_resume_goes_on_where_the_checkpoint_is(self):
        directory = json.loads(self.cluster.ringctl('checkpoints', 'list', 'main', '-o', 'json'))[1]['directory']
        self.submit('resumed', steps=60, settings=[f'resume_from={directory}', 'parallel.ring_size=1'])
        self.wait_for_end('resumed')
        main, resumed = self.losses('main'), self.losses('resumed')
        self.assertEqual(sorted(resumed), list(range(41, 61)))
        # Another world size adds in another order.
        for step, (loss, _) in resumed.items():
            self.assertAlmostEqual(float(loss), float(main[step][0]), delta=1e-4 * float(loss))

    def test_examples_in_the_documents_are_valid(self):
        for page in ('README.md', 'docs/usage.md'):
            with open(os.path.join(harness.CHECKOUT, page), encoding='utf-8') as file:
                example = re.search(r'^```yaml\n(.*?)^```', file.read(), re.M | re.S).group(1)
            path = os.path.join(self.folder, 'example.yaml')
            with open(path, 'w', encoding='utf-8') as file:
                file.write(example)
            self.assertIn('valid; nothing was stored', self.cluster.ringctl('submit', path, '--dry-run'))

    def test_a_mask_of_blocks_trains_alike_on_one_and_on_two_ranks(self):
        path = self.job_file(20, harness.JOB.replace(
            '{{segment_lengths: [32, 512, 512], dilation_rates: [1, 2, 4]}}',
            '{{block_sparse: {{kind: RANDOM, density: 0.4, block_size: 64, per_head: true}}}}'))
        for name, ranks in (('masked', 2), ('masked-alone', 1)):
            self.cluster.ringctl('submit', path, '--set', f'name={name}', '--set', f'parallel.ring_size={ranks}')
            self.wait_for_end(name)
        progress = self.cluster.job('masked')['status']['progress']
        self.assertGreater(int(progress['planned_bytes_per_step']), 0)
        self.assertEqual(progress['exchanged_bytes_per_step'], progress['planned_bytes_per_step'])
        ring, alone = self.losses('masked'), self.losses('masked-alone')
        self.assertEqual(sorted(ring), list(range(1, 21)))
        self.assertLess(float(ring[20][0]), float(ring[1][0]) - 0.5)
        for step, (loss, validation) in alone.items():
            self.assertAlmostEqual(float(loss), float(ring[step][0]), delta=1e-4 * float(loss))
            self.assertEqual(validation is None, ring[step][1] is None)
        # Prompts of either length see the mask that was trained with; what is behind it nobody can.
        short = self.cluster.ringctl('generate', 'masked', '--prompt', 'ring ', '--tokens', '9', '--temperature', '0')
        self.assertTrue(short.startswith('ring '), short)
        self.assertIn(short[:-1], self.cluster.ringctl('generate', 'masked', '--prompt', short[:8], '--tokens', '20',
                                                       '--temperature', '0'))
        with self.assertRaisesRegex(RuntimeError, "the model's mask is of"):
            self.cluster.ringctl('generate', 'masked', '--prompt', 'ring ', '--tokens', '100000')

    def test_a_job_that_cannot_be_placed_says_why_and_can_be_cancelled(self):
        self.submit('large', settings=['parallel.ring_size=5'])
        job = self.wait_for('large', lambda job: 'pending_reason' in job['status'], 'its reason')
        self.assertEqual(job['status']['pending_reason']['code'], 'NOT_ENOUGH_WORKERS')
        self.assertRegex(job['status']['pending_reason']['message'], r'5.*3')
        self.cluster.ringctl('cancel', 'large')
        self.wait_for_end('large', 'CANCELLED')
        self.cluster.ringctl('delete', 'large')
        self.assertNotIn('large', self.cluster.ringctl('list', '-o', 'name'))

    def test_cancelling_a_running_job_frees_its_workers(self):
        self.submit('endless', steps=1000000)
        self.wait_for_step('endless', 3)
        self.cluster.ringctl('cancel', 'endless')
        self.wait_for_end('endless', 'CANCELLED')
        self.cluster.wait_for_workers(3)


if __name__ == '__main__':
    harness.main()
