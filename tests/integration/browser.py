"""A real browser without a window: Debian's Chromium, spoken to over a pipe by its DevTools protocol.

    with Browser(folder) as browser:
        browser.open('http://127.0.0.1:7078/')
        browser.value('document.title')
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time

CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome')


class Browser:
    """One tab. `complaints` are what a console would show as errors, failed requests among them."""

    def __init__(self, profile, dark=False, width=1400, height=900):
        reads, self._writer = os.pipe()
        self._reader, writes = os.pipe()
        words = [CHROMIUM, '--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run',
                 '--disable-background-networking', '--disable-component-update', '--ignore-certificate-errors',
                 '--hide-scrollbars', '--remote-debugging-pipe', f'--user-data-dir={profile}',
                 f'--window-size={width},{height}', 'about:blank']
        # It reads commands from 3 and writes answers to 4.
        self._process = subprocess.Popen(['bash', '-c', f'exec "$@" 3<&{reads} 4>&{writes}', 'bash', *words],
                                         pass_fds=(reads, writes), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(reads)
        os.close(writes)
        self._buffer, self._next_id, self._session = b'', 0, None
        self.complaints, self._loaded = [], False
        target = self._ask('Target.createTarget', url='about:blank')['targetId']
        self._session = self._ask('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for domain in 'Page', 'Runtime', 'Log', 'Network':
            self._ask(f'{domain}.enable')
        self._ask('Emulation.setEmulatedMedia',
                  features=[{'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait()
        os.close(self._writer)
        os.close(self._reader)

    def _receive(self, end):
        """The next message; TimeoutError at `end`."""
        while b'\0' not in self._buffer:
            ready, _, _ = select.select([self._reader], [], [], max(0, end - time.monotonic()))
            block = os.read(self._reader, 1 << 20) if ready else b''
            if not block:
                raise TimeoutError('the browser says nothing')
            self._buffer += block
        text, self._buffer = self._buffer.split(b'\0', 1)
        return json.loads(text)

    def _note(self, message):
        params = message.get('params', {})
        if message.get('method') == 'Page.loadEventFired':
            self._loaded = True
        elif message.get('method') == 'Runtime.exceptionThrown':
            self.complaints.append(params['exceptionDetails'].get('exception', {}).get('description', 'an exception'))
        elif message.get('method') == 'Log.entryAdded' and params['entry']['level'] in ('error', 'warning'):
            self.complaints.append(f'{params["entry"]["text"]} {params["entry"].get("url", "")}')
        elif message.get('method') == 'Runtime.consoleAPICalled' and params['type'] in ('error', 'warning'):
            self.complaints.append(str(params['args']))

    def _ask(self, method, seconds=60, **params):
        self._next_id += 1
        number = self._next_id
        message = {'id': number, 'method': method, 'params': params}
        if self._session:
            message['sessionId'] = self._session
        os.write(self._writer, json.dumps(message).encode() + b'\0')
        end = time.monotonic() + seconds
        while (answer := self._receive(end)).get('id') != number:
            self._note(answer)
        if 'error' in answer:
            raise RuntimeError(f'{method}: {answer["error"]}')
        return answer['result']

    def open(self, url, seconds=60):
        """Returns when the page is there with all that belongs to it."""
        self._loaded = False
        failed = self._ask('Page.navigate', url=url).get('errorText')
        if failed:
            raise RuntimeError(f'{url}: {failed}')
        end = time.monotonic() + seconds
        while not self._loaded:
            self._note(self._receive(end))

    def value(self, expression):
        """What a JavaScript expression is, in JSON's types; of a promise, what it is kept with."""
        done = self._ask('Runtime.evaluate', expression=expression, returnByValue=True, awaitPromise=True)
        if 'exceptionDetails' in done:
            raise RuntimeError(f'{expression}: {done["exceptionDetails"]}')
        return done['result'].get('value')

    def screenshot(self, path, whole=False):
        """A PNG of what is seen; or of the whole page, but no more than a reader would scroll through."""
        options = {}
        if whole:
            size = self._ask('Page.getLayoutMetrics')['cssContentSize']
            options = {'captureBeyondViewport': True, 'clip': {
                'x': 0, 'y': 0, 'width': size['width'], 'height': min(size['height'], 4000), 'scale': 1}}
        picture = self._ask('Page.captureScreenshot', format='png', **options)['data']
        with open(path, 'wb') as file:
            file.write(base64.b64decode(picture))
