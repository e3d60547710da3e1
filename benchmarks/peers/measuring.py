"""Times and memory of one call on a GPU (or, to try the code, on a CPU), and the JSON lines that report them."""

import json
import statistics
import subprocess
import time

import torch

WARM_UPS, REPEATS = 3, 10
# A GPU that comes to the power it may draw swings for about so long until its clocks stay. The first call, which may
# compile, is no part of it.
SETTLE_MS = 1000
# A call that takes longer even when it is warm is measured three times.
SLOW_MS, SLOW_REPEATS = 150, 3
# Products of the backward pass over those of the forward one: 5 and 2.
BACKWARD_OVER_FORWARD = 2.5


def speeds(flops, forward_ms, both_ms):
    """Of passes of which the forward one does `flops`."""
    return {'forward_ms': round(forward_ms, 3), 'forward_backward_ms': round(both_ms, 3),
            'forward_tflops': round(flops / forward_ms / 1e9, 1),
            'forward_backward_tflops': round((1 + BACKWARD_OVER_FORWARD) * flops / both_ms / 1e9, 1)}


def enqueue(call):
    """Events before and behind it."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    return begin, end


def elapsed(pair):
    """Milliseconds between two events, which it waits for."""
    begin, end = pair
    end.synchronize()
    return begin.elapsed_time(end)


class Meter:
    """Of one device. Without a GPU times are the host's and memory is not known."""

    def __init__(self, device):
        self.device = torch.device(device)
        self.is_cuda = self.device.type == 'cuda'

    def milliseconds(self, call):
        """(median, how many calls it is the median of)."""
        slow = self._times(call, WARM_UPS)[-1] >= SLOW_MS
        repeats, settled = SLOW_REPEATS if slow else REPEATS, 0
        while self.is_cuda and settled < SETTLE_MS:
            settled += sum(self._times(call, repeats))
        return statistics.median(self._times(call, repeats)), repeats

    def _times(self, call, count):
        """Of so many calls. On a GPU they are enqueued one behind the other, as in a training: the host's part counts where
        it takes longer than the device's."""
        if self.is_cuda:
            return [elapsed(pair) for pair in [enqueue(call) for _ in range(count)]]
        times = []
        for _ in range(count):
            start = time.perf_counter()
            call()
            times.append((time.perf_counter() - start) * 1e3)
        return times

    def speeds(self, flops, forward, both):
        """Those of two calls, and how many times each was made."""
        forward_ms, repeats = self.milliseconds(forward)
        both_ms, both_repeats = self.milliseconds(both)
        return {**speeds(flops, forward_ms, both_ms), 'repeats': [repeats, both_repeats]}

    def peak_bytes(self, call):
        """The most memory allocated during the call beyond what is allocated before it; None without a GPU."""
        if not self.is_cuda:
            call()
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def captured(self, call):
        """The same work as one CUDA graph; what `call` returns is not to be had."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def clean(self):
        if self.is_cuda:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()


def compile_with(enabled):
    """torch.compile for shapes as they come, or nothing of the kind."""
    if not enabled:
        return lambda function: function
    torch._dynamo.config.cache_size_limit = 64  # pylint: disable=protected-access
    return lambda function: torch.compile(function, dynamic=False)


def emit(row):
    print(json.dumps(row), flush=True)


def attempt(row, measure):
    """Prints `row` with what `measure` adds, or with the error that it ended with: one case must not end the run."""
    try:
        row = {**row, **measure()}
    except Exception as error:  # pylint: disable=broad-exception-caught
        row = {**row, 'error': f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'}
    emit(row)
    return row


def describe_machine(device):
    if torch.device(device).type != 'cuda':
        return {'gpu': None, 'torch': torch.__version__}
    fields = ('clocks.sm', 'clocks.mem', 'clocks.max.sm', 'power.limit', 'driver_version')
    try:
        said = subprocess.run(['nvidia-smi', '-i', '0', f'--query-gpu={",".join(fields)}', '--format=csv,noheader'], check=True,
                              capture_output=True, text=True, timeout=20).stdout.strip().split(', ')
        clocks = dict(zip(fields, said))
    except (OSError, subprocess.SubprocessError):
        clocks = {}
    return {'gpu': torch.cuda.get_device_name(), 'torch': torch.__version__, 'cudnn': torch.backends.cudnn.version(),
            'cuda': torch.version.cuda, **clocks}
