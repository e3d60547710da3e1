#!/usr/bin/env python3
"""Writes the Grafana dashboards: dashboards.py [FOLDER], by default dashboards/ beside this file.

Here is what they show; the JSON that Grafana reads is made from it, and tests hold that it was.
"""

import json
import os
import sys

DATASOURCE = {'type': 'prometheus', 'uid': '${datasource}'}
JOB = '{training_job=~"$job"}'
WORKER = '{instance=~"$worker"}'


def panel(title, unit, description, *targets, kind='timeseries', low=0):
    """`targets` are (expression, legend); `low` is where the axis begins, None: with the values."""
    defaults = {'unit': unit} if low is None else {'unit': unit, 'min': low}
    return {'type': kind, 'title': title, 'description': description, 'datasource': DATASOURCE,
            'fieldConfig': {'defaults': defaults, 'overrides': []},
            'targets': [{'refId': chr(ord('A') + index), 'datasource': DATASOURCE, 'expr': expr, 'legendFormat': legend}
                        for index, (expr, legend) in enumerate(targets)]}


def row(title):
    return {'type': 'row', 'title': title, 'collapsed': False, 'panels': []}


def rate(metric, by, labels=''):
    return f'sum by ({by}) (rate({metric}{labels}[$__rate_interval]))'


def quantile(share, histogram, by='', labels=''):
    groups = f'le, {by}' if by else 'le'
    return f'histogram_quantile({share}, {rate(histogram + "_bucket", groups, labels)})'


def mean(histogram, by, labels=''):
    return f'{rate(histogram + "_sum", by, labels)} / {rate(histogram + "_count", by, labels)}'


FLEET = (
    row('Workers and jobs'),
    panel('Workers by state', 'short', 'Bad: `lost` grows, or `suspect` stays above zero: hosts or the network fail. No '
          '`idle` worker means that a lost one has no spare.', ('sum by (state) (ringmaster_workers)', '{{state}}')),
    panel('Jobs by state', 'short', 'Bad: `recovering` or `starting` stays for minutes, or `failed` rises.',
          ('sum by (state) (ringmaster_jobs)', '{{state}}')),
    panel('Jobs that wait, by reason', 'short', 'Bad: not_enough_workers or workers_unsuitable, which do not end by '
          'themselves; or any that grows while workers are idle.', ('sum by (reason) (ringmaster_jobs_waiting)', '{{reason}}')),
    panel('Longest wait', 's', 'Of the jobs that wait now. Bad: it grows without end while others are placed.',
          ('ringmaster_queue_longest_wait_seconds', 'longest')),
    panel('Wait until first placed', 's', 'From submission to workers, of jobs placed meanwhile. Bad: p95 far above p50: '
          'some jobs are passed over.', (quantile(0.5, 'ringmaster_queue_wait_seconds'), 'p50'),
          (quantile(0.95, 'ringmaster_queue_wait_seconds'), 'p95')),
    panel('Jobs that wait, by queue', 'short', 'Bad: one queue grows while others run.',
          ('sum by (queue) (ringmaster_queue_jobs{state="pending"})', '{{queue}}')),
    panel('Workers held by each queue', 'short', 'Beside its quota, where it has one. Bad: at the quota while workers are '
          'idle and jobs of it wait: the quota is too low.', ('ringmaster_queue_held_workers', '{{queue}}'),
          ('ringmaster_queue_max_workers', '{{queue}}, quota')),
    panel('Looks for workers, by outcome', 'ops', 'How often the coordinator tries. Bad: none while jobs wait.',
          (rate('ringmaster_placement_attempts_total', 'result'), '{{result}}')),
    panel('Age of heartbeats', 's', 'Bad: near the lease of 5 s, at which a worker is given up. Only max: one host; p50 '
          'too: the network or the coordinator.', ('ringmaster_worker_heartbeat_age_seconds', '{{stat}}')),
    panel('Workers with a cordon', 'short', 'Workers that an operator keeps from getting work. Bad: more than you know of.',
          ('ringmaster_workers_cordoned', 'cordoned')),
    panel('Builds', 'short', 'Processes of each build. Bad: more than one for long: a ring takes workers of one build only.',
          ('count by (version, commit) (ringmaster_build_info)', '{{version}} {{commit}}')),
    row('Coordinator'),
    panel('Coordinator is scraped', 'bool_yes_no', 'Bad: no. Rings train on, nothing is recovered.',
          ('up{job="ringmaster-coordinator"}', '{{instance}}'), kind='stat'),
    panel('Starts of the coordinator', 'short', 'Its epoch, one more with each start. Bad: it climbs: it crashes.',
          ('ringmaster_coordinator_epoch', 'epoch')),
    panel('Calls by code', 'reqps', 'Bad: INTERNAL, UNAVAILABLE or DEADLINE_EXCEEDED for more than moments. Others are the '
          'callers\' mistakes.', (rate('ringmaster_grpc_requests_total', 'code'), '{{code}}')),
    panel('Call time, p99', 's', 'Unary calls, commit included. Bad: above 0.1 s; compare with the commits.',
          (quantile(0.99, 'ringmaster_grpc_request_duration_seconds', 'method'), '{{method}}')),
    panel('Commit time', 's', 'A transaction, flushed. Bad: p99 above 50 ms: the disk under --data-dir is slow or shared.',
          (quantile(0.5, 'ringmaster_db_commit_duration_seconds'), 'p50'),
          (quantile(0.99, 'ringmaster_db_commit_duration_seconds'), 'p99')),
    panel('Event loop', 's', 'A round of the loop, and how late the last timer was. Bad: lag above 1 s: leases may run out '
          'although workers are well.', (quantile(0.99, 'ringmaster_tick_duration_seconds'), 'round, p99'),
          ('ringmaster_tick_lag_seconds', 'lag')),
    panel('Events that wait', 'short', 'Bad: it grows: the loop cannot keep up.',
          ('ringmaster_loop_queue_length', 'events')),
    panel('Database', 'bytes', 'On disk, with its log. Bad: growth that would fill the disk of --data-dir.',
          ('ringmaster_db_size_bytes', 'size')),
    panel('Store is full', 'bool_yes_no', 'Bad: yes. Submissions are refused until there is room.',
          ('ringmaster_store_full', 'full'), kind='stat'),
)

MEMORY = (
    row('Host'),
    panel('Host memory of each worker', 'bytes', 'Resident. Bad: near the limit of its host or container, which kills it.',
          (f'ringmaster_host_rss_bytes{WORKER}', '{{instance}}')),
    panel('Growth of host memory', 'Bps', 'Trend over 30 minutes. Bad: above zero for hours: a leak. It is high at a '
          'job\'s start.', (f'deriv(ringmaster_host_rss_bytes{WORKER}[30m])', '{{instance}}'), low=None),
    panel('Out of memory, as workers reported it', 'short', 'Since each process began. Bad: any: the job asks for too '
          'much, or shares its device.',
          ('sum by (instance) (ringmaster_worker_faults_total{instance=~"$worker", kind="out_of_memory_error"})',
           '{{instance}}')),
    panel('Recoveries from running out of memory', 'short', 'Since the coordinator began. Bad: given_up: the job has '
          'ended for it; `ringctl estimate` says what it needs.',
          ('sum by (result) (ringmaster_recovery_episodes_total{cause="out_of_memory_fault"})', '{{result}}')),
    row('GPU (no data on CPU workers)'),
    panel('Peak share of the device', 'percentunit', 'Reserved by the allocator at its peak, of what the device has. Bad: '
          'above 0.95: the next longer batch may not fit.',
          ('ringmaster_cuda_memory_bytes{instance=~"$worker", kind="peak_reserved"} / ignoring (kind) '
           'ringmaster_cuda_memory_bytes{instance=~"$worker", kind="limit"}', '{{instance}}')),
    panel('Allocated', 'bytes', 'In use by tensors. Bad: it climbs from step to step.',
          ('ringmaster_cuda_memory_bytes{instance=~"$worker", kind="allocated"}', '{{instance}}')),
    panel('Reserved but not allocated', 'bytes', 'What the allocator keeps. Bad: gigabytes when memory runs out: it is '
          'fragmented.', ('ringmaster_cuda_memory_bytes{instance=~"$worker", kind="reserved"} - ignoring (kind) '
                          'ringmaster_cuda_memory_bytes{instance=~"$worker", kind="allocated"}', '{{instance}}')),
)

THROUGHPUT = (
    row('Jobs'),
    panel('Tokens per second', 'short', 'All ranks together. Bad: lower than an hour ago with the same ring.',
          (f'ringmaster_job_tokens_per_second{JOB}', '{{training_job}}')),
    panel('Tokens per second and worker', 'short', 'Bad: lower than of the same job on fewer workers: the exchange is the '
          'limit.', (f'ringmaster_job_tokens_per_second{JOB} / on (training_job) ringmaster_ring_size{JOB}',
                     '{{training_job}}')),
    panel('Share of steps done', 'percentunit', 'Bad: flat.',
          (f'ringmaster_job_step{JOB} / on (training_job) ringmaster_job_steps{JOB}', '{{training_job}}')),
    panel('Time to the last step', 's', 'At the pace of the last ten minutes. Bad: it grows.',
          (f'(ringmaster_job_steps{JOB} - on (training_job) ringmaster_job_step{JOB}) / on (training_job) '
           f'(deriv(ringmaster_job_step{JOB}[10m]) > 0)', '{{training_job}}')),
    panel('Loss', 'none', 'Nats per token, of training and of validation. Bad: a jump that does not come back, or '
          'validation that rises while training falls.', (f'ringmaster_job_loss{JOB}', '{{training_job}}'),
          (f'max by (training_job) (ringmaster_validation_loss{JOB})', '{{training_job}}, validation'), low=None),
    panel('Gradient norm', 'none', 'Before clipping. Bad: it rises by orders of magnitude: a loss spike follows.',
          (f'max by (training_job) (ringmaster_grad_norm{JOB})', '{{training_job}}')),
    panel('Learning rate', 'sci', 'Bad: not what the schedule should give at this step.',
          (f'max by (training_job) (ringmaster_learning_rate{JOB})', '{{training_job}}')),
    panel('Exchange, of what was planned', 'percentunit', 'Attention bytes of the busiest rank in a step, over the plan\'s. '
          'Bad: anything but 100 %.', (f'max by (training_job) (ringmaster_exchange_bytes_per_step{JOB} / '
                                       f'ringmaster_planned_exchange_bytes_per_step{JOB})', '{{training_job}}')),
    row('Workers'),
    panel('Step time', 's', 'Validation and checkpoint excluded. Bad: p99 far above p50: some steps wait for something.',
          (quantile(0.5, 'ringmaster_step_duration_seconds', labels=WORKER), 'p50'),
          (quantile(0.99, 'ringmaster_step_duration_seconds', labels=WORKER), 'p99')),
    panel('Mean step time of each worker', 's', 'Workers of a ring wait for each other. Bad: all of a ring slower than '
          'before; look at their hosts.', (mean('ringmaster_step_duration_seconds', 'instance', WORKER), '{{instance}}')),
    panel('Attention bytes sent', 'Bps', 'Bad: near what the network does: steps wait for it.',
          (rate('ringmaster_comm_bytes_total', 'instance', '{instance=~"$worker", op="exchange"}'), '{{instance}}')),
    panel('Checkpoint bytes written', 'Bps', 'Bad: none for longer than the interval of checkpoints.',
          (rate('ringmaster_checkpoint_bytes_total', 'instance', WORKER), '{{instance}}')),
    panel('Time to write a shard', 's', 'Bad: it nears the interval of checkpoints: the shared file system is slow.',
          (quantile(0.5, 'ringmaster_checkpoint_duration_seconds', labels='{instance=~"$worker", kind="write"}'), 'p50'),
          (quantile(0.99, 'ringmaster_checkpoint_duration_seconds', labels='{instance=~"$worker", kind="write"}'), 'p99')),
)

RECOVERY = (
    row('Jobs'),
    panel('Recoveries of each job', 'short', 'Bad: more than three within an hour.',
          (f'ringmaster_job_recovery_episodes{JOB}', '{{training_job}}')),
    panel('Generation', 'short', 'One more with each ring that is formed. Bad: it climbs while no step is done.',
          (f'ringmaster_ring_generation{JOB}', '{{training_job}}')),
    panel('Time since the last step', 's', 'Bad: more than a few times the step time: it waits for a worker, or hangs.',
          (f'time() - ringmaster_job_last_step_timestamp_seconds{JOB}', '{{training_job}}')),
    panel('Age of the newest checkpoint', 's', 'What a loss of all workers would cost. Bad: above an hour.',
          (f'time() - ringmaster_checkpoint_last_success_timestamp_seconds{JOB}', '{{training_job}}')),
    panel('Workers in the ring', 'short', 'Bad: none while the job should run.',
          (f'ringmaster_ring_size{JOB}', '{{training_job}}')),
    row('Recoveries'),
    panel('Recoveries by cause', 'short', 'Since the coordinator began. Bad: given_up; worker_exit and lease_expired point '
          'to hosts, step_exception and out_of_memory_fault to jobs.',
          ('sum by (cause, result) (ringmaster_recovery_episodes_total)', '{{cause}}, {{result}}')),
    panel('Mean time of each phase', 's', 'Bad: detect near the lease: no supervisor told of the end; abort: ranks hang; '
          'form: no spare; restore: checkpoints instead of peers.',
          (mean('ringmaster_recovery_phase_seconds', 'phase'), '{{phase}}')),
    panel('Rings formed', 'ops', 'Bad: steady while few jobs start: rings break as soon as they stand.',
          ('rate(ringmaster_rings_formed_total[$__rate_interval])', 'rings')),
    panel('Steps done again', 'short', 'Since the coordinator began. Bad: it grows: no peer held the newest state.',
          ('ringmaster_recovery_lost_steps_total', 'steps')),
    panel('Time to restore', 's', 'From the connected ring to the restored state. Bad: seconds become minutes: it is read '
          'from the shared file system.',
          (quantile(0.99, 'ringmaster_checkpoint_duration_seconds', labels='{kind="restore"}'), 'p99')),
    row('Causes'),
    panel('Faults that workers reported', 'short', 'Since each process began. Bad: one worker far ahead of the others: '
          'drain it.', ('sum by (instance, kind) (ringmaster_worker_faults_total)', '{{instance}}, {{kind}}')),
    panel('Workers given up as silent', 'short', 'Since the coordinator began. Bad: several at once: the network.',
          ('ringmaster_worker_lease_expirations_total', 'workers')),
    panel('Workers without a coordinator', 'short', 'Workers whose stream is down. Bad: above zero for more than seconds.',
          ('count(ringmaster_worker_attached) - sum(ringmaster_worker_attached)', 'workers')),
    panel('Checkpoints committed', 'ops', 'Bad: none while jobs run.',
          ('rate(ringmaster_checkpoints_committed_total[$__rate_interval])', 'checkpoints')),
    panel('Checkpoints that failed', 'short', 'Since the coordinator began. Bad: any; write_error: the shared file system '
          'is full or gone.', ('sum by (reason) (ringmaster_checkpoint_failures_total)', '{{reason}}')),
)


def query_variable(name, label, query, regex=''):
    return {'type': 'query', 'name': name, 'label': label, 'datasource': DATASOURCE, 'query': query, 'regex': regex,
            'refresh': 2, 'sort': 1, 'multi': True, 'includeAll': True, 'current': {'text': 'All', 'value': '$__all'}}


# "All" of `job` is all jobs of the chosen projects, as Grafana makes it of the list.
JOB_VARIABLES = (
    query_variable('project', 'Project', 'label_values(ringmaster_job_step, training_job)', '/^projects\\/([^\\/]+)\\//'),
    query_variable('job', 'Job', 'label_values(ringmaster_job_step{training_job=~"projects/($project)/.*"}, training_job)'))
WORKER_VARIABLES = (query_variable('worker', 'Worker', 'label_values(ringmaster_worker_attached, instance)'),)

DASHBOARDS = {'fleet': (FLEET, ()), 'memory': (MEMORY, WORKER_VARIABLES),
              'throughput': (THROUGHPUT, JOB_VARIABLES + WORKER_VARIABLES), 'recovery': (RECOVERY, JOB_VARIABLES)}


def placed(panels):
    """With ids and places: three in a line, rows by themselves."""
    x = y = 0
    for number, entry in enumerate(panels, 1):
        wide, high = (24, 1) if entry['type'] == 'row' else (8, 8)
        if x + wide > 24:
            x, y = 0, y + 8
        yield {**entry, 'id': number, 'gridPos': {'x': x, 'y': y, 'w': wide, 'h': high}}
        x, y = (0, y + 1) if entry['type'] == 'row' else (x + wide, y)


def dashboard(name):
    panels, variables = DASHBOARDS[name]
    datasource = {'type': 'datasource', 'name': 'datasource', 'label': 'Data source', 'query': 'prometheus'}
    links = [{'type': 'dashboards', 'title': 'Ringmaster', 'tags': ['ringmaster'], 'asDropdown': True,
              'includeVars': True, 'keepTime': True}]
    return {'uid': f'ringmaster-{name}', 'title': f'Ringmaster: {name}', 'tags': ['ringmaster'], 'schemaVersion': 36,
            'editable': False, 'refresh': '30s', 'time': {'from': 'now-3h', 'to': 'now'}, 'links': links,
            'templating': {'list': [datasource, *variables]}, 'panels': list(placed(panels))}


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.realpath(__file__)), 'dashboards')
    for name in DASHBOARDS:
        with open(os.path.join(folder, f'{name}.json'), 'w', encoding='utf-8') as file:
            json.dump(dashboard(name), file, indent=1)
            file.write('\n')


if __name__ == '__main__':
    main()
