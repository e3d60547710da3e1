"""The include ladder: who may include whom. ARCHITECTURE.md tells why; this table is what is enforced."""

import re

from source_tree import includes

# Longest matching prefix decides the rung of a file. Value: the rungs it may include beside its own.
RUNGS = {
    'base': (),
    'proto': ('base', 'attention/plan'),
    'attention/kernels': ('base',),
    'attention/plan': ('base',),  # free of torch: the coordinator plans and estimates with it
    'attention': ('base', 'attention/kernels', 'attention/plan'),
    'models': ('base', 'attention', 'attention/kernels', 'attention/plan'),
    'coordinator/core': ('base', 'proto', 'attention/plan'),
    'coordinator': ('base', 'proto', 'coordinator/core', 'attention/plan'),
    'worker/comm': ('base', 'attention', 'attention/plan'),
    'worker/session': ('base', 'proto', 'attention/plan'),
    'worker': ('base', 'proto', 'attention', 'attention/kernels', 'attention/plan', 'models', 'worker/comm',
               'worker/session'),
    'cli': ('base', 'proto'),
}
FREE = ('tests', 'benchmarks')  # may include everything, and nothing may include them

# Foreign headers, by what they belong to, and the rungs that may name them.
FOREIGN = {
    'torch': (re.compile(r'^(torch|ATen|c10)/'), ('attention', 'models', 'worker')),
    'CUDA': (re.compile(r'^(cuda|cublas|cudnn)[\w/]*\.h$'), ('attention/kernels', 'worker', 'worker/comm')),
    'NCCL': (re.compile(r'^nccl\.h$'), ('worker/comm',)),
    'UCX': (re.compile(r'^uc[pst]/'), ('worker/comm',)),
    'gRPC': (re.compile(r'^(grpc|grpcpp)/|\.grpc\.pb\.h$'), ('proto', 'coordinator', 'worker', 'cli')),
    'protobuf': (re.compile(r'^google/|\.pb\.h$'),
                 ('proto', 'coordinator/core', 'coordinator', 'worker/session', 'worker', 'cli')),
    'libpq': (re.compile(r'^libpq-fe\.h$'), ('coordinator',)),
    'SQLite': (re.compile(r'^sqlite3\.h$'), ('coordinator',)),
    # Pure cores get time, randomness and input as arguments and own no thread.
    'threads and files': (re.compile(r'^(thread|mutex|shared_mutex|condition_variable|future|fstream|random)$'
                                     r'|^absl/synchronization/'),
                          ('base', 'proto', 'attention', 'models', 'worker/comm', 'coordinator', 'worker', 'cli')),
}
# The transport and the exchange of tensors meet in these rungs only; torch types may cross there.
FOREIGN['torch'] = (FOREIGN['torch'][0], FOREIGN['torch'][1] + ('worker/comm',))


def rung(path):
    """The rung of a file or of an included name; None for what is not ours (or belongs to no rung)."""
    parts = path.split('/')[:-1]
    for length in range(len(parts), 0, -1):
        prefix = '/'.join(parts[:length])
        if prefix in RUNGS or prefix in FREE:
            return prefix
    return None


def violations(path, text):
    """One line of text for each forbidden include of the file."""
    own = rung(path)
    if own is None or own in FREE:
        return []
    found = []
    for name, line in includes(text):
        target = rung(name)
        if target is not None and target != own and target not in RUNGS[own]:
            found.append(f'{path}:{line}: {own} may not include {name} ({target}); allowed: '
                         f'{", ".join(RUNGS[own]) or "nothing of ours"}')
        for what, (pattern, allowed) in FOREIGN.items():
            if pattern.search(name) and own not in allowed:
                found.append(f'{path}:{line}: {own} may not name {what} ({name}); allowed in: {", ".join(allowed)}')
    return found
