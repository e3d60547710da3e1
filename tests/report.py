#!/usr/bin/env python3
"""What tests/run asks about a ctest run.

  report.py targets BUILD [-L LABELS] [-R NAMES]   the programs to build before these tests can run, one a line
  report.py summary REPORTS                        tests, cases and skips with their reasons, from the XML reports there
"""

import glob
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree


def targets(build, *only):
    """Names of the test programs. A test that is a script may start any program: then the answer is "all"."""
    listing = subprocess.run(['ctest', '--test-dir', build, '--show-only=json-v1', *only], check=True,
                             capture_output=True, text=True).stdout
    names, own = [], os.path.join(os.path.abspath(build), 'tests', '')
    for test in json.loads(listing)['tests']:
        # ringmaster_test() names test and program alike; a program that is not built yet has no command here.
        if 'command' in test and not test['command'][0].startswith(own):
            return ['all']
        names.append(test['name'])
    return names


def gtest_cases(folder):
    """(cases, skips) of the GoogleTest programs."""
    cases, skips = 0, []
    for path in glob.glob(os.path.join(folder, '*.xml')):
        root = ElementTree.parse(path).getroot()
        if root.tag != 'testsuites':
            continue
        for case in root.iter('testcase'):
            cases += case.get('status') == 'run'
            for skipped in case.iter('skipped'):
                reason = skipped.get('message') or skipped.text or 'no reason given'
                # The message starts with the place of GTEST_SKIP: a line of its own.
                skips.append((f'{case.get("classname")}.{case.get("name")}', reason.strip().splitlines()[-1].strip()))
    return cases, skips


def script_cases(output):
    """(cases, skips) of a Python unittest, from what it printed."""
    cases = sum(int(count) for count in re.findall(r'^Ran (\d+) tests?', output, re.M))
    return cases, re.findall(r"^(\S+) .*\.\.\. skipped ['\"](.*)['\"]$", output, re.M)


def summary(folder):
    cases, skips = gtest_cases(folder)
    tests = ElementTree.parse(os.path.join(folder, 'ctest.xml')).getroot().findall('testcase')
    for test in tests:
        if test.get('status') in ('notrun', 'disabled'):
            skipped = test.find('skipped')
            skips.append((test.get('name'), skipped.get('message') if skipped is not None else test.get('status')))
        ran, skipped = script_cases(test.findtext('system-out') or '')
        cases += ran
        skips += skipped
    for name, reason in sorted(skips):
        print(f'skipped: {name}: {reason}')
    return f'{len(tests)} tests with {cases} cases, {len(skips)} skipped'


def main():
    if len(sys.argv) < 3 or sys.argv[1] not in ('targets', 'summary'):
        sys.exit(__doc__)
    if sys.argv[1] == 'targets':
        print(*targets(*sys.argv[2:]), sep='\n')
    else:
        print(summary(sys.argv[2]))


if __name__ == '__main__':
    main()
