"""What deploy/local/demo does once everything is built."""

import argparse
import json
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
WORKERS = 3
KILL_SECONDS, KILLS_MAX = 10, 12
CHAOS_STEPS = 160
PHASES = ('detect', 'abort', 'form', 'restore', 'first_step')
TERMINAL = ('SUCCEEDED', 'FAILED', 'CANCELLED')


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


def watch(cluster, name):
    """ringctl watch on our own output: a progress bar on a terminal, lines elsewhere."""
    sys.stdout.flush()
    return subprocess.Popen([f'{cluster.bin}/ringctl', f'--address={cluster.address}', 'watch', name])


def ended(job):
    return job['status']['state'] in TERMINAL


def require_success(job):
    if job['status']['state'] != 'SUCCEEDED':
        sys.exit(f'demo: {job["name"]} {job["status"]["state"]}: {job["status"].get("state_reason", "")}')


def show_result(cluster, name):
    job, records = cluster.job(name), cluster.step_records(name)
    require_success(job)
    progress = job['status']['progress']
    steps = sorted(records)
    sent, planned = (int(progress.get(f'{kind}_bytes_per_step', 0)) for kind in ('exchanged', 'planned'))
    print(f'Training loss     {float(records[steps[0]]["loss"]):.4f} at step {steps[0]}, '
          f'{float(records[steps[-1]]["loss"]):.4f} at step {steps[-1]} (nats per byte)')
    print(f'Validation loss   {progress["validation_loss"]:.4f} nats per byte')
    print(f'Exchange          {sent:,} bytes a step sent by the busiest rank; the plan says {planned:,}')
    print(f'Speed             {progress["tokens_per_second"]:,.0f} tokens/s')
    checkpoint = json.loads(cluster.ringctl('checkpoints', 'get', job['status']['last_checkpoint'], '-o', 'json'))
    print(f'Checkpoint        {checkpoint["directory"]}')
    sample = cluster.ringctl('generate', name, '--prompt', 'And God said', '--tokens', '200', seconds=120)
    print(f'Sample, 200 bytes\n---\n{sample.rstrip()}\n---')
    if sent != planned:
        sys.exit('demo: the bytes exchanged are not those planned')


def run_undisturbed(cluster, name, text, steps):
    submit(cluster, name, text, steps)
    job = cluster.job(name)
    while not job['status'].get('ranks') and not ended(job):
        time.sleep(0.05)
        job = cluster.job(name)
    for rank in job['status'].get('ranks', []):
        print(f'Rank {rank.get("rank", 0)} is {rank["worker"]} ({rank["host"]})')
    print(f'Ring formed, generation {job["status"].get("generation")}; the third worker is the warm spare')
    watch(cluster, name).wait()
    show_result(cluster, name)


def kill_while_it_trains(cluster, name, rng):
    """Every 10 s kills one worker of the ring, 12 times; with the 2nd and the 4th kill the coordinator too."""
    kills = coordinator_kills = 0
    next_kill = time.monotonic() + KILL_SECONDS
    while not ended(job := cluster.job(name)):
        if kills == KILLS_MAX or time.monotonic() < next_kill or job['status']['state'] != 'RUNNING':
            time.sleep(0.05)
            continue
        rank = rng.choice(job['status']['ranks'])
        victim = rank['worker'].removeprefix('workers/')
        pid = cluster.worker_pid(victim)
        if pid is None:
            continue
        os.kill(pid, signal.SIGKILL)
        kills += 1
        print(f'chaos: killed {victim} (rank {rank.get("rank", 0)}) at step {job["status"]["progress"]["step"]}')
        if kills in (2, 4):
            cluster.coordinator.kill()
            cluster.start_coordinator()
            coordinator_kills += 1
            print('chaos: killed the coordinator and started it again')
        sys.stdout.flush()
        next_kill = time.monotonic() + KILL_SECONDS
    return kills, coordinator_kills


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
    totals = [sum(int(e.get(phase + '_ms', 0)) for phase in PHASES) for e in episodes if e.get('finished')]
    if totals:
        print(f'Whole episode: median {statistics.median(totals):.0f} ms, longest {max(totals)} ms, '
              f'{len(totals)} of {len(episodes)} finished')


def compare(undisturbed, disturbed):
    """Whether both runs have the same steps with the same losses, to the last bit."""
    wrong = [step for step in sorted(undisturbed.keys() | disturbed.keys())
             if any(undisturbed.get(step, {}).get(key) != disturbed.get(step, {}).get(key)
                    for key in ('loss', 'validation_loss'))]
    for step in wrong[:10]:
        print(f'step {step}: undisturbed {undisturbed.get(step, {}).get("loss")}, '
              f'with kills {disturbed.get(step, {}).get("loss")}')
    return not wrong


def run_chaos(cluster, text, steps):
    seed = random.randrange(2**32)
    print(f'chaos: seed {seed}; first the undisturbed run')
    run_undisturbed(cluster, 'demo', text, steps)
    submit(cluster, 'chaos', text, steps)
    watcher = watch(cluster, 'chaos')
    kills, coordinator_kills = kill_while_it_trains(cluster, 'chaos', random.Random(seed))
    watcher.wait()
    job = cluster.job('chaos')
    require_success(job)
    show_episodes(job['status'].get('episodes', []))
    print(f'{kills} workers and {coordinator_kills} coordinators killed')
    undisturbed, disturbed = cluster.step_records('demo'), cluster.step_records('chaos')
    if not compare(undisturbed, disturbed):
        sys.exit('demo: the loss curves differ')
    last = max(undisturbed)
    print(f'All {len(undisturbed)} losses are equal, bit for bit; the last is {undisturbed[last]["loss"]}')
    if kills < 5 or coordinator_kills < 2:
        sys.exit(f'demo: the job ended before 5 workers and 2 coordinators were killed; give more --steps')


def main():
    parser = argparse.ArgumentParser(prog='deploy/local/demo')
    parser.add_argument('--steps', type=int)
    parser.add_argument('--dir', default=os.path.join(BUILD, 'demo'))
    parser.add_argument('--chaos', action='store_true')
    parser.add_argument('--bin', default=os.path.join(BUILD, 'release', 'bin'))
    args = parser.parse_args()
    # Ctrl-C and SIGTERM leave through the block below, which stops all processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    state = os.path.abspath(args.dir)
    if os.path.isdir(state) and os.listdir(state) and not os.path.exists(os.path.join(state, 'bible.txt')):
        parser.error(f'--dir {state} holds other files than a demo\'s; it would be emptied')
    shutil.rmtree(state, ignore_errors=True)
    os.makedirs(state)
    text = os.path.join(state, 'bible.txt')
    print(f'Text: {write_bible(text):,} bytes of English; state, logs and checkpoints: {state}')
    started = time.monotonic()
    with Cluster(args.bin, state, workers=WORKERS, worker_args=['--threads=1']) as cluster:
        cluster.wait_for_workers(WORKERS)
        print(f'Coordinator at {cluster.address}, {WORKERS} workers, after {time.monotonic() - started:.1f} s')
        if args.chaos:
            run_chaos(cluster, text, args.steps or CHAOS_STEPS)
        else:
            run_undisturbed(cluster, 'demo', text, args.steps)


if __name__ == '__main__':
    main()
