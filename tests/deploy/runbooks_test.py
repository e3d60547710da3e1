#!/usr/bin/env python3
"""Checks docs/runbooks.md against alerts, dashboards and our programs: runbooks_test.py CHECKOUT BIN"""

import glob
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import unittest

import yaml

import manifests

CHECKOUT, BIN = sys.argv[1:3]
sys.path.insert(0, os.path.join(CHECKOUT, 'deploy', 'local'))

from cluster import Cluster  # pylint: disable=wrong-import-position

# It waits for workers, of which there are none.
JOB_FILE = '''
name: a-job
model: {preset: tiny}
attention: {segment_lengths: [2048], dilation_rates: [1]}
data: {paths: [/nowhere/*.txt], sequence_length: 2048}
steps: 10
'''


def read(*path):
    with open(os.path.join(CHECKOUT, *path), encoding='utf-8') as file:
        return file.read()


def ringctl(*words):
    return subprocess.run([os.path.join(BIN, 'ringctl'), *words], capture_output=True, text=True, check=False, timeout=60)


class RunbooksTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.rules = [rule for group in yaml.safe_load(read('deploy', 'prometheus', 'alerts.yml'))['groups']
                     for rule in group['rules']]
        cls.page = read('docs', 'runbooks.md')
        # {alert: its section}
        parts = re.split(r'^## (\w+)\n', cls.page, flags=re.M)
        cls.sections = dict(zip(parts[1::2], parts[2::2]))

    def commands(self, section):
        return re.findall(r'^    (.+)$', section, re.M)

    def test_every_alert_has_a_section_and_every_section_an_alert(self):
        self.assertEqual(list(self.sections), [rule['alert'] for rule in self.rules])
        for rule in self.rules:
            self.assertEqual(rule['annotations']['runbook_url'], f'docs/runbooks.md#{rule["alert"].lower()}')

    def test_every_alert_says_what_it_must(self):
        for rule in self.rules:
            self.assertIn(rule['labels']['severity'], ('warning', 'critical'), rule['alert'])
            self.assertIn('for', rule, rule['alert'])
            self.assertEqual(rule['annotations'].keys(), {'summary', 'description', 'runbook_url'}, rule['alert'])

    def test_every_section_has_its_parts(self):
        for alert, section in self.sections.items():
            self.assertEqual(len(self.commands(section)), 3, alert)
            places = [section.find(part) for part in ('\n    ', '\nCauses', '\nDo: ', '\nWake somebody: ')]
            self.assertNotIn(-1, places, alert)
            self.assertEqual(places, sorted(places), alert)

    def test_commands_work(self):
        commands = {command for section in self.sections.values() for command in self.commands(section)}
        self.assertGreater(len(commands), 15)
        with tempfile.TemporaryDirectory() as folder, Cluster(BIN, folder) as cluster:
            cluster.ringctl('submit', '-', input=JOB_FILE)
            for command in commands:
                program, *words = shlex.split(command.replace('JOB', 'a-job'))
                if program == 'ringctl':
                    done = ringctl(f'--address={cluster.address}', *words)
                    self.assertEqual(done.returncode, 0, f'{command}: {done.stderr}')
                else:
                    self.assertEqual([program, *words[:2]], ['kubectl', '-n', 'ringmaster'], command)

    def test_commands_within_the_text_exist(self):
        texts = [self.page, *(rule['annotations']['description'] for rule in self.rules)]
        commands = [words for text in texts for words in re.findall(r'`ringctl\s([^`]+)`', text)]
        self.assertGreater(len(commands), 10)
        for command in commands:
            path = re.match(r'(?:[a-z]+\s?)+', command)[0].split()
            done = ringctl(*path, '--help')
            self.assertEqual(done.returncode, 0, command)
            self.assertIn(f'ringctl {" ".join(path)} ', done.stdout, command)
            for flag in re.findall(r'--[\w-]+', command):
                self.assertIn(flag, done.stdout, command)

    def test_what_is_named_exists(self):
        self.assertLessEqual(set(re.findall(r'Ringmaster[A-Z]\w+', self.page)), self.sections.keys())
        known = set()
        for path in glob.glob(os.path.join(CHECKOUT, 'deploy', 'grafana', 'dashboards', '*.json')):
            known.add(os.path.basename(path).removesuffix('.json'))
            known |= {panel['title'] for panel in json.loads(read(path))['panels']}
        named = set(re.findall(r'\*([^*]+)\*', self.page.replace('\n', ' ')))
        self.assertGreater(len(named), 8)
        self.assertLessEqual(named, known)

    def test_pods_and_folders_are_those_of_the_manifests(self):
        resources = manifests.render(os.path.join(CHECKOUT, 'deploy', 'kubernetes', 'base'))
        pods = {f'{resource["metadata"]["name"]}-0' for resource in resources if resource['kind'] == 'StatefulSet'}
        self.assertEqual(set(re.findall(r'\bringmaster-\w+-\d+', self.page)), pods)
        mounted = {mount['mountPath'] for resource in resources if manifests.pod_templates(resource)
                   for container in resource['spec']['template']['spec']['containers'] for mount in container['volumeMounts']}
        folders = set(re.findall(r' (/\w\S*)', ' '.join(command for section in self.sections.values()
                                                       for command in self.commands(section))))
        self.assertTrue(folders)
        self.assertLessEqual(folders, mounted)


if __name__ == '__main__':
    unittest.main(argv=sys.argv[:1], verbosity=2)
