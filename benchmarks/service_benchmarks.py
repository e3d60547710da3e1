#!/usr/bin/env python3
"""Benchmarks with real processes: service_benchmarks.py BUILD. Prints one JSON object a line, for record.sh."""

import json
import os
import statistics
import subprocess
import sys
import tempfile

BUILD = os.path.abspath(sys.argv[1])
LOCAL = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'deploy', 'local')
sys.path.insert(0, LOCAL)

from cluster import Cluster  # pylint: disable=wrong-import-position
from demo import write_bible  # pylint: disable=wrong-import-position

STEPS, WARM_UP_STEPS = 40, 10
RUNS = 3


def training_speed():
    """Tokens per second of the demo's job for ring sizes 1 and 2, one thread a worker."""
    with tempfile.TemporaryDirectory() as state, Cluster(f'{BUILD}/bin', state, 2, worker_args=['--threads=1']) as cluster:
        cluster.wait_for_workers(2)
        text, speeds = os.path.join(state, 'bible.txt'), {1: [], 2: []}
        write_bible(text)
        for run in range(RUNS):
            for ring_size, found in speeds.items():
                name = f'ring-{ring_size}-{run}'
                settings = (f'name={name}', f'data.paths=["{text}"]', f'steps={STEPS}', f'parallel.ring_size={ring_size}',
                            'validation.interval_steps=-1', 'checkpoint.interval_steps=-1')
                cluster.ringctl('submit', f'{LOCAL}/demo.yaml', '--wait', seconds=600,
                                *(word for setting in settings for word in ('--set', setting)))
                found += [float(record['tokens']) / float(record['seconds'])
                          for step, record in cluster.step_records(name).items() if step > WARM_UP_STEPS]
        one, two = statistics.median(speeds[1]), statistics.median(speeds[2])
        return {'benchmark': 'demo_training', 'ring_1_tokens_per_second': round(one),
                'ring_2_tokens_per_second': round(two), 'ratio_ring_2_to_1': round(two / one, 3), 'runs': RUNS}


def durable_submissions():
    """Jobs stored a second, each on the disk before its reply, grouped and one by one."""
    found = {1: [], 512: []}
    for run in range(RUNS):
        for window, results in found.items():
            with tempfile.TemporaryDirectory(dir=BUILD) as state, Cluster(f'{BUILD}/bin', state) as cluster:
                count = '500' if window == 1 else '8000'
                results.append(json.loads(subprocess.run(
                    [f'{BUILD}/bin/submission_benchmark', cluster.address, count, str(window)], check=True,
                    capture_output=True, text=True).stdout))
    def median(window, figure):
        return statistics.median(result[figure] for result in found[window])

    grouped, one_by_one = median(512, 'submissions_per_second'), median(1, 'submissions_per_second')
    return {'benchmark': 'durable_submissions', 'grouped_per_second': round(grouped),
            'grouped_p99_ms': median(512, 'p99_ms'), 'one_by_one_per_second': round(one_by_one),
            'ratio_grouped_to_one_by_one': round(grouped / one_by_one, 1), 'window': 512, 'runs': RUNS}


def placement():
    """Admissions and submissions a second of the coordinator's core with a long queue, by number of queues."""
    lines = []
    for _ in range(RUNS):
        lines += subprocess.run([f'{BUILD}/bin/placement_benchmark'], check=True, capture_output=True, text=True
                                ).stdout.splitlines()
    by_queues = {}
    for found in map(json.loads, lines):
        by_queues.setdefault(found['queues'], []).append(found)
    def median(queues, figure):
        return statistics.median(found[figure] for found in by_queues[queues])

    one, most = min(by_queues), max(by_queues)
    return {'benchmark': 'placement', 'jobs': by_queues[one][0]['jobs'], 'workers': by_queues[one][0]['workers'],
            **{f'{figure}_{queues}_queues': median(queues, figure) for queues in by_queues
               for figure in ('admissions_per_second', 'submissions_per_second', 'slowest_round_ms')},
            'ratio_admissions_many_queues_to_one': round(
                median(most, 'admissions_per_second') / median(one, 'admissions_per_second'), 2), 'runs': RUNS}


if __name__ == '__main__':
    for benchmark in (durable_submissions, placement, training_speed):
        print(json.dumps(benchmark()), flush=True)
