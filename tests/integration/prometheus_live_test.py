#!/usr/bin/env python3
"""A real Prometheus server scrapes live jobs, with our scrape configuration and alert rules, and is asked what our
dashboards ask."""

import datetime
import glob
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import unittest
import urllib.parse
import urllib.request

import yaml

import harness

FOLDER = os.path.join(harness.CHECKOUT, 'deploy', 'prometheus')
DASHBOARDS = os.path.join(harness.CHECKOUT, 'deploy', 'grafana', 'dashboards')


def free_address():
    """Prometheus says its address nowhere, so port 0 is of no use."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return f'127.0.0.1:{probe.getsockname()[1]}'


def panel_expressions():
    """{'dashboard: panel, query': expression} of all that CPU workers have series for, with "All" for each variable and a
    window that covers the test."""
    found = {}
    for path in glob.glob(f'{DASHBOARDS}/*.json'):
        with open(path, encoding='utf-8') as file:
            dashboard = json.load(file)
        for panel in dashboard['panels']:
            for target in panel.get('targets', []):
                expression = re.sub(r'\$(job|worker)\b', '.*', target['expr']).replace('$__rate_interval', '5m')
                if 'ringmaster_cuda_' not in expression:
                    found[f'{dashboard["title"]}: {panel["title"]}, {target["refId"]}'] = expression
    return found


# What there is only once something has failed that no test here can let fail: their labels are looked for, with any value.
RARE = {'ringmaster_grpc_requests_total{code=~"INTERNAL|UNAVAILABLE|UNKNOWN|DATA_LOSS"}',
        'ringmaster_jobs_finished_total{failure_class=~"budget_exhausted|checkpoint_lost|internal"}'}


def alert_selectors():
    """{'alert: selector': selector}: what an alert reads, as it is quiet when all is well."""
    with open(os.path.join(FOLDER, 'alerts.yml'), encoding='utf-8') as file:
        rules = [rule for group in yaml.safe_load(file)['groups'] for rule in group['rules']]
    selectors = {f'{rule["alert"]}: {selector}': selector for rule in rules
                 for selector in re.findall(r'\b(?:up|ringmaster_\w+)\b(?:{[^}]*})?', rule['expr'])}
    return {name: re.sub('=~"[^"]*"', '!=""', selector) if selector in RARE else selector
            for name, selector in selectors.items()}


def scrape_config():
    """The text of our configuration."""
    with open(os.path.join(FOLDER, 'prometheus.yml'), encoding='utf-8') as file:
        return file.read()


@unittest.skipUnless(shutil.which('prometheus'), 'the prometheus server is not installed (package prometheus)')
class PrometheusTest(unittest.TestCase):
    """Starts Prometheus servers, and asks them."""

    @classmethod
    def start_prometheus(cls, folder, text, targets):
        """With the configuration `text`, but for the targets of its jobs, and in a hurry."""
        config = yaml.safe_load(text)
        config['global'] = {'scrape_interval': '200ms', 'evaluation_interval': '200ms'}
        config['rule_files'] = [os.path.join(FOLDER, 'alerts.yml')]
        for scrape in config['scrape_configs']:
            scrape['static_configs'] = [{'targets': targets[scrape['job_name']]}]
        path = os.path.join(folder, 'prometheus.yml')
        with open(path, 'w', encoding='utf-8') as file:
            yaml.safe_dump(config, file)
        cls.address = free_address()
        server = subprocess.Popen(
            ['prometheus', f'--config.file={path}', f'--storage.tsdb.path={folder}/tsdb-{cls.address}',
             f'--web.listen-address={cls.address}'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        cls.addClassCleanup(server.wait)
        cls.addClassCleanup(server.kill)

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


class SecuredTest(PrometheusTest):
    """A coordinator with a certificate that asks for tokens, scraped as the comments of our configuration say."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = tempfile.TemporaryDirectory(prefix='ringmaster-prometheus-')
        cls.addClassCleanup(folder.cleanup)
        cls.folder = folder.name
        harness.make_certificate(cls.folder)
        certificate, token = f'{cls.folder}/tls.crt', f'{cls.folder}/data/admin-token'
        cls.cluster = harness.Cluster(harness.binaries(), cls.folder, coordinator_args=(
            '--require-tokens', f'--tls-cert={certificate}', f'--tls-key={cls.folder}/tls.key'))
        cls.addClassCleanup(cls.cluster.stop)
        viewer = cls.cluster.ringctl('tokens', 'create', 'prometheus', '--scope=viewer', f'--tls-ca={certificate}',
                                     f'--token-file={token}')
        # Beside the configuration, with the names that are in it.
        shutil.copy(certificate, f'{cls.folder}/ringmaster-ca.crt')
        with open(f'{cls.folder}/ringmaster-token', 'w', encoding='ascii') as file:
            file.write(viewer)

    def start(self, text):
        self.start_prometheus(self.folder, text, {'ringmaster-coordinator': [self.cluster.http_address],
                                                  'ringmaster-worker': []})

    def test_scraped_with_a_token_under_tls(self):
        text, lines = re.subn(r'^    # (scheme|tls_config|authorization):', r'    \1:', scrape_config(), flags=re.M)
        self.assertEqual(lines, 3)
        self.start(text)
        self.expect('up == 1')
        self.expect('ringmaster_build_info')

    def test_without_them_nothing_is_told(self):
        self.start(scrape_config())
        self.expect('up == 0')
        self.assertEqual(self.query('ringmaster_build_info'), [])


class ScrapedTest(PrometheusTest, harness.ClusterTest):
    """A cluster with a Prometheus server."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.start_prometheus(cls.folder, scrape_config(), {
            'ringmaster-coordinator': [cls.cluster.http_address],
            'ringmaster-worker': [worker.addresses()[0] for worker in cls.cluster.workers.values()]})


class QuietTest(ScrapedTest):
    workers = 2

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        test = cls('test_a_live_job_is_seen')
        test.submit('scraped', steps=100000)
        test.wait_for_step('scraped', 5)

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


class DisturbedTest(ScrapedTest):
    """Jobs that run out of memory once and lose a worker: every series that is not rare is there."""

    workers = 3
    # Of the one job that gets so far.
    worker_env = {'RINGMASTER_FAULT': 'rank=1,step=30,phase=forward,kind=oom,generation=1'}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        test = cls('test_every_panel_shows_something')
        # What counts from its first event on is seen to rise by the second.
        test.expect(f'count(up == 1) == {cls.workers + 1}')
        test.submit('short', steps=5)
        test.wait_for_end('short')
        test.expect('ringmaster_queue_wait_seconds_count == 1')
        cls.cluster.ringctl('queues', 'create', 'limited', '--max-workers', '1')
        test.submit('waits', settings=['queue=limited'])
        test.submit('long', steps=100000)
        test.expect('ringmaster_recovery_episodes_total{cause="out_of_memory_fault", result="recovered"} == 1')
        # Not the one that has reported a fault: that is told by its process.
        job = test.wait_for_step('long', 60)
        os.kill(cls.cluster.worker_pid(test.worker_of_rank(job, 0)), signal.SIGKILL)
        test.expect('ringmaster_recovery_episodes_total{cause="worker_exit", result="recovered"} == 1')

    def without_data(self, expressions):
        """Those of {name: expression} that have no value, or none but NaN."""
        return {name: expression for name, expression in expressions.items()
                if all(math.isnan(value) for _, value in self.query(expression))}

    def expect_data(self, expressions):
        left = expressions

        def all_have_data():
            nonlocal left
            left = self.without_data(left)
            return not left
        try:
            harness.wait_until(all_have_data, 'data', harness.SECONDS, pause=0.2)
        except TimeoutError:
            self.fail(f'no data: {json.dumps(left, indent=1)}')

    def test_every_panel_shows_something(self):
        expressions = panel_expressions()
        self.assertGreater(len(expressions), 50)
        self.expect_data(expressions)

    def test_every_alert_reads_something(self):
        selectors = alert_selectors()
        self.assertGreater(len(selectors), 25)
        self.expect_data(selectors)

    def test_a_misspelt_metric_is_named(self):
        wrong = {'misspelt': 'sum(ringmaster_wrokers)', 'no such label': 'ringmaster_workers{stat="idle"}',
                 'never a number': '0 * ringmaster_workers / 0'}
        self.assertEqual(self.without_data({**wrong, 'right': 'sum(ringmaster_workers)'}), wrong)


if __name__ == '__main__':
    harness.main()
