#!/usr/bin/env python3
"""Checks the rendered Kubernetes manifests as far as that goes without a cluster: kubernetes_test.py CHECKOUT BIN"""

import os
import re
import shutil
import subprocess
import sys
import unittest

import yaml

import manifests

CHECKOUT, BIN = sys.argv[1:3]
BASE = os.path.join(CHECKOUT, 'deploy', 'kubernetes', 'base')


class KubernetesTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.resources = manifests.render(BASE)
        cls.templates = {resource['metadata']['name']: resource['spec']['template'] for resource in cls.resources
                         if manifests.pod_templates(resource)}

    def of_kind(self, *kinds):
        return [resource for resource in self.resources if resource['kind'] in kinds]

    def names(self, kind):
        return {resource['metadata']['name'] for resource in self.of_kind(kind)}

    def containers(self):
        return [container for template in self.templates.values() for container in template['spec']['containers']]

    def selected(self, labels):
        return [name for name, template in self.templates.items()
                if labels.items() <= template['metadata']['labels'].items()]

    def test_kubectl_renders_the_same(self):
        if not shutil.which('kubectl'):
            self.skipTest('kubectl is not installed')
        rendered = subprocess.run(['kubectl', 'kustomize', BASE], check=True, capture_output=True, text=True).stdout
        key = lambda resource: (resource['kind'], resource['metadata']['name'])
        self.assertEqual({key(resource): resource for resource in yaml.safe_load_all(rendered)},
                         {key(resource): resource for resource in self.resources})

    def test_what_is_named_exists(self):
        self.assertEqual(len(self.templates), 2)
        for name, template in self.templates.items():
            self.assertIn(template['spec']['serviceAccountName'], self.names('ServiceAccount'), name)
            for volume in template['spec']['volumes']:
                if claim := volume.get('persistentVolumeClaim'):
                    self.assertIn(claim['claimName'], self.names('PersistentVolumeClaim'))
        for stateful_set in self.of_kind('StatefulSet'):
            spec = stateful_set['spec']
            self.assertIn(spec['serviceName'], self.names('Service'))
            self.assertLessEqual(spec['selector']['matchLabels'].items(), spec['template']['metadata']['labels'].items())
            volumes = {volume['name'] for volume in spec['template']['spec']['volumes']}
            volumes |= {claim['metadata']['name'] for claim in spec.get('volumeClaimTemplates', [])}
            for container in spec['template']['spec']['containers']:
                self.assertLessEqual({mount['name'] for mount in container['volumeMounts']}, volumes)

    def port_names(self, pod):
        return {port['name'] for container in self.templates[pod]['spec']['containers'] for port in container['ports']}

    def peers(self, rules, side):
        """(pod, port names) of each rule and pod that it selects. A rule without ports is for all: no names."""
        for rule in rules:
            names = {port['port'] for port in rule.get('ports', []) if isinstance(port['port'], str)}
            pods = []
            for peer in rule[side]:
                if 'podSelector' in peer:
                    found = self.selected(peer['podSelector']['matchLabels'])
                    self.assertTrue(found, peer)
                    pods += found
            if side == 'to' and names:
                self.assertTrue(pods, f'whose ports are {names}?')
            yield from ((pod, names) for pod in pods)

    def test_services_and_probes_meet_a_pod(self):
        for service in self.of_kind('Service'):
            (name,) = self.selected(service['spec']['selector'])
            for port in service['spec']['ports']:
                self.assertIn(port['targetPort'], self.port_names(name))
        for container in self.containers():
            ports = {port['name'] for port in container['ports']}
            for probe in ('startupProbe', 'livenessProbe', 'readinessProbe'):
                if probe in container:
                    self.assertIn(container[probe]['httpGet']['port'], ports)

    def test_who_has_a_certificate_is_asked_under_tls(self):
        for template in self.templates.values():
            (container,) = template['spec']['containers']
            tls = any(argument.startswith('--tls-cert=') for argument in container['args'])
            for probe in ('startupProbe', 'livenessProbe', 'readinessProbe'):
                if probe in container:
                    self.assertEqual(container[probe]['httpGet'].get('scheme', 'HTTP'), 'HTTPS' if tls else 'HTTP')
            self.assertEqual(template['metadata']['annotations'].get('prometheus.io/scheme', 'http'),
                             'https' if tls else 'http')

    def test_network_policies_meet_pods_and_their_ports(self):
        policies = {}
        for policy in self.of_kind('NetworkPolicy'):
            (name,) = self.selected(policy['spec']['podSelector']['matchLabels'])
            self.assertNotIn(name, policies)
            self.assertEqual(policy['spec']['policyTypes'], ['Ingress', 'Egress'])
            policies[name] = policy['spec']
        self.assertEqual(policies.keys(), self.templates.keys())
        let_in = {(source, name): names for name, policy in policies.items()
                  for source, names in self.peers(policy['ingress'], 'from')}
        let_out = {(name, target): names for name, policy in policies.items()
                   for target, names in self.peers(policy['egress'], 'to')}
        # Nobody may call who is not let in, and the other way round.
        self.assertEqual(let_out, let_in)
        for name, policy in policies.items():
            for rule in policy['ingress']:
                for port in rule.get('ports', []):
                    self.assertIn(port['port'], self.port_names(name))
        for (_, target), names in let_out.items():
            self.assertLessEqual(names, self.port_names(target))

    def test_listening_ports_are_the_declared_ones(self):
        for container in self.containers():
            listening = {int(port) for port in re.findall(r'--\S*listen=\S*:(\d+)', ' '.join(container['args']))}
            self.assertEqual(listening, {port['containerPort'] for port in container['ports']})

    def test_pods_are_hardened(self):
        for template in self.templates.values():
            spec = template['spec']
            self.assertIs(spec['automountServiceAccountToken'], False)
            context = spec['securityContext']
            self.assertIs(context['runAsNonRoot'], True)
            self.assertGreater(context['runAsUser'], 0)
            self.assertEqual(context['seccompProfile'], {'type': 'RuntimeDefault'})
            for container in spec['containers']:
                self.assertEqual(container['securityContext'], {
                    'allowPrivilegeEscalation': False, 'readOnlyRootFilesystem': True, 'capabilities': {'drop': ['ALL']}})
                self.assertEqual(container['resources']['limits'], container['resources']['requests'])
                self.assertRegex(container['image'], r':(?!latest$)[\w.-]+$')
            for volume in spec['volumes']:
                if 'emptyDir' in volume:
                    self.assertIn('sizeLimit', volume['emptyDir'])
        (namespace,) = self.of_kind('Namespace')
        self.assertEqual(namespace['metadata']['labels']['pod-security.kubernetes.io/enforce'], 'restricted')

    def test_the_shared_volume_is_at_one_path(self):
        (claim,) = self.of_kind('PersistentVolumeClaim')
        self.assertEqual(claim['spec']['accessModes'], ['ReadWriteMany'])
        paths = {mount['mountPath'] for container in self.containers() for mount in container['volumeMounts']
                 if mount['name'] == 'shared'}
        self.assertEqual(len(paths), 1)
        for container in self.containers():
            self.assertIn(f'--shared-dir={paths.copy().pop()}', container['args'])

    def test_every_argument_is_a_flag_of_the_program(self):
        for container in self.containers():
            program = os.path.join(BIN, os.path.basename(container['command'][0]))
            told = subprocess.run([program, '--help'], capture_output=True, text=True, check=True, timeout=60).stdout
            flags = set(re.findall(r'^\s*--([\w-]+)', told, re.M))
            for argument in container['args']:
                self.assertIn(argument.removeprefix('--').split('=')[0], flags)


if __name__ == '__main__':
    unittest.main(argv=sys.argv[:1], verbosity=2)
