#!/usr/bin/env python3
"""Checks deploy/grafana without a Grafana: grafana_test.py CHECKOUT BIN"""

import collections
import json
import os
import re
import subprocess
import sys
import tempfile
import unittest

import yaml

import metric_tables

CHECKOUT, BIN = sys.argv[1:3]
FOLDER = os.path.join(CHECKOUT, 'deploy', 'grafana')
NAMES = ('fleet', 'memory', 'recovery', 'throughput')


def read(*path):
    with open(os.path.join(FOLDER, *path), encoding='utf-8') as file:
        return file.read()


class GrafanaTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dashboards = {name: json.loads(read('dashboards', f'{name}.json')) for name in NAMES}
        cls.panels = [(f'{name}: {panel["title"]}', panel) for name, dashboard in cls.dashboards.items()
                      for panel in dashboard['panels'] if panel['type'] != 'row']

    def test_dashboards_are_what_the_generator_writes(self):
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, os.path.join(FOLDER, 'dashboards.py'), folder], check=True, timeout=60)
            self.assertEqual(sorted(os.listdir(folder)), sorted(os.listdir(os.path.join(FOLDER, 'dashboards'))))
            for name in NAMES:
                with open(os.path.join(folder, f'{name}.json'), encoding='utf-8') as file:
                    self.assertEqual(file.read(), read('dashboards', f'{name}.json'), name)

    def test_dashboards_panels_and_places_are_told_apart(self):
        self.assertEqual(len({dashboard['uid'] for dashboard in self.dashboards.values()}), len(NAMES))
        for name, dashboard in self.dashboards.items():
            covered = collections.Counter(
                (x, y) for place in (panel['gridPos'] for panel in dashboard['panels'])
                for x in range(place['x'], place['x'] + place['w']) for y in range(place['y'], place['y'] + place['h']))
            self.assertEqual(max(covered.values()), 1, name)
            self.assertLess(max(x for x, _ in covered), 24)
            for field in ('id', 'title'):
                values = [panel[field] for panel in dashboard['panels']]
                self.assertEqual(len(set(values)), len(values), (name, field))

    def test_every_panel_says_what_bad_looks_like(self):
        for name, panel in self.panels:
            self.assertIn('Bad:', panel['description'], name)
            self.assertTrue(panel['fieldConfig']['defaults']['unit'], name)

    def test_panels_ask_for_what_is_exposed(self):
        series = metric_tables.exposed_series(BIN)
        self.assertEqual(metric_tables.unknown('sum(ringmaster_wrokers) / up{jobs=~"a=b"}', series),
                         {'ringmaster_wrokers', 'up{jobs}'})
        for name, panel in self.panels:
            for target in panel['targets']:
                self.assertRegex(target['expr'], r'\b(ringmaster_|up\b)', name)
                self.assertEqual(metric_tables.unknown(target['expr'], series), set(), name)

    def test_variables_are_those_that_are_used(self):
        for name, dashboard in self.dashboards.items():
            variables = dashboard['templating']['list']
            text = json.dumps([dashboard['panels'], [variable['query'] for variable in variables]])
            used = set(re.findall(r'\$\{?([a-z]\w*)', text))
            self.assertEqual(used, {variable['name'] for variable in variables}, name)

    def test_the_config_map_has_every_dashboard(self):
        (generator,) = yaml.safe_load(read('kustomization.yaml'))['configMapGenerator']
        self.assertEqual(sorted(generator['files']), [f'dashboards/{name}.json' for name in NAMES])
        self.assertEqual(generator['options']['labels'], {'grafana_dashboard': '1'})

    def test_provisioning_names_a_data_source_and_a_folder(self):
        (source,) = yaml.safe_load(read('provisioning', 'datasources', 'ringmaster.yml'))['datasources']
        self.assertEqual(source['type'], 'prometheus')
        (provider,) = yaml.safe_load(read('provisioning', 'dashboards', 'ringmaster.yml'))['providers']
        # Where the document says that the dashboards are put.
        with open(os.path.join(CHECKOUT, 'docs', 'operations.md'), encoding='utf-8') as file:
            self.assertIn(f':{provider["options"]["path"]}', file.read())


if __name__ == '__main__':
    unittest.main(argv=sys.argv[:1], verbosity=2)
