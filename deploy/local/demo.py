"""What deploy/local/demo does once everything is built."""

import argparse
import contextlib
import datetime
import json
import math
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time

from cluster import Cluster

HERE = os.path.dirname(os.path.abspath(__file__))
BUILD = os.path.join(HERE, '..', '..', 'build')
PROGRAMS = ('ringmaster-coordinator', 'ringmaster-worker', 'ringctl')
WORKERS = 3
KILL_SECONDS, KILLS_MAX, COORDINATOR_KILLED_WITH, LAST_STEPS = 10, 12, (2, 4), 5
CHAOS_STEPS = 160
FIRST_LOSS, FIRST_LOSS_SLACK, VALIDATION_LOSS_MAX = 5.5, 0.3, 2.2
TEXT_BYTES_MIN, SEQUENCE_BYTES_MIN = 1_000_000, 8192
PROMPT, SAMPLE_BYTES, SAMPLE_CHARACTERS_MIN = 'And God said', 200, 100
EPISODE_SECONDS_MAX, DETECT_MS_MAX = 2, 100
RUN_SECONDS_MAX, SECOND_START_SECONDS_MAX = 20 * 60, 60
PHASES = ('detect', 'abort', 'form', 'restore', 'first_step')
TERMINAL = ('SUCCEEDED', 'FAILED', 'CANCELLED')


class Promises:
    """What a run must show. Each is printed as kept or missed, and a missed one ends the demo with 1 once all is shown.
    What only a whole run can keep does not count in a shortened one."""

    def __init__(self, whole):
        self._whole, self._missed = whole, []

    def check(self, kept, text, of_whole_run=False):
        counts = self._whole or not of_whole_run
        print(f'{"Kept" if kept else "Missed":<18}{text}{"" if counts else " (does not count in a shortened run)"}')
        if counts and not kept:
            self._missed.append(text)

    def require(self):
        if self._missed:
            sys.exit(f'demo: missed: {"; ".join(self._missed)}')


def write_bible(path):
    """The text of the package bible-kjv-text, 4 MB, without the verses' numbers."""
    verses = subprocess.run(['bible', '-f', 'gen1:1-rev22:21'], check=True, capture_output=True, text=True).stdout
    text = '\n'.join(line.partition(' ')[2] for line in verses.splitlines())
    with open(path, 'w', encoding='utf-8') as file:
        file.write(text)
    return len(text)


def submit(cluster, name, text, steps):
    settings = [f'name={name}', f'data.paths=["{text}"]'] + ([f'steps={steps}'] if steps else [])
    words = [word for setting in settings for word in ('--set', setting)]
    cluster.ringctl('submit', os.path.join(HERE, 'demo.yaml'), *words)


@contextlib.contextmanager
def watching(cluster, name):
    """ringctl watch on our own output, a progress bar on a terminal, lines elsewhere: to the job's end, or to ours when
    that comes first."""
    sys.stdout.flush()
    watcher = subprocess.Popen([f'{cluster.bin}/ringctl', f'--address={cluster.address}', 'watch', name])
    try:
        yield watcher
        watcher.wait()
    finally:
        watcher.terminate()
        watcher.wait()


def ended(job):
    return job['status']['state'] in TERMINAL


def require_success(job):
    if job['status']['state'] != 'SUCCEEDED':
        sys.exit(f'demo: {job["name"]} {job["status"]["state"]}: {job["status"].get("state_reason", "")}')


def check_job(cluster, text, promises):
    """That the job is large enough. By the plan a branch spans the ring when it would send something as the only one."""
    def estimate(*settings):
        words = [word for setting in (f'data.paths=["{text}"]', *settings) for word in ('--set', setting)]
        return json.loads(cluster.ringctl('estimate', os.path.join(HERE, 'demo.yaml'), *words, '-o', 'json'))
    spec = estimate()['spec']
    length, size = int(spec['data']['sequence_length']), os.path.getsize(text)
    alone = [estimate(f'attention.segment_lengths=[{segment}]', f'attention.dilation_rates=[{rate}]')
             for segment, rate in zip(spec['attention']['segment_lengths'], spec['attention']['dilation_rates'])]
    spanning = sum(int(plan.get('exchanged_bytes_per_step', 0)) > 0 for plan in alone)
    promises.check(size >= TEXT_BYTES_MIN, f'a text of at least {TEXT_BYTES_MIN:,} bytes: {size:,}', of_whole_run=True)
    promises.check(length >= SEQUENCE_BYTES_MIN, f'sequences of at least {SEQUENCE_BYTES_MIN:,} bytes: {length:,}')
    promises.check(len(alone) >= 3 and spanning >= 2,
                   f'of at least three branches two span both ranks by the plan: {spanning} of {len(alone)} do')


def check_sample(sample, promises):
    """What is no text in it counts as one character, what is a character of several bytes too."""
    generated = len(sample.removeprefix(PROMPT).removesuffix('\n')) if sample.startswith(PROMPT) else 0
    promises.check(generated >= SAMPLE_CHARACTERS_MIN, f'a sample goes on from its prompt: by {generated} characters')


def show_start(cluster, name, begun, promises):
    """How long the first step took to come, from the command on. Only where nothing was built anew is it a promise."""
    first = datetime.datetime.fromisoformat(cluster.step_records(name)[1]['time']).timestamp() - begun
    print(f'First step        after {first:.0f} s')
    if max(os.path.getmtime(os.path.join(cluster.bin, program)) for program in PROGRAMS) < begun:
        promises.check(first < SECOND_START_SECONDS_MAX,
                       f'a second start takes under {SECOND_START_SECONDS_MAX} s to the first step', of_whole_run=True)


def show_result(cluster, name, text, promises):
    job, records = cluster.job(name), cluster.step_records(name)
    require_success(job)
    progress = job['status']['progress']
    steps = sorted(records)
    first, last = (float(records[step]['loss']) for step in (steps[0], steps[-1]))
    sent, planned = (int(progress.get(f'{kind}_bytes_per_step', 0)) for kind in ('exchanged', 'planned'))
    print(f'Training loss     {first:.4f} at step {steps[0]}, {last:.4f} at step {steps[-1]} (nats per byte)')
    print(f'Validation loss   {progress["validation_loss"]:.4f} nats per byte')
    print(f'Exchange          {sent:,} bytes a step sent by the busiest rank; the plan says {planned:,}')
    print(f'Speed             {progress["tokens_per_second"]:,.0f} tokens/s')
    checkpoint = json.loads(cluster.ringctl('checkpoints', 'get', job['status']['last_checkpoint'], '-o', 'json'))
    print(f'Checkpoint        {checkpoint["directory"]}')
    sample = cluster.ringctl('generate', name, '--prompt', PROMPT, '--tokens', str(SAMPLE_BYTES), seconds=120)
    print(f'Sample, {SAMPLE_BYTES} bytes\n---\n{sample.rstrip()}\n---')
    check_sample(sample, promises)
    check_job(cluster, text, promises)
    promises.check(0 < sent == planned, 'the bytes exchanged are those planned')
    promises.check(abs(first - FIRST_LOSS) < FIRST_LOSS_SLACK and last < first,
                   f'training loss falls from about {FIRST_LOSS}: from {first:.4f} to {last:.4f}')
    promises.check(progress['validation_loss'] < VALIDATION_LOSS_MAX,
                   f'validation loss below {VALIDATION_LOSS_MAX}: {progress["validation_loss"]:.4f}', of_whole_run=True)


def run_undisturbed(cluster, name, text, steps, promises):
    """Returns how many seconds it took until the last step."""
    begin = time.monotonic()
    submit(cluster, name, text, steps)
    job = cluster.job(name)
    while not job['status'].get('ranks') and not ended(job):
        time.sleep(0.05)
        job = cluster.job(name)
    for rank in job['status'].get('ranks', []):
        print(f'Rank {rank.get("rank", 0)} is {rank["worker"]} ({rank["host"]})')
    print(f'Ring formed, generation {job["status"].get("generation")}; the third worker is the warm spare')
    with watching(cluster, name):
        pass
    seconds = time.monotonic() - begin
    show_result(cluster, name, text, promises)
    return seconds


def kill_while_it_trains(cluster, name, rng, seconds, kill_steps):
    """Kills a worker of the ring every so many seconds, or every `kill_steps` steps, 12 times; with the 2nd and the 4th
    the coordinator too. None at the very end: the job may be over before it is noticed, and then nothing recovers. Returns
    [(worker, whether the coordinator was killed with it)]."""
    kills, last_step = [], 0
    next_kill = time.monotonic() + seconds
    while not ended(job := cluster.job(name)):
        step = int(job['status'].get('progress', {}).get('step', 0))
        late = step > int(job['spec']['steps']) - LAST_STEPS
        early = step < last_step + kill_steps if kill_steps else time.monotonic() < next_kill
        if len(kills) == KILLS_MAX or early or late or job['status']['state'] != 'RUNNING':
            time.sleep(0.05)
            continue
        rank = rng.choice(job['status']['ranks'])
        victim = rank['worker'].removeprefix('workers/')
        pid = cluster.worker_pid(victim)
        if pid is None:
            continue
        os.kill(pid, signal.SIGKILL)
        kills.append((rank['worker'], len(kills) + 1 in COORDINATOR_KILLED_WITH))
        print(f'chaos: killed {victim} (rank {rank.get("rank", 0)}) at step {step}')
        if kills[-1][1]:
            cluster.coordinator.kill()
            cluster.start_coordinator()
            print('chaos: killed the coordinator and started it again')
        sys.stdout.flush()
        next_kill, last_step = time.monotonic() + seconds, step
    return kills


def episodes_of(kills, episodes):
    """For each kill the episode that recovered from it, or None. Two workers may share one, two deaths of one may not."""
    found, left = [], {worker: [e for e in episodes if worker in e.get('lost_workers', [])] for worker, _ in kills}
    for worker, _ in kills:
        found.append(left[worker].pop(0) if left[worker] else None)
    return found


def total_ms(episode):
    """Without end when it is not over, or a phase of it was not measured."""
    if not episode.get('finished') or any(phase + '_ms' not in episode for phase in PHASES):
        return math.inf
    return sum(int(episode[phase + '_ms']) for phase in PHASES)


def check_episodes(episodes, kills, promises):
    totals, of_kills = [total_ms(episode) for episode in episodes], episodes_of(kills, episodes)
    whole, longest = statistics.median(totals or [math.inf]), max(totals, default=math.inf)
    finished = sum(episode is not None and episode.get('finished', False) for episode in of_kills)
    print(f'Whole episode: median {whole:.0f} ms, longest {longest:.0f} ms')
    promises.check(whole < 1000 * EPISODE_SECONDS_MAX, f'median episode under {EPISODE_SECONDS_MAX} s',
                   of_whole_run=True)
    promises.check(finished == len(kills), f'every killed worker is lost in an episode that ended: {finished} of '
                                           f'{len(kills)}')
    # While there is no coordinator nobody detects anything.
    detect = max((float(episode.get('detect_ms', math.inf)) if episode else math.inf
                  for episode, (_, coordinator) in zip(of_kills, kills) if not coordinator), default=math.inf)
    promises.check(detect < DETECT_MS_MAX, f'detection of every kill under {DETECT_MS_MAX} ms, but for those with the '
                                           f'coordinator: at most {detect:.0f} ms', of_whole_run=True)


def show_episodes(episodes):
    print(f'{"generation":>12} {"cause":>14}' + ''.join(f'{phase + " ms":>15}' for phase in PHASES) +
          f'{"lost steps":>12}  joined')
    for episode in episodes:
        times = ''.join(f'{episode.get(phase + "_ms", "-"):>15}' for phase in PHASES)
        change = f'{episode["from_generation"]}->{episode["to_generation"]}'
        print(f'{change:>12} {episode["cause"].lower():>14}{times}{episode.get("lost_steps", 0):>12}  '
              f'{", ".join(episode.get("joined_workers", [])) or "-"}')
    known = {phase: [int(e[phase + '_ms']) for e in episodes if phase + '_ms' in e] for phase in PHASES}
    print(f'{"median":>12} {"":>14}' + ''.join(f'{statistics.median(times) if times else "-":>15}'
                                               for times in known.values()))


def compare(undisturbed, disturbed):
    """Whether both runs have the same steps with the same losses, to the last bit."""
    wrong = [step for step in sorted(undisturbed.keys() | disturbed.keys())
             if any(undisturbed.get(step, {}).get(key) != disturbed.get(step, {}).get(key)
                    for key in ('loss', 'validation_loss'))]
    for step in wrong[:10]:
        print(f'step {step}: undisturbed {undisturbed.get(step, {}).get("loss")}, '
              f'with kills {disturbed.get(step, {}).get("loss")}')
    return not wrong


def run_chaos(cluster, text, args, promises):
    seed = random.randrange(2**32)
    steps = args.steps or CHAOS_STEPS
    print(f'chaos: seed {seed}; first the undisturbed run')
    # A fast machine is to see as many kills; the last one's episode is over before the next.
    seconds = max(3, min(KILL_SECONDS, run_undisturbed(cluster, 'demo', text, steps, promises) / 6))
    submit(cluster, 'chaos', text, steps)
    with watching(cluster, 'chaos'):
        kills = kill_while_it_trains(cluster, 'chaos', random.Random(seed), seconds, args.kill_steps)
    job = cluster.job('chaos')
    require_success(job)
    show_episodes(job['status'].get('episodes', []))
    check_episodes(job['status'].get('episodes', []), kills, promises)
    coordinator_kills = sum(coordinator for _, coordinator in kills)
    promises.check(len(kills) >= 5 and coordinator_kills >= 2,
                   f'5 workers and 2 coordinators killed: {len(kills)} and {coordinator_kills}', of_whole_run=True)
    undisturbed, disturbed = cluster.step_records('demo'), cluster.step_records('chaos')
    promises.check(compare(undisturbed, disturbed),
                   f'all {len(undisturbed)} losses equal the undisturbed run\'s, bit for bit; the last is '
                   f'{undisturbed[max(undisturbed)]["loss"]}')


def main():
    parser = argparse.ArgumentParser(prog='deploy/local/demo')
    parser.add_argument('--steps', type=int)
    parser.add_argument('--dir', default=os.path.join(BUILD, 'demo'))
    parser.add_argument('--chaos', action='store_true')
    parser.add_argument('--kill-steps', type=int)
    parser.add_argument('--bin', default=os.path.join(BUILD, 'release', 'bin'))
    # When the command began, set-up and build included, in seconds since 1970.
    parser.add_argument('--begun', type=float, default=time.time(), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.kill_steps is not None and not args.chaos:
        parser.error('--kill-steps is for --chaos: without it nothing is killed')
    # Ctrl-C and SIGTERM leave through the block below, which stops all processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    state = os.path.abspath(args.dir)
    if os.path.isdir(state) and os.listdir(state) and not os.path.exists(os.path.join(state, 'bible.txt')):
        parser.error(f'--dir {state} holds other files than a demo\'s; it would be emptied')
    shutil.rmtree(state, ignore_errors=True)
    os.makedirs(state)
    text = os.path.join(state, 'bible.txt')
    print(f'Text: {write_bible(text):,} bytes of English; state, logs and checkpoints: {state}')
    started, promises = time.monotonic(), Promises(whole=not args.steps and not args.kill_steps)
    with Cluster(args.bin, state, workers=WORKERS, worker_args=['--threads=1']) as cluster:
        cluster.wait_for_workers(WORKERS)
        print(f'Coordinator at {cluster.address}, {WORKERS} workers, after {time.monotonic() - started:.1f} s')
        if args.chaos:
            run_chaos(cluster, text, args, promises)
        else:
            run_undisturbed(cluster, 'demo', text, args.steps, promises)
            show_start(cluster, 'demo', args.begun, promises)
    if not args.chaos:
        minutes = (time.time() - args.begun) / 60
        promises.check(minutes < RUN_SECONDS_MAX / 60,
                       f'it ends within {RUN_SECONDS_MAX // 60} minutes, set-up and build included: {minutes:.1f}',
                       of_whole_run=True)
    promises.require()


if __name__ == '__main__':
    main()
