#!/usr/bin/env python3
"""A real Prometheus server scrapes a live job, with our scrape configuration and alert rules."""

import datetime
import json
import os
import re
import shutil
import socket
import subprocess
import unittest
import urllib.parse
import urllib.request

import yaml

import harness

FOLDER = os.path.join(harness.CHECKOUT, 'deploy', 'prometheus')


def free_address():
    """Prometheus says its address nowhere, so port 0 is of no use."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return f'127.0.0.1:{probe.getsockname()[1]}'


@unittest.skipUnless(shutil.which('prometheus'), 'the prometheus server is not installed (package prometheus)')
class PrometheusLiveTest(harness.ClusterTest):
    workers = 2

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        with open(os.path.join(FOLDER, 'prometheus.yml'), encoding='utf-8') as file:
            config = yaml.safe_load(file)
        config['global'] = {'scrape_interval': '200ms', 'evaluation_interval': '200ms'}
        config['rule_files'] = [os.path.join(FOLDER, 'alerts.yml')]
        targets = {'ringmaster-coordinator': [cls.cluster.http_address],
                   'ringmaster-worker': [worker.addresses()[0] for worker in cls.cluster.workers.values()]}
        for scrape in config['scrape_configs']:
            scrape['static_configs'] = [{'targets': targets[scrape['job_name']]}]
        path = os.path.join(cls.folder, 'prometheus.yml')
        with open(path, 'w', encoding='utf-8') as file:
            yaml.safe_dump(config, file)
        cls.address = free_address()
        server = subprocess.Popen(
            ['prometheus', f'--config.file={path}', f'--storage.tsdb.path={cls.folder}/tsdb',
             f'--web.listen-address={cls.address}'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        cls.addClassCleanup(server.wait)
        cls.addClassCleanup(server.kill)
        test = cls('test_a_live_job_is_seen')
        test.submit('scraped', steps=100000)
        test.wait_for_step('scraped', 5)

    def ask(self, path):
        with urllib.request.urlopen(f'http://{self.address}/api/v1/{path}', timeout=10) as reply:
            return json.load(reply)['data']

    def query(self, expression):
        """[(labels, value)]; OSError while the server starts."""
        result = self.ask('query?' + urllib.parse.urlencode({'query': expression}))['result']
        return [(entry['metric'], float(entry['value'][1])) for entry in result]

    def expect(self, expression):
        def found():
            try:
                return self.query(expression)
            except OSError:
                return []
        return harness.wait_until(found, expression, harness.SECONDS, pause=0.1)

    def test_a_live_job_is_seen(self):
        self.expect('count(up == 1) == 3')
        self.assertEqual(self.expect('ringmaster_jobs{state="running"} == 1')[0][1], 1)
        self.assertEqual(self.expect('ringmaster_workers{state="active"} == 2')[0][1], 2)
        self.expect('ringmaster_job_step > 5')
        self.expect('ringmaster_job_tokens_per_second > 0')
        self.expect('rate(ringmaster_step_total[5s]) > 0')
        self.expect('ringmaster_comm_bytes_total{op="exchange"} > 0')
        self.expect('ringmaster_host_rss_bytes > 1e6')
        self.expect('ringmaster_placement_attempts_total{result="placed"} == 1')
        self.expect('ringmaster_worker_heartbeat_age_seconds{stat="max"} > 0')
        (labels, loss), *_ = self.expect('ringmaster_job_loss')
        self.assertIn('scraped', labels['training_job'])
        self.assertTrue(0 < loss < 6)

    def test_rules_are_evaluated_and_quiet(self):
        self.expect('count(up == 1) == 3')
        scraped = datetime.datetime.now(datetime.timezone.utc)

        def evaluated():
            rules = [rule for group in self.ask('rules')['groups'] for rule in group['rules']]
            times = [datetime.datetime.fromisoformat(rule['lastEvaluation']) for rule in rules]
            return rules if all(time > scraped for time in times) else []
        rules = harness.wait_until(evaluated, 'there are rules, evaluated since', harness.SECONDS, pause=0.1)
        with open(os.path.join(FOLDER, 'alerts.yml'), encoding='utf-8') as file:
            self.assertEqual({rule['name'] for rule in rules}, set(re.findall(r'alert: (\w+)', file.read())))
        self.assertEqual({rule['health'] for rule in rules}, {'ok'}, rules)
        self.assertEqual(self.query('ALERTS{alertstate="firing"}'), [])

    def test_everything_exposed_is_in_the_documents(self):
        with open(os.path.join(harness.CHECKOUT, 'docs', 'metrics.md'), encoding='utf-8') as file:
            documented = set(re.findall(r'^\| `(\w+)`', file.read(), re.M))
        addresses = [self.cluster.http_address, *(w.addresses()[0] for w in self.cluster.workers.values())]
        for address in addresses:
            with urllib.request.urlopen(f'http://{address}/metrics', timeout=10) as reply:
                exposed = set(re.findall(r'^# TYPE (ringmaster_\w+)', reply.read().decode(), re.M))
            self.assertGreater(len(exposed), 3)
            self.assertLessEqual(exposed, documented)


if __name__ == '__main__':
    harness.main()
