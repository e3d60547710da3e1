#!/usr/bin/env python3
"""Checks the rules of the house that a compiler does not: tidy.py ROOT. Prints each violation, exits 1 if any."""

import os
import re
import sys

import ladder
from source_tree import CODE, code_files, files, functions, read, without_comments_and_strings

FILE_LIMIT, HEADER_LIMIT, FUNCTION_LIMIT, TEST_FUNCTION_LIMIT = 600, 150, 70, 140

TRANSLATORS = r'^(proto/rpc_status|worker/torch_status|worker/comm/\w*status|worker/comm/nccl_status)\b'
MAIN = r'(^|/)\w*main\.cc$'
FREE = r'^(tests|benchmarks)/'

# (pattern, files it concerns, files that may all the same, what to do instead)
BANNED = [
    (r'\bstd::c(out|err)\b', r'.', rf'^cli/|{MAIN}|{FREE}', 'return a Status, or log with spdlog'),
    (r'\b(sleep_for|sleep_until|usleep|SleepFor)\b', r'^tests/', None, 'wait for the event itself'),
    (r'\busing namespace\b', r'\.(h|cuh)$', None, 'name what is used'),
    (r'\bcatch \(', r'.', rf'{TRANSLATORS}|{MAIN}|{FREE}', 'use one of the three translators, or a Status'),
    (r'\bncclGetErrorString\b', r'.', rf'{TRANSLATORS}|{FREE}', 'use worker/comm/nccl_status'),
    (r'\bgrpc::StatusCode\b', r'.', rf'{TRANSLATORS}|{FREE}', 'use proto/rpc_status'),
    (r'\b(absl::Now|\w+_clock::now|time\(nullptr\)|std::random_device)\b', r'^(coordinator/core|worker/session)/',
     None, 'take it as an argument: a pure core has no clock and no random source'),
    # What tells when something was, and gRPC's deadlines, are the wall clock's.
    (r'(?<!ToUnixNanos\()(?<!ToChronoTime\()\babsl::Now\b|\b(Await|Wait|LockWhen)\w*With(Timeout|Deadline)\b',
     r'^worker/(?!session/)', None, 'take SteadyNow and WaitFor: setting the clock must not move a deadline'),
]
# A library that reports by exception only is turned into a Status where it is called, once. Every line has its reason.
EXCEPTIONS = {
    'base/logging.cc': {r'\bcatch \(': 'spdlog sinks throw when a file cannot be opened'},
    'cli/job_file.cc': {r'\bcatch \(': 'yaml-cpp reports errors in a file by exception'},
    'cli/client.cc': {r'\bgrpc::StatusCode\b': 'names a code of the reply for a person'},
}
MARKERS = re.compile(r'\b(TO' r'DO|FIX' r'ME|X' r'XX|HA' r'CK)\b')


def check_lengths(path, text):
    product = not re.search(FREE, path)
    lines = text.count('\n')
    limit = HEADER_LIMIT if product and path.endswith(('.h', '.cuh')) else FILE_LIMIT
    if lines > limit:
        yield f'{path}: {lines} lines, the limit is {limit}: split it by state or by lifetime'
    most = FUNCTION_LIMIT if product else TEST_FUNCTION_LIMIT
    for line, length, signature in functions(text):
        if length > most:
            yield f'{path}:{line}: a function of {length} lines, the limit is {most}: {signature[:80]}'


def check_words(path, text):
    bare = without_comments_and_strings(text)
    for pattern, where, but, instead in BANNED:
        if not re.search(where, path) or (but and re.search(but, path)) or pattern in EXCEPTIONS.get(path, {}):
            continue
        for match in re.finditer(pattern, bare):
            yield f'{path}:{bare.count(chr(10), 0, match.start()) + 1}: {match.group()} is not used here: {instead}'
    for match in MARKERS.finditer(text):
        yield f'{path}:{text.count(chr(10), 0, match.start()) + 1}: {match.group()}: finish it, or file an issue'
    if path.endswith(('.h', '.cuh')) and not re.search(r'^#pragma once$', text, re.M):
        yield f'{path}: no #pragma once'


def check_listed(root, paths):
    """Every source belongs to a target: a CMakeLists.txt at or above its folder names it."""
    lists = {os.path.dirname(p): read(root, p) for p in files(root) if os.path.basename(p) == 'CMakeLists.txt'}
    for path in paths:
        if not path.endswith(('.cc', '.cu')):
            continue
        folder = os.path.dirname(path)
        while True:
            relative = re.escape(os.path.relpath(path, folder or '.'))
            if re.search(rf'(?<![\w./-]){relative}(?![\w.])', lists.get(folder, '')):
                break
            if not folder:
                yield f'{path}: no CMakeLists.txt lists it'
                break
            folder = os.path.dirname(folder)


def check_architecture(root):
    page = os.path.join(root, 'ARCHITECTURE.md')
    text = read(root, 'ARCHITECTURE.md') if os.path.exists(page) else ''
    for name in sorted({path.split('/')[0] for path in files(root) if '/' in path}):
        if not name.startswith('.') and f'{name}/' not in text:
            yield f'ARCHITECTURE.md does not mention the folder {name}/'


def violations(root):
    paths = code_files(root)
    for path in paths:
        text = read(root, path)
        yield from check_lengths(path, text)
        yield from check_words(path, text)
        yield from ladder.violations(path, text)
    yield from check_listed(root, paths)
    yield from check_architecture(root)


def main():
    root = sys.argv[1]
    found = list(violations(root))
    print(*found, sep='\n')
    print(f'{len(code_files(root))} files ({", ".join(CODE)}), {len(found)} violations')
    return 1 if found else 0


if __name__ == '__main__':
    sys.exit(main())
