#!/usr/bin/env python3
"""Trains the preset longnet-12x768 in bf16 through the coordinator, on the GPUs of this machine.

    gpu_training.py --bin TREE/bin --text FILE --state DIR [--case NAME ...] [--steps N]

Cases: one-rank (128K tokens), ring-2, ring-4 (32K tokens over NCCL, undisturbed), ring-2-kill, ring-4-kill (a rank is
killed -9 in the middle), ring-2-pause (paused and resumed in the middle), ring-2-masks (over a mask of blocks),
ring-2-dropout (of attention, as slow as its products; fewer tokens). Losses of a disturbed case are compared with those of
the undisturbed one, which are kept below --state for a later call; all else that a case has left there is removed when it
is run again. Several workers share one GPU when there are fewer GPUs than ranks: NCCL then takes each process for a host of
its own and talks over sockets, so that such cases prove the whole path but say nothing about speed. Prints one JSON object a
case, complete as history.jsonl has it, and exits 1 when one lacks steps, or was killed and has shown no recovery, or was not
paused.
"""

import argparse
import datetime
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
import typing

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'deploy', 'local'))

from cluster import Cluster, wait_until  # pylint: disable=wrong-import-position

WARM_UP_STEPS = 10
PHASES = ('detect', 'abort', 'form', 'restore', 'first_step')
JOB = '''
model: {{preset: longnet-12x768}}
attention: {{{attention}}}
data: {{paths: ["{text}"], sequence_length: {tokens}}}
parallel: {{ring_size: {ring}}}
precision: BF16
activation_checkpointing: {checkpointing}
optimizer: {{lr: 6.0e-4}}
schedule: {{warmup_steps: 50}}
resources: {{device: CUDA}}
validation: {{interval_steps: -1}}
checkpoint: {{interval_steps: -1}}
steps: {steps}
name: {name}
'''
BRANCHES = 'segment_lengths: [2048, 4096, 8192, 16384, 32768], dilation_rates: [1, 2, 4, 8, 16]'


class Case(typing.NamedTuple):
    ring: int
    tokens: int
    recompute: bool = False
    attention: str = BRANCHES


CASES = {'one-rank': Case(1, 131072, recompute=True),
         'ring-2': Case(2, 32768), 'ring-2-kill': Case(2, 32768), 'ring-2-pause': Case(2, 32768),
         'ring-2-masks': Case(2, 32768, attention='block_sparse: {preset: local_window_10}'),
         'ring-2-dropout': Case(2, 8192, attention=f'{BRANCHES}, dropout: 0.1'),
         'ring-4': Case(4, 32768), 'ring-4-kill': Case(4, 32768)}
# What is done to a case, by how its name ends, is measured against the case without.
DISTURBED = re.compile('-(kill|pause)$')
# The same length and recomputation in PyTorch, compiled, beside the case 'one-rank'. The preset has 12 heads of 64; wider
# heads are faster there, and the bar is the faster one.
PEER = {'peer': 'PyTorch restatement, 12 heads of 64', 'peer_tokens_per_second': 315100,
        'peer_6_heads_of_128_tokens_per_second': 358400, 'peer_measured': 'apart, on one H200'}
# bf16 and sums in any order have changed a loss by 0.045 at most so far; weights that a recovery lost would change it by
# more, up to the 3 nats and over that are between fresh and trained ones.
LOSS_DIFFERENCE_MAX = 0.2


def nvidia_smi(query):
    done = subprocess.run(['nvidia-smi', f'--query-{query}', '--format=csv,noheader,nounits'], check=True,
                          capture_output=True, text=True)
    return done.stdout.strip().splitlines()


class PeakMemory:
    """The most memory in use on the first GPU while the block runs, in MiB, as the driver says it."""

    def __enter__(self):
        self.mib, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self):
        while not self._done.wait(0.5):
            self.mib = max(self.mib, int(nvidia_smi('gpu=memory.used')[0]))

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()


def start_workers(cluster, count, gpus):
    for index in range(count):
        env = {'NCCL_DEBUG': 'WARN'}
        if count > gpus:
            env |= {'NCCL_HOSTID': f'host-{index}', 'NCCL_SOCKET_IFNAME': 'lo', 'NCCL_IB_DISABLE': '1'}
        env['CUDA_VISIBLE_DEVICES'] = str(index % gpus)
        cluster.start_worker(f'gpu-{index}', device='cuda', env=env)
    cluster.wait_for_workers(count, seconds=120)


def wait_for(cluster, name, what, condition):
    """Until condition(status); RuntimeError when the job has ended without."""
    def reached():
        status = cluster.job(name)['status']
        if condition(status):
            return True
        if status['state'] in ('SUCCEEDED', 'FAILED', 'CANCELLED'):
            raise RuntimeError(f'{name} {status["state"]}: {status.get("state_reason", "")}')
        return False
    wait_until(reached, f'{name}: {what}', seconds=550, pause=0.2)


def wait_for_step(cluster, name, step):
    wait_for(cluster, name, f'step {step}', lambda status: int(status.get('progress', {}).get('step', 0)) >= step)


def wait_for_state(cluster, name, state):
    wait_for(cluster, name, state, lambda status: status['state'] == state)


def pause_and_resume(cluster, name, at_step):
    """The step after which it was paused."""
    wait_for_step(cluster, name, at_step)
    cluster.ringctl('pause', name)
    wait_for_state(cluster, name, 'PAUSED')
    step = int(cluster.job(name)['status']['progress']['step'])
    cluster.ringctl('resume', name)
    return step


def kill_one_rank(cluster, name, at_step):
    wait_for_step(cluster, name, at_step)
    rank = cluster.job(name)['status']['ranks'][-1]
    pid = wait_until(lambda: cluster.worker_pid(rank['worker'].removeprefix('workers/')),
                     f'a process of {rank["worker"]} to kill')
    os.kill(pid, signal.SIGKILL)
    print(f'{name}: killed rank {rank.get("rank", 0)}, process {pid}', file=sys.stderr)


def commit_of(bin_dir):
    """What the programs were built from; the checkout here may be another."""
    said = subprocess.run([os.path.join(bin_dir, 'ringctl'), '--version'], check=True, capture_output=True, text=True).stdout
    return re.search(r'\((\w+)\)', said).group(1)


def show_episode(episode):
    """As history.jsonl has it; null is a phase whose time is not known."""
    times = {f'{phase}_ms': int(episode[f'{phase}_ms']) if f'{phase}_ms' in episode else None for phase in PHASES}
    return {**times, 'cause': episode['cause'], 'lost_steps': int(episode.get('lost_steps', 0)),
            'finished': episode.get('finished', False), 'restore': episode.get('restore'),
            'joined': episode.get('joined_workers')}


def beside_peer(result):
    if result['case'] != 'one-rank' or 'H200' not in result['gpu']:
        return {}
    return {**PEER, **{f'ratio_to_{name}': round(result['tokens_per_second'] / PEER[f'{name}_tokens_per_second'], 3)
                       for name in ('peer', 'peer_6_heads_of_128')}}


def missed(result, steps):
    """What the case had to show and has not."""
    said = []
    if result['steps'] != steps:
        said.append(f'{result["steps"]} records of {steps} steps')
    if result['case'].endswith('-kill') and not any(episode['finished'] for episode in result['episodes']):
        said.append('no episode that ended')
    if result['case'].endswith('-pause') and not 0 < result['paused_after_step'] < steps:
        said.append('no pause before the end')
    if DISTURBED.search(result['case']):
        difference = result['largest_loss_difference']
        if difference is None:
            said.append('no losses of the undisturbed case by this build and with as many steps below --state')
        elif not difference < LOSS_DIFFERENCE_MAX:
            said.append(f'a loss {difference} from the undisturbed one, {LOSS_DIFFERENCE_MAX} allowed')
    return said


class Losses:
    """Of each case of one build, by step; a file a case."""

    def __init__(self, folder, commit):
        self._folder, self._commit = folder, commit

    def _path(self, case):
        return os.path.join(self._folder, f'{case}.losses.json')

    def keep(self, case, losses):
        with open(self._path(case), 'w', encoding='utf-8') as file:
            json.dump({'commit': self._commit, 'losses': losses}, file)

    def largest_difference(self, case, losses):
        """To those kept of `case`; None when this build has not run it, or for another number of steps."""
        if not os.path.exists(self._path(case)):
            return None
        with open(self._path(case), encoding='utf-8') as file:
            kept = json.load(file)
        undisturbed = {int(step): loss for step, loss in kept['losses'].items()}
        if kept['commit'] != self._commit or undisturbed.keys() != losses.keys():
            return None
        return max(abs(losses[step] - undisturbed[step]) for step in undisturbed)


def run_case(cluster, name, args):
    case = CASES[name]
    path = os.path.join(cluster.state, f'{name}.yaml')
    with open(path, 'w', encoding='utf-8') as file:
        file.write(JOB.format(name=name, ring=case.ring, tokens=case.tokens, text=os.path.abspath(args.text),
                              steps=args.steps, attention=case.attention, checkpointing=str(case.recompute).lower()))
    started, paused = time.monotonic(), {}
    with PeakMemory() as peak:
        cluster.ringctl('submit', path)
        if name.endswith('-kill'):
            kill_one_rank(cluster, name, args.steps // 2)
        elif name.endswith('-pause'):
            paused = {'paused_after_step': pause_and_resume(cluster, name, args.steps // 2)}
        wait_for_state(cluster, name, 'SUCCEEDED')
    status, records = cluster.job(name)['status'], cluster.step_records(name)
    seconds = [float(record['seconds']) for step, record in records.items() if step > WARM_UP_STEPS]
    result = {'benchmark': 'gpu_training', 'case': name, 'preset': 'longnet-12x768', 'ring': case.ring,
              'tokens': case.tokens, 'steps': len(records), 'gpu': nvidia_smi('gpu=name')[0], 'gpus': args.gpus,
              'tokens_per_second': round(case.tokens / statistics.median(seconds)),
              'seconds_per_step': round(statistics.median(seconds), 4), 'peak_gib': round(peak.mib / 1024, 1),
              'first_loss': float(records[1]['loss']), 'last_loss': float(records[max(records)]['loss']),
              'wall_seconds': round(time.monotonic() - started, 1), **paused,
              'episodes': [show_episode(episode) for episode in status.get('episodes', [])]}
    return result, {step: float(record['loss']) for step, record in records.items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--bin', required=True)
    parser.add_argument('--text', required=True)
    parser.add_argument('--state', required=True)
    parser.add_argument('--case', action='append', choices=CASES)
    parser.add_argument('--steps', type=int, default=200)
    args = parser.parse_args()
    if not os.path.isfile(args.text):
        parser.error(f'--text {args.text}: no such file')
    args.gpus = len(nvidia_smi('gpu=index'))
    commit = commit_of(args.bin)
    os.makedirs(args.state, exist_ok=True)
    losses, failed = Losses(args.state, commit), False
    for name in args.case or CASES:
        workers = CASES[name].ring
        # The warm spare; not where it would be second on a GPU beside ranks with one each, which NCCL refuses.
        if name.endswith('-kill') and args.gpus != workers:
            workers += 1
        state = os.path.join(args.state, name)
        # Of an earlier call: its coordinator's database has a job of this name.
        shutil.rmtree(state, ignore_errors=True)
        with Cluster(args.bin, state) as cluster:
            start_workers(cluster, workers, args.gpus)
            result, by_step = run_case(cluster, name, args)
        if DISTURBED.search(name):
            result['largest_loss_difference'] = losses.largest_difference(DISTURBED.sub('', name), by_step)
        else:
            losses.keep(name, by_step)
        stamp = {'time': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'), 'commit': commit}
        print(json.dumps({**stamp, **result, **beside_peer(result)}), flush=True)
        for what in missed(result, args.steps):
            print(f'{name}: missed: {what}', file=sys.stderr)
            failed = True
    sys.exit(int(failed))


if __name__ == '__main__':
    main()
