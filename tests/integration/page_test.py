#!/usr/bin/env python3
"""The status page in a real browser: a live job, many jobs, tokens under TLS. With RINGMASTER_SCREENSHOTS=FOLDER, pictures
of all pages are left there."""

import os
import signal
import ssl
import tempfile
import unittest
import urllib.error
import urllib.request

import harness
from browser import CHROMIUM, Browser

NO_BROWSER = 'no browser is installed (package chromium)'


class PageTest(harness.ClusterTest):
    """Has a browser, which must find nothing to complain about."""

    def browse(self, **options):
        folder = tempfile.TemporaryDirectory(prefix='ringmaster-browser-', ignore_cleanup_errors=True)
        self.addCleanup(folder.cleanup)
        browser = Browser(folder.name, **options)
        self.addCleanup(browser.__exit__)
        self.addCleanup(lambda: self.assertEqual(browser.complaints, []))
        return browser

    def address(self, path='/'):
        return f'http://{self.cluster.http_address}{path}'


def picture(browser, name):
    folder = os.environ.get('RINGMASTER_SCREENSHOTS')
    if folder:
        os.makedirs(folder, exist_ok=True)
        browser.screenshot(f'{folder}/{name}.png', whole=True)


TEXT = 'document.querySelector("main").innerText'
# Of the first job that has some.
STEP = 'Number(document.querySelector("main progress").value)'


@unittest.skipUnless(CHROMIUM, NO_BROWSER)
class LiveTest(PageTest):
    workers = 3

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        test = cls('test_overview_stays_up_to_date_and_where_it_is')
        test.submit('short', steps=30)
        test.wait_for_end('short')
        test.submit('painted', steps=100000)
        job = test.wait_for_step('painted', 60)
        # A recovery is shown.
        os.kill(cls.cluster.worker_pid(test.worker_of_rank(job, 1)), signal.SIGKILL)
        test.wait_for('painted', lambda job: int(job['status'].get('episodes_count', 0)) == 1 and
                      job['status']['state'] == 'RUNNING', 'a recovery')
        cls.cluster.ringctl('queues', 'create', 'limited', '--max-workers', '1')
        test.submit('waiting', settings=['queue=limited'])

    def test_overview_stays_up_to_date_and_where_it_is(self):
        browser = self.browse(height=400)
        browser.open(self.address())
        picture(browser, 'overview')
        text = browser.value(TEXT)
        for word in 'default/painted', 'running', 'default/waiting', 'default/short', 'succeeded', 'worker-0', 'limited':
            self.assertIn(word, text)
        browser.value('window.scrollTo(0, 120)')
        browser.value('window.here = true')
        step = browser.value(STEP)
        harness.wait_until(lambda: browser.value(STEP) > step, 'the page is refreshed', pause=0.2)
        self.assertEqual(browser.value('[window.scrollY, window.here]'), [120, True])
        dark = self.browse(dark=True)
        dark.open(self.address())
        picture(dark, 'overview-dark')
        colours = [each.value('getComputedStyle(document.body).backgroundColor') for each in (browser, dark)]
        self.assertNotEqual(*colours)

    def test_job_has_its_curve_and_its_recovery(self):
        browser = self.browse()
        browser.open(self.address())
        browser.value('[...document.querySelectorAll("a")].find(a => a.innerText == "default/painted").click()')
        harness.wait_until(lambda: browser.value('location.pathname') == '/jobs/default/painted', 'the link is followed')
        harness.wait_until(lambda: browser.value('document.querySelector("svg polyline.loss")?.points.length > 40'),
                           'the curve')
        text = browser.value(TEXT)
        for word in 'worker exit', 'generation 2', 'checkpoints', '"sequence_length": "512"':
            self.assertIn(word, text)
        # The curve is in sight, not a spot.
        width, height = browser.value('(r => [r.width, r.height])(document.querySelector("polyline.loss")'
                                      '.getBoundingClientRect())')
        self.assertGreater(width, 400)
        self.assertGreater(height, 50)
        picture(browser, 'job')
        dark = self.browse(dark=True, width=700)
        dark.open(self.address('/jobs/default/painted'))
        picture(dark, 'job-dark-narrow')

    def test_page_says_when_it_is_out_of_date(self):
        browser = self.browse()
        browser.open(self.address())
        browser.value('window.fetch = async () => { throw new Error("nobody answers"); }')
        harness.wait_until(lambda: browser.value('document.body.className') == 'stale', 'it is told', pause=0.2)
        self.assertIn('nobody answers', browser.value('document.querySelector("footer").innerText'))
        picture(browser, 'stale')


# Shown wherever a job is.
EVIL = '/tmp/<img src=x onerror="document.title=1">'


@unittest.skipUnless(CHROMIUM, NO_BROWSER)
class ManyJobsTest(PageTest):
    workers = 0
    jobs = 1000

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        pb, job = cls.api.pb, cls.api.job
        spec = job.TrainingJobSpec(model={'preset': 'tiny'}, data={'paths': [cls.text], 'sequence_length': 2048}, steps=10)
        for index in range(cls.jobs):
            cls.api.jobs.CreateTrainingJob(pb.CreateTrainingJobRequest(
                training_job_id=f'job-{index:05}', training_job=job.TrainingJob(spec=spec)))
        spec.directory = EVIL
        cls.api.jobs.CreateTrainingJob(pb.CreateTrainingJobRequest(
            training_job_id='evil', training_job=job.TrainingJob(spec=spec)))

    def test_all_are_found_page_by_page(self):
        browser = self.browse()
        browser.open(self.address())
        text = browser.value(TEXT)
        self.assertIn(f'waiting {self.jobs + 1:,}', text)
        self.assertIn('the newest 50 of them', text)
        picture(browser, 'many')
        browser.open(self.address('/jobs?group=waiting'))
        picture(browser, 'many-waiting')
        found = []
        while True:
            found += browser.value('[...document.querySelectorAll("tbody tr")].map(row => row.cells[0].innerText)')
            following = browser.value('[...document.querySelectorAll("a")].find(a => a.innerText == "more")?.href')
            if not following:
                break
            browser.open(following)
        self.assertEqual(found, ['default/evil', *(f'default/job-{index:05}' for index in reversed(range(self.jobs)))])

    def test_text_of_users_is_text(self):
        browser = self.browse()
        browser.open(self.address('/jobs/default/evil'))
        self.assertIn(EVIL, browser.value(TEXT))
        self.assertEqual(browser.value('[document.title, document.querySelectorAll("img").length]'), ['default/evil', 0])


@unittest.skipUnless(CHROMIUM, NO_BROWSER)
class SecuredTest(PageTest):
    """Under TLS and with tokens, as beyond loopback. (No ClusterTest's cluster: its client shows no token.)"""

    @classmethod
    def setUpClass(cls):  # pylint: disable=arguments-differ
        folder = tempfile.TemporaryDirectory(prefix='ringmaster-test-')
        cls.addClassCleanup(folder.cleanup)
        cls.folder = folder.name
        harness.make_certificate(cls.folder)
        cls.cluster = harness.Cluster(harness.binaries(), cls.folder, coordinator_args=(
            '--require-tokens', f'--tls-cert={cls.folder}/tls.crt', f'--tls-key={cls.folder}/tls.key'))
        cls.addClassCleanup(cls.cluster.stop)

    def test_token_is_the_password(self):
        with open(f'{self.folder}/data/admin-token', encoding='ascii') as file:
            token = file.read().split()[0]
        browser = self.browse()
        browser.open(f'https://me:{token}@{self.cluster.http_address}/')
        self.assertIn('queues', browser.value(TEXT))
        # The style and the refresh came by the same token.
        self.assertEqual(browser.value('getComputedStyle(document.querySelector("header")).display'), 'flex')
        before = browser.value('document.querySelector("header").innerText')
        harness.wait_until(lambda: browser.value('document.querySelector("header").innerText') != before,
                           'the page is refreshed', pause=0.2)
        self.assertEqual(browser.value('document.body.className'), '')

    def test_without_one_nothing_is_shown(self):
        with self.assertRaises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f'https://{self.cluster.http_address}/', timeout=harness.SECONDS,
                                   context=ssl.create_default_context(cafile=f'{self.folder}/tls.crt'))
        self.assertEqual(refused.exception.code, 401)


if __name__ == '__main__':
    harness.main()
