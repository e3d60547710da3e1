#!/usr/bin/env python3
"""What ringctl says of jobs that have ended, when their workers are gone; ringctl_test has its flags and exit codes."""

import json
import os
import pty
import re
import shlex
import shutil
import struct
import subprocess
import uuid

import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from safetensors import safe_open
from safetensors.numpy import save_file

import harness
import torchscale_model

STEPS = 40


def crc32c(data):
    """Bit by bit, as the standard says it: nothing in common with the code under test."""
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return crc ^ 0xffffffff


def tensorboard_events(data):
    """The events of a TensorBoard file, parsed with the fields that its published proto files give them."""
    file = descriptor_pb2.FileDescriptorProto(name='event.proto', package='tensorboard_test', syntax='proto3')
    kinds = descriptor_pb2.FieldDescriptorProto
    for message, fields in {
            'Value': [('tag', 1, kinds.TYPE_STRING, ''), ('simple_value', 2, kinds.TYPE_FLOAT, '')],
            'Summary': [('value', 1, kinds.TYPE_MESSAGE, '.tensorboard_test.Value')],
            'Event': [('wall_time', 1, kinds.TYPE_DOUBLE, ''), ('step', 2, kinds.TYPE_INT64, ''),
                      ('file_version', 3, kinds.TYPE_STRING, ''),
                      ('summary', 5, kinds.TYPE_MESSAGE, '.tensorboard_test.Summary')]}.items():
        described = file.message_type.add(name=message)
        for name, number, kind, type_name in fields:
            described.field.add(name=name, number=number, type=kind, type_name=type_name or None,
                                label=kinds.LABEL_REPEATED if name == 'value' else kinds.LABEL_OPTIONAL)
    event = message_factory.GetMessages([file], pool=descriptor_pool.DescriptorPool())['tensorboard_test.Event']
    masked = lambda part: ((crc := crc32c(part)) >> 15 | crc << 17) + 0xa282ead8 & 0xffffffff
    found, offset = [], 0
    while offset < len(data):
        (length, length_crc), body = struct.unpack_from('<QI', data, offset), offset + 12
        (body_crc,) = struct.unpack_from('<I', data, body + length)
        if length_crc != masked(data[offset:offset + 8]) or body_crc != masked(data[body:body + length]):
            raise ValueError(f'the record at {offset} is damaged')
        found.append(event.FromString(data[body:body + length]))
        offset = body + length + 4
    return found


class EndedJobTest(harness.ClusterTest):
    workers = 2

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        test = cls('test_list_and_get')
        test.submit('main', STEPS)
        test.wait_for_end('main')
        # Moved, so that only its manifest.json can tell what it is.
        newest = json.loads(cls.cluster.ringctl('checkpoints', 'list', 'main', '-o', 'json'))[0]
        cls.moved = os.path.join(cls.cluster.shared, 'moved')
        shutil.copytree(newest['directory'], cls.moved)
        test.submit('weights', 3, [f'init_from={cls.moved}', f'data.paths=["{cls.folder}/*.txt"]'])
        test.wait_for_end('weights')
        cls.torchscale = torchscale_model.random_weights()
        save_file(cls.torchscale, f'{cls.folder}/torchscale.safetensors')
        cls.convert = ('checkpoints', 'convert-torchscale', f'{cls.folder}/torchscale.safetensors', '--heads=4',
                       '--segment-lengths=64,512', '--dilation-rates=1,4', f'--directory={cls.cluster.shared}/converted')
        cls.converted = cls.cluster.ringctl(*cls.convert)
        # Of so many bytes there is one sequence.
        with open(cls.text, 'rb') as text, open(f'{cls.folder}/one', 'wb') as one:
            cls.sequence = text.read(513)
            one.write(cls.sequence)
        with open(f'{cls.folder}/converted.yaml', 'w', encoding='utf-8') as file:
            file.write(f'{cls.converted}name: converted\nsteps: 2\nprecision: FP64\nparallel: {{ring_size: 2}}\n'
                       f'data: {{paths: ["{one.name}"], sequence_length: 512, validation_fraction: 0}}\n')
        cls.cluster.ringctl('submit', file.name)
        test.wait_for_end('converted')
        for name in list(cls.cluster.workers):
            cls.cluster.workers.pop(name).stop()

    def run_ringctl(self, *words, **options):
        return subprocess.run([f'{self.cluster.bin}/ringctl', *words], capture_output=True, check=False,
                              timeout=harness.SECONDS, **{'text': True, **options},
                              env={**os.environ, 'RINGMASTER_ADDRESS': self.cluster.address})

    def expect(self, code, *words, says='(?s).*'):
        done = self.run_ringctl(*words)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        self.assertRegex(done.stdout if code == 0 else done.stderr, says)
        return done.stdout

    def forget(self, name):
        self.expect(0, 'cancel', name)
        self.wait_for_end(name, 'CANCELLED')
        self.expect(0, 'delete', name)

    def test_list_and_get(self):
        name = 'projects/default/trainingJobs/main'
        for words in (('list',), ('list', '--state', 'succeeded,failed'), ('list', '--all-projects')):
            self.expect(0, *words, says=r'(?m)^NAME +STATE[^$]*^main +succeeded +40/40 ')
            self.assertIn(name, self.expect(0, *words, '-o', 'name').splitlines())
            self.assertIn(name, [job['name'] for job in json.loads(self.expect(0, *words, '-o', 'json'))])
            self.assertIn(name, [job['name'] for job in yaml.safe_load_all(self.expect(0, *words, '-o', 'yaml'))])
        self.assertEqual(self.expect(0, 'list', '--state', 'failed', '-o', 'name'), '')
        self.assertEqual(self.expect(0, 'get', 'main', '-o', 'name').strip(), name)
        as_json = json.loads(self.expect(0, 'get', name, '-o', 'json'))
        as_yaml = yaml.safe_load(self.expect(0, '-o', 'yaml', 'get', 'main'))
        # Refuses a number for text.
        as_job = lambda values: json_format.ParseDict(values, self.api.job.TrainingJob())
        self.assertEqual(as_job(as_yaml), as_job(as_json))
        self.assertEqual(as_yaml['spec']['steps'], STEPS)

    def test_describe(self):
        self.expect(0, 'describe', 'main', says=r'(?s)State: +succeeded.*Step: +40 of 40.*Validation:.*planned:')

    def test_workers(self):
        self.expect(0, 'workers', says='^NAME +STATE +DEVICE')
        for output in ('json', 'yaml', 'name'):
            self.expect(0, 'workers', '-o', output)

    def test_logs_of_a_job_whose_workers_are_gone(self):
        everything = self.expect(0, 'logs', 'main', says=r'(?m)^rank 0 worker-\d \| .* formed: rank 0 of 2 over ucx')
        self.assertIn('\nrank 1 ', '\n' + everything)
        self.assertEqual(self.expect(0, 'logs', '-f', 'main'), everything)  # it has ended: nothing to wait for
        one = self.expect(0, 'logs', 'main', '--rank', '1', '--tail', '2').splitlines()
        self.assertEqual([line.split()[1] for line in one], ['1', '1'])

    def test_metrics_in_every_format(self):
        records = [json.loads(line) for line in self.expect(0, 'metrics', 'main', '-o', 'jsonl').splitlines()]
        self.assertEqual([record['step'] for record in records], list(range(1, STEPS + 1)))
        header, *rows = [line.split(',') for line in self.expect(0, 'metrics', 'main', '-f').splitlines()]
        for key in ('loss', 'grad_norm', 'learning_rate'):
            self.assertEqual([float(row[header.index(key)]) for row in rows], [record[key] for record in records])
        self.assertEqual(len(self.expect(0, 'metrics', 'main', '--start-step', '31').splitlines()), 11)

    def test_metrics_for_tensorboard(self):
        path = os.path.join(self.folder, 'events.out.tfevents.main')
        self.expect(0, 'metrics', 'main', '-o', 'tensorboard', '--file', path)
        with open(path, 'rb') as file:
            data = file.read()
        self.assertEqual(self.run_ringctl('metrics', 'main', '-o', 'tensorboard', text=False).stdout[-200:], data[-200:])
        version, *events = tensorboard_events(data)
        self.assertEqual(version.file_version, 'brain.Event:2')
        records = [json.loads(line) for line in self.expect(0, 'metrics', 'main', '-o', 'jsonl').splitlines()]
        as_float = lambda value: struct.unpack('<f', struct.pack('<f', value))[0]
        for tag, key in (('train/loss', 'loss'), ('train/learning_rate', 'learning_rate'),
                         ('validation/loss', 'validation_loss')):
            seen = [(event.step, value.simple_value) for event in events for value in event.summary.value
                    if value.tag == tag]
            self.assertEqual(seen, [(record['step'], as_float(record[key])) for record in records if key in record])

    def test_an_imported_checkpoint(self):
        printed = json.loads(self.expect(0, 'checkpoints', 'import', self.moved, '-o', 'json'))
        self.assertEqual((printed['directory'], int(printed['step'])), (self.moved, STEPS))
        self.assertIn('/imported/', printed['name'])
        self.assertEqual(json.loads(self.expect(0, 'checkpoints', 'get', printed['name'], '-o', 'json')), printed)
        self.expect(0, 'checkpoints', 'list', 'imported', says=rf'(?m)^NAME[^$]*{self.moved}')
        self.expect(5, 'checkpoints', 'import', self.moved)
        # One sample, whichever way the checkpoint is named.
        words = ('--prompt', 'ring ', '--tokens', '20', '--seed', '7')
        samples = {self.expect(0, 'generate', *source, *words) for source in (
            ('main',), ('--checkpoint', printed['name']), ('--checkpoint', self.moved))}
        self.assertEqual(len(samples), 1, samples)
        with open('/dev/full', 'w', encoding='ascii') as full:
            lost = subprocess.run([f'{self.cluster.bin}/ringctl', f'--address={self.cluster.address}', 'generate',
                                   f'--checkpoint={self.moved}', *words], check=False, stdout=full,
                                  stderr=subprocess.PIPE, text=True, timeout=harness.SECONDS)
        self.assertEqual((lost.returncode, lost.stderr), (6, 'ringmaster-worker: standard output cannot be written\n'))

    def test_init_from_takes_the_weights_alone(self):
        main, weights = self.losses('main'), self.losses('weights')
        self.assertEqual(sorted(weights), [1, 2, 3])
        self.assertLess(float(weights[1][0]), float(main[1][0]) - 1)
        # Another optimizer state and another learning rate: no continuation.
        self.assertNotEqual(weights[1], main[STEPS])

    def test_a_job_begins_with_torchscales_weights(self):
        expected = torchscale_model.loss(self.torchscale, self.sequence)
        self.assertAlmostEqual(float(self.losses('converted')[1][0]), expected, delta=1e-6)
        start = yaml.safe_load(self.converted)['init_from']
        self.assertEqual(start, f'{self.cluster.shared}/converted/checkpoints/step-00000000')
        # So many that the likeliest bytes are no control codes, and that the second likeliest is never near.
        prompt = self.sequence[:135]
        continued = torchscale_model.continued(self.torchscale, prompt, 6).decode('ascii', 'backslashreplace')
        self.assertEqual(self.expect(0, 'generate', '--checkpoint', start, '--temperature', '0', '--tokens', '6',
                                     '--prompt', prompt.decode('ascii')), f'{continued}\n')
        self.expect(0, 'checkpoints', 'import', start, says='step-0-')
        self.expect(5, *self.convert, says='holds a checkpoint already')
        self.expect(5, *self.convert[:-1], f'--directory={self.text}/no', says='Not a directory')
        self.expect(2, *self.convert, '--heads=x', says='--heads')
        self.expect(2, *self.convert[:3], '--heads=5', *self.convert[4:-1], f'--directory={self.folder}/no',
                    says='model.dim is 32; it must be a multiple of model.heads, 5')
        self.expect(2, 'submit', f'{self.folder}/converted.yaml', '--set', 'name=more', '--set', f'resume_from={start}',
                    says='resume_from.*use init_from')
        self.expect(2, 'submit', self.job_file(), '--set', 'name=more', '--set', f'init_from={start}',
                    says=r"model\.positions.*differs from the checkpoint's")

    def test_what_a_resumed_job_changes_is_recorded(self):
        self.submit('changed', 50, [f'resume_from={self.moved}', 'optimizer.lr=0.001', 'dropout=0.1'])
        described = self.expect(0, 'describe', 'changed', says=r'Override: +optimizer\.lr: 0\.003 -> 0\.001')
        self.assertRegex(described, r'Override: +dropout: 0 -> 0\.1')
        self.forget('changed')

    def test_a_repeated_submission_is_one_job(self):
        words = ('submit', self.job_file(), '--set', 'name=again', '--request-id', str(uuid.uuid4()), '-o', 'json')
        first, second = (json.loads(self.expect(0, *words)) for _ in range(2))
        self.assertEqual(first['uid'], second['uid'])
        self.expect(5, 'submit', self.job_file(), '--set', 'name=again', says='again')
        self.expect(5, 'delete', 'again', says='cancel')
        self.forget('again')

    def test_estimate(self):
        estimate = json.loads(self.expect(0, 'estimate', self.job_file(), '--set', 'parallel.ring_size=4', '-o', 'json'))
        self.assertEqual(sum(map(int, estimate['shard_tokens'])), 512)
        self.assertEqual(len(estimate['shard_tokens']), 4)
        self.expect(0, 'estimate', self.job_file(), says=r'(?s)^QUANTITY.*parameters.*tokens a rank')
        # The formula counts what is trained.
        with open(os.path.join(self.moved, 'manifest.json'), encoding='utf-8') as file:
            shards = json.load(file)['shards']
        trained = 0
        for shard in shards:
            with safe_open(os.path.join(self.moved, shard['file']), framework='numpy') as tensors:
                trained += sum(tensors.get_tensor(name).size for name in tensors.keys()
                               if not name.startswith('optimizer.'))
        self.assertEqual(int(estimate['parameters']), trained)

    def test_every_preset_is_known_and_of_its_size(self):
        presets = re.findall(r'"([\w.-]+)"', self.expect(0, 'explain', 'model.preset'))
        self.assertEqual(len(presets), 6)
        text = 'model: {{preset: PRESET}}\ndata: {{paths: ["{text}"], sequence_length: 32768}}\nsteps: {steps}\n'
        for preset in presets:
            estimate = json.loads(self.expect(
                0, 'estimate', self.job_file(text=text.replace('PRESET', preset)), '-o', 'json'))
            model = estimate['spec']['model']
            # Attention has 4 dim^2 weights a layer, the feed-forward block 8 dim^2.
            matrices = 12 * model['layers'] * model['dim'] ** 2
            self.assertAlmostEqual(int(estimate['parameters']) / matrices, 1, delta=0.1)

    def test_explain_and_version(self):
        self.expect(0, 'explain', says='(?m)^  optimizer ')
        self.expect(0, 'explain', 'init_from', says='Path of a checkpoint')
        self.expect(2, 'explain', 'optimizer.lrr', says='did you mean "lr"')
        self.assertEqual(self.expect(0, 'version'), self.expect(0, '--version'))
        self.expect(0, 'version', says=r'^ringctl \d+\.\d+\.\d+ \(\w+\) grpc/\d+\.\d+\.\d+$')
        self.expect(2, 'completion', 'fish', says='there is bash')

    def completed(self, line, address=None, before=''):
        """What <TAB> offers behind `line`; bash has split it at these characters."""
        words = [word for word in re.split('([:=])|[ ]+', line) if word]
        words += [''] if line.endswith((' ', ':', '=')) else []
        script = (f'set -u; source <(ringctl completion bash); {before} COMP_LINE={shlex.quote(line)}; COMP_POINT={len(line)}; '
                  f'COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; _ringctl; echo ${{COMPREPLY[@]}}')
        return subprocess.run(['bash', '-c', script], capture_output=True, text=True, check=True, env={
            **os.environ, 'PATH': f'{self.cluster.bin}:{os.environ["PATH"]}',
            'RINGMASTER_ADDRESS': address or self.cluster.address}).stdout.split()

    def test_completion(self):
        self.assertEqual(self.completed('ringctl sub'), ['submit'])
        self.assertEqual(self.completed('ringctl submit --dry'), ['--dry-run'])
        self.assertEqual(self.completed('ringctl submit --tls-k'), ['--tls-key'])
        self.assertEqual(self.completed('ringctl checkpoints im'), ['import'])
        for command in 'describe', 'logs -f', 'checkpoints list', '-o yaml get', 'logs --tail 3':
            self.assertEqual(self.completed(f'ringctl {command} mai'), ['main'])
            self.assertIn('weights', self.completed(f'ringctl {command} '))
        for command in 'cordon', 'drain --reason fan', 'uncordon':
            self.assertIn('worker-0', self.completed(f'ringctl {command} worker-'))
        # One argument each, and none for what takes no job.
        for line in 'ringctl describe main ', 'ringctl list ', 'ringctl submit --set ':
            self.assertNotIn('main', self.completed(line))

    def test_completion_of_a_checkpoint_is_its_name(self):
        job = 'projects/default/trainingJobs/main'
        self.assertIn(f'{job}/checkpoints/', self.completed('ringctl checkpoints get '))
        names = self.completed(f'ringctl checkpoints get {job}/checkpoints/')
        self.assertIn(f'{job}/checkpoints/step-{STEPS}', names)
        for name in names:
            self.expect(0, 'checkpoints', 'get', name)

    def test_completion_asks_the_coordinator_that_is_named(self):
        for flag in f'--address {self.cluster.address}', f'--address={self.cluster.address}':
            for line in f'ringctl {flag} describe mai', f'ringctl describe {flag} mai':
                self.assertEqual(self.completed(line, address='127.0.0.1:1'), ['main'], line)
        self.assertEqual(self.completed('ringctl --project other get '), [])

    def test_completion_reads_words_as_the_shell_does(self):
        path = f'{self.folder}/asked'
        for words, flags in (
                ('--tls-ca ~/ca.pem', [f'--tls-ca={os.path.expanduser("~/ca.pem")}']),
                ('--tls-ca "/a b/ca" --tls-key=\'/a b/key\' -o "ta ble"', ['--tls-ca=/a b/ca', '--tls-key=/a b/key']),
                ('--project "~/x" --address $A --tls-cert="$B"', ['--project=~/x'])):
            self.completed(f'ringctl {words} describe ', before=f'ringctl() {{ printf "%s\\n" "$@" > {path}; }};')
            with open(path, encoding='ascii') as asked:
                self.assertEqual(asked.read().splitlines(), [*flags, 'list', '-o', 'name'])
        # Files, which bash offers when this offers nothing.
        for line in '--address ', '--tls-ca=', 'metrics --file=mai', 'metrics --file ', 'describe --tls-ca "/a b/mai':
            self.assertEqual(self.completed(f'ringctl {line}'), [], line)

    def test_errors_say_what_to_do(self):
        job = self.job_file()
        for code, words, says in [
                (2, ('get', 'main', '-o', 'xml'), 'table, json, yaml, name'),
                (2, ('metrics', 'main', '-o', 'xml'), 'csv, jsonl, tensorboard'),
                (2, ('submit', job, '--set', 'optimizer.lr=-1'), 'optimizer.lr.*-1.*above 0'),
                (2, ('list', '--state', 'runing'), 'running'),
                (2, ('generate',), 'give a job'),
                (2, ('logs', 'main', '--tail', '0'), '--tail.*not in range'),
                (5, ('delete', 'waits'), 'waits'),
        ]:
            with self.subTest(words=words):
                if 'waits' in words:
                    self.submit('waits')
                self.expect(code, *words, says=f'(?s){says}')
        self.expect(0, 'cancel', 'waits')
        # The command worked; the job it watched did not succeed.
        self.expect(1, 'watch', 'waits', says='cancelled')
        self.expect(0, 'delete', 'waits')

    def test_dry_run_stores_nothing(self):
        spec = json.loads(self.expect(0, 'submit', self.job_file(), '--set', 'name=dry-run', '--dry-run', '-o', 'json'))
        self.assertEqual(spec['spec']['optimizer']['beta2'], 0.98)
        self.expect(3, 'get', 'dry-run')

    def test_a_terminal_gets_one_line_that_is_redrawn(self):
        master, terminal = pty.openpty()
        with os.fdopen(master, 'rb', buffering=0) as screen:
            done = subprocess.run([f'{self.cluster.bin}/ringctl', f'--address={self.cluster.address}', 'watch', 'main'],
                                  stdout=terminal, check=True, timeout=harness.SECONDS)
            os.close(terminal)
            self.assertEqual(done.returncode, 0)
            self.assertRegex(screen.read(4096), rb'\r\[#{24}\] succeeded step 40/40 .*\x1b\[K\r\n')


if __name__ == '__main__':
    harness.main()
