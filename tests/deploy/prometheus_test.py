#!/usr/bin/env python3
"""Checks deploy/prometheus against Prometheus' own tool and our programs: prometheus_test.py CHECKOUT BIN"""

import os
import re
import shutil
import subprocess
import sys
import unittest

import yaml

CHECKOUT, BIN = sys.argv[1:3]
FOLDER = os.path.join(CHECKOUT, 'deploy', 'prometheus')
ALERTS_TEST = os.path.join(CHECKOUT, 'tests', 'deploy', 'alerts_test.yml')


def alert_rules():
    with open(os.path.join(FOLDER, 'alerts.yml'), encoding='utf-8') as file:
        return [rule for group in yaml.safe_load(file)['groups'] for rule in group['rules']]


def exposed_series():
    """Names of all series that our programs can expose."""
    series = {'up'}
    for program in ('ringmaster-coordinator', 'ringmaster-worker'):
        table = subprocess.run([os.path.join(BIN, program), '--print-metrics'], check=True, capture_output=True,
                               text=True, timeout=60).stdout
        for name, kind in re.findall(r'^\| `(\w+)` \| (\w+)', table, re.M):
            series |= {f'{name}_{part}' for part in ('bucket', 'sum', 'count')} if kind == 'histogram' else {name}
    return series


class PrometheusTest(unittest.TestCase):
    def promtool(self, *words):
        if not shutil.which('promtool'):
            self.skipTest('promtool is not installed (package prometheus)')
        done = subprocess.run(['promtool', *words], capture_output=True, text=True, check=False, timeout=60)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_promtool_accepts_the_configuration(self):
        self.promtool('check', 'config', os.path.join(FOLDER, 'prometheus.yml'))

    def test_alerts_fire_when_they_should(self):
        self.promtool('test', 'rules', ALERTS_TEST)

    def test_every_alert_is_seen_to_fire_and_not_to(self):
        with open(ALERTS_TEST, encoding='utf-8') as file:
            cases = [case for test in yaml.safe_load(file)['tests'] for case in test['alert_rule_test']]
        alerts = {rule['alert'] for rule in alert_rules()}
        for fires in (True, False):
            self.assertEqual({case['alertname'] for case in cases if bool(case['exp_alerts']) == fires}, alerts)

    def test_alerts_use_metrics_that_exist(self):
        rules = alert_rules()
        used = {name for rule in rules for name in re.findall(r'\b(?:ringmaster_\w+|up)\b', rule['expr'])}
        self.assertGreater(len(used), 5)
        self.assertEqual(used - exposed_series(), set())


if __name__ == '__main__':
    unittest.main(argv=sys.argv[:1], verbosity=2)
