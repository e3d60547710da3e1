#!/usr/bin/env python3
"""Checks deploy/prometheus against Prometheus' own tool and our programs: prometheus_test.py CHECKOUT BIN"""

import os
import shutil
import subprocess
import sys
import unittest

import yaml

import metric_tables

CHECKOUT, BIN = sys.argv[1:3]
FOLDER = os.path.join(CHECKOUT, 'deploy', 'prometheus')
ALERTS_TEST = os.path.join(CHECKOUT, 'tests', 'deploy', 'alerts_test.yml')


def alert_rules():
    with open(os.path.join(FOLDER, 'alerts.yml'), encoding='utf-8') as file:
        return [rule for group in yaml.safe_load(file)['groups'] for rule in group['rules']]


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
        series = metric_tables.exposed_series(BIN)
        for rule in alert_rules():
            self.assertRegex(rule['expr'], r'\b(ringmaster_|up\b)')
            self.assertEqual(metric_tables.unknown(rule['expr'], series), set(), rule['alert'])


if __name__ == '__main__':
    unittest.main(argv=sys.argv[:1], verbosity=2)
