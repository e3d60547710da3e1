#!/usr/bin/env python3
"""The API as a stranger uses it: a Python client generated from the proto files, nothing of ours in between."""

import threading
import uuid

import grpc

import harness

Code = grpc.StatusCode


class ApiTest(harness.ClusterTest):
    workers = 2

    def spec(self, **fields):
        job = self.api.job
        values = {
            'model': job.ModelSpec(layers=1, dim=32, heads=4),
            'attention': job.AttentionSpec(segment_lengths=[32, 128], dilation_rates=[1, 2]),
            'data': job.DataSpec(paths=[self.text], sequence_length=128),
            'parallel': job.ParallelSpec(ring_size=2),
            'steps': 20, **fields}
        return job.TrainingJobSpec(**values)

    def create(self, job_id='', spec=None, **fields):
        return self.api.jobs.CreateTrainingJob(self.api.pb.CreateTrainingJobRequest(
            training_job_id=job_id, training_job=self.api.job.TrainingJob(spec=spec or self.spec()), **fields))

    def get(self, job_id):
        return self.api.jobs.GetTrainingJob(self.api.pb.GetTrainingJobRequest(name=self.name(job_id)))

    @staticmethod
    def name(job_id):
        return f'projects/default/trainingJobs/{job_id}'

    def queued(self, job_id, **fields):
        """A job that stays in the queue: it wants more workers than there are."""
        return self.create(job_id, self.spec(parallel=self.api.job.ParallelSpec(ring_size=9)), **fields)

    def forget(self, job_id):
        self.api.jobs.CancelTrainingJob(self.api.pb.CancelTrainingJobRequest(name=self.name(job_id)))
        self.wait_for(self.name(job_id), lambda job: job['status']['state'] == 'CANCELLED', 'its end')
        self.api.jobs.DeleteTrainingJob(self.api.pb.DeleteTrainingJobRequest(name=self.name(job_id)))

    def test_submit_and_watch(self):
        states, steps = [], []
        watch = self.api.jobs.WatchTrainingJobs(self.api.pb.WatchTrainingJobsRequest(), timeout=harness.SECONDS)
        created = threading.Event()
        for response in watch:
            kind = response.WhichOneof('event')
            if kind == 'synced' and not created.is_set():
                created.set()
                self.assertEqual(self.create('watched').name, self.name('watched'))
            if kind == 'job' and response.job.name == self.name('watched'):
                states.append(response.job.status.state)
                steps.append(response.job.status.progress.step)
                if states[-1] == self.api.job.TrainingJobStatus.SUCCEEDED:
                    break
        watch.cancel()
        status = self.api.job.TrainingJobStatus
        # With idle workers at hand a job is stored and placed at once.
        self.assertIn(states[0], (status.QUEUED, status.STARTING))
        self.assertIn(status.RUNNING, states)
        self.assertEqual(steps, sorted(steps))
        self.assertEqual(steps[-1], 20)

    def test_pages(self):
        ids = [f'page-{index}' for index in range(5)]
        for job_id in ids:
            self.queued(job_id)
        seen, token, pages = [], '', 0
        while pages == 0 or token:
            page = self.api.jobs.ListTrainingJobs(self.api.pb.ListTrainingJobsRequest(
                page_size=2, page_token=token, states=[self.api.job.TrainingJobStatus.QUEUED]))
            self.assertLessEqual(len(page.training_jobs), 2)
            seen += [job.name.rsplit('/', 1)[1] for job in page.training_jobs]
            token, pages = page.next_page_token, pages + 1
        self.assertEqual([job_id for job_id in seen if job_id.startswith('page-')], ids[::-1])
        self.assertGreaterEqual(pages, 3)
        for job_id in ids:
            self.forget(job_id)

    def test_a_repeated_request_is_one_job(self):
        request_id = str(uuid.uuid4())
        first = self.queued('repeated', request_id=request_id)
        self.assertEqual(self.queued('repeated', request_id=request_id).uid, first.uid)
        # Also after the coordinator has lost its memory.
        self.cluster.coordinator.kill()
        self.cluster.start_coordinator()
        again = harness.Api(self.cluster.address)
        type(self).api = again
        self.assertEqual(self.queued('repeated', request_id=request_id).uid, first.uid)
        code, _, details = self.api.error(lambda: self.queued('other', request_id=request_id))
        self.assertEqual((code, details['ErrorInfo'].reason), (Code.ALREADY_EXISTS, 'REQUEST_ID_REUSED'))
        self.forget('repeated')

    def test_validate_only_stores_nothing_and_fills_in_defaults(self):
        job = self.create('dry-run', validate_only=True)
        self.assertEqual(job.spec.optimizer.beta2, 0.98)
        code, _, _ = self.api.error(lambda: self.get('dry-run'))
        self.assertEqual(code, Code.NOT_FOUND)

    def test_an_outdated_etag_is_refused(self):
        self.queued('tagged')
        code, _, details = self.api.error(lambda: self.api.jobs.CancelTrainingJob(
            self.api.pb.CancelTrainingJobRequest(name=self.name('tagged'), etag='"outdated"')))
        self.assertEqual(code, Code.ABORTED)
        self.assertEqual(details['ErrorInfo'].domain, 'ringmaster')
        current = self.get('tagged').etag
        self.api.jobs.CancelTrainingJob(self.api.pb.CancelTrainingJobRequest(name=self.name('tagged'), etag=current))
        self.api.jobs.DeleteTrainingJob(self.api.pb.DeleteTrainingJobRequest(name=self.name('tagged')))

    def test_an_estimate_says_what_is_needed(self):
        estimate = self.api.jobs.EstimateTrainingJob(self.api.pb.EstimateTrainingJobRequest(spec=self.spec()))
        self.assertEqual(sum(estimate.shard_tokens), 128)
        memory = estimate.memory
        self.assertEqual(memory.total_bytes, memory.parameter_bytes + memory.gradient_bytes + memory.optimizer_bytes +
                         memory.activation_bytes + memory.exchange_bytes)
        self.assertGreater(estimate.parameters, 256 * 32)

    def test_workers(self):
        page = self.api.workers.ListWorkers(self.api.cluster_pb.ListWorkersRequest(page_size=1))
        self.assertEqual(page.workers[0].name, 'workers/worker-0')
        page = self.api.workers.ListWorkers(
            self.api.cluster_pb.ListWorkersRequest(page_size=1, page_token=page.next_page_token))
        self.assertEqual(page.workers[0].name, 'workers/worker-1')
        self.assertEqual(page.next_page_token, '')
        self.assertEqual(self.api.workers.GetWorker(
            self.api.cluster_pb.GetWorkerRequest(name='workers/worker-1')).hardware.device, self.api.job.CPU)

    def test_health_and_reflection(self):
        health = self.api.channel.unary_unary('/grpc.health.v1.Health/Check')
        self.assertEqual(health(b'', timeout=harness.SECONDS), b'\x08\x01')  # status: SERVING
        reflection = self.api.channel.stream_stream('/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo')
        reply = next(reflection(iter([b'\x3a\x00']), timeout=harness.SECONDS))  # list_services: ""
        for service in (b'ringmaster.v1.JobService', b'ringmaster.v1.ClusterService',
                        b'ringmaster.v1.CheckpointService', b'ringmaster.v1.WorkerService'):
            self.assertIn(service, reply)

    def malformed_specs(self):
        """(field named in the error, spec)."""
        job, spec = self.api.job, self.spec
        attention = lambda lengths, rates: job.AttentionSpec(segment_lengths=lengths, dilation_rates=rates)
        data = lambda **fields: job.DataSpec(**{'paths': [self.text], 'sequence_length': 128, **fields})
        model = lambda **fields: job.ModelSpec(**{'layers': 1, 'dim': 32, 'heads': 4, **fields})
        return [
            ('steps', spec(steps=0)),
            ('steps', spec(steps=-5)),
            ('model', spec(model=None)),
            ('model.preset', spec(model=job.ModelSpec(preset='tinny'))),
            ('model.layers', spec(model=model(layers=-1))),
            ('model.dim', spec(model=model(dim=30))),
            ('model.heads', spec(model=model(heads=-4))),
            ('model.kv_heads', spec(model=model(kv_heads=3))),
            ('model.vocab_size', spec(model=model(vocab_size=100))),
            ('attention.segment_lengths', spec(attention=attention([], []))),
            ('attention.dilation_rates', spec(attention=attention([32, 64], [1]))),
            ('attention.dilation_rates', spec(attention=attention([32], [0]))),
            ('attention.dilation_rates', spec(attention=attention([32], [64]))),
            ('attention.segment_lengths', spec(attention=attention([0], [1]))),
            ('data.paths', spec(data=data(paths=[]))),
            ('data.sequence_length', spec(data=data(sequence_length=0))),
            ('data.validation_fraction', spec(data=data(validation_fraction=0.9))),
            ('optimizer.lr', spec(optimizer=job.OptimizerSpec(lr=0))),
            ('optimizer.lr', spec(optimizer=job.OptimizerSpec(lr=float('nan')))),
            ('optimizer.beta1', spec(optimizer=job.OptimizerSpec(beta1=1))),
            ('optimizer.clip_norm', spec(optimizer=job.OptimizerSpec(clip_norm=-1))),
            ('schedule.final_lr_ratio', spec(schedule=job.ScheduleSpec(final_lr_ratio=2))),
            ('schedule.warmup_steps', spec(schedule=job.ScheduleSpec(warmup_steps=-1))),
            ('batch', spec(batch=job.BatchSpec(global_sequences=3, micro_sequences=2))),
            ('parallel.ring_size', spec(parallel=job.ParallelSpec(ring_size=-1))),
            ('parallel.replicas', spec(parallel=job.ParallelSpec(replicas=-1))),
            ('checkpoint.keep_last', spec(checkpoint=job.CheckpointSpec(keep_last=-1))),
            ('dropout', spec(dropout=1)),
            ('dropout', spec(dropout=float('nan'))),
            ('directory', spec(directory='relative/path')),
        ]

    def test_malformed_specs_name_the_field(self):
        for field, spec in self.malformed_specs():
            with self.subTest(field=field, spec=str(spec).replace('\n', ' ')):
                code, message, details = self.api.error(lambda spec=spec: self.create('malformed', spec))
                self.assertEqual(code, Code.INVALID_ARGUMENT)
                self.assertEqual(details['ErrorInfo'].domain, 'ringmaster')
                fields = [violation.field for violation in details['BadRequest'].field_violations]
                self.assertTrue(any(found.startswith(f'training_job.spec.{field}') for found in fields), fields)
                self.assertIn(field.rsplit('.', 1)[-1], message)

    def test_a_broken_size_rule_names_the_nearest_valid_values(self):
        spec = self.spec(model=self.api.job.ModelSpec(layers=1, dim=30, heads=4))
        _, _, details = self.api.error(lambda: self.create('shape', spec))
        shape = details['ShapeViolation']
        self.assertEqual((shape.given, shape.required_multiple), (30, 4))
        self.assertEqual(list(shape.nearest_valid), [28, 32])

    def test_malformed_requests(self):
        pb, name = self.api.pb, self.name
        cases = [
            (Code.INVALID_ARGUMENT, lambda: self.create('UPPER')),
            (Code.INVALID_ARGUMENT, lambda: self.create('x')),
            (Code.INVALID_ARGUMENT, lambda: self.create('valid-id', request_id='no uuid')),
            (Code.INVALID_ARGUMENT, lambda: self.create('valid-id', parent='nonsense')),
            (Code.INVALID_ARGUMENT, lambda: self.api.jobs.CreateTrainingJob(pb.CreateTrainingJobRequest())),
            (Code.INVALID_ARGUMENT, lambda: self.api.jobs.ListTrainingJobs(pb.ListTrainingJobsRequest(page_size=-1))),
            (Code.INVALID_ARGUMENT, lambda: self.api.jobs.ListTrainingJobs(
                pb.ListTrainingJobsRequest(page_token='nonsense'))),
            (Code.NOT_FOUND, lambda: self.get('absent')),
            (Code.INVALID_ARGUMENT, lambda: self.api.jobs.GetTrainingJob(pb.GetTrainingJobRequest(name='nonsense'))),
            (Code.NOT_FOUND, lambda: self.api.jobs.CancelTrainingJob(pb.CancelTrainingJobRequest(name=name('absent')))),
            (Code.NOT_FOUND, lambda: self.api.jobs.DeleteTrainingJob(pb.DeleteTrainingJobRequest(name=name('absent')))),
            (Code.NOT_FOUND, lambda: list(self.api.jobs.StreamTrainingJobLogs(
                pb.StreamTrainingJobLogsRequest(name=name('absent'))))),
            (Code.NOT_FOUND, lambda: list(self.api.jobs.StreamTrainingJobMetrics(
                pb.StreamTrainingJobMetricsRequest(name=name('absent'))))),
            (Code.NOT_FOUND, lambda: self.api.workers.GetWorker(
                self.api.cluster_pb.GetWorkerRequest(name='workers/absent'))),
            (Code.NOT_FOUND, lambda: self.api.checkpoints.ListCheckpoints(
                self.api.checkpoint_pb.ListCheckpointsRequest(parent=name('absent')))),
            (Code.INVALID_ARGUMENT, lambda: self.api.checkpoints.ImportCheckpoint(
                self.api.checkpoint_pb.ImportCheckpointRequest(directory='/nonexistent'))),
        ]
        for index, (expected, call) in enumerate(cases):
            with self.subTest(case=index):
                code, message, details = self.api.error(call)
                self.assertEqual(code, expected, message)
                self.assertEqual(details['ErrorInfo'].domain, 'ringmaster')
                self.assertTrue(details['ErrorInfo'].reason)

    def test_delete_refuses_an_unfinished_job(self):
        self.queued('unfinished')
        code, _, details = self.api.error(lambda: self.api.jobs.DeleteTrainingJob(
            self.api.pb.DeleteTrainingJobRequest(name=self.name('unfinished'))))
        self.assertEqual(code, Code.FAILED_PRECONDITION)
        self.assertIn('PreconditionFailure', details)
        self.forget('unfinished')

    def test_an_id_is_taken_once(self):
        self.queued('taken')
        code, _, details = self.api.error(lambda: self.queued('taken'))
        self.assertEqual(code, Code.ALREADY_EXISTS)
        self.assertEqual(details['ResourceInfo'].resource_name, self.name('taken'))
        self.forget('taken')


if __name__ == '__main__':
    harness.main()
