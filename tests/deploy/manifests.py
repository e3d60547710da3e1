"""Renders a kustomize folder without kubectl: as much of kustomize as deploy/kubernetes uses, and an error for the rest."""

import os

import yaml

KNOWN = {'apiVersion', 'kind', 'namespace', 'resources', 'images'}
CLUSTER_WIDE = {'Namespace'}


def pod_templates(resource):
    return [resource['spec']['template']] if resource['kind'] in ('StatefulSet', 'Deployment', 'DaemonSet') else []


def render(folder):
    """The resources as a list of dictionaries."""
    with open(os.path.join(folder, 'kustomization.yaml'), encoding='utf-8') as file:
        kustomization = yaml.safe_load(file)
    unknown = set(kustomization) - KNOWN
    if unknown:
        raise ValueError(f'{folder}: {sorted(unknown)}: this renderer does not know it')
    resources = []
    for name in kustomization['resources']:
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            resources += render(path)
        else:
            with open(path, encoding='utf-8') as file:
                resources += [document for document in yaml.safe_load_all(file) if document]
    for resource in resources:
        metadata = resource['metadata']
        if resource['kind'] not in CLUSTER_WIDE and 'namespace' in kustomization:
            metadata['namespace'] = kustomization['namespace']
        for image in kustomization.get('images', []):
            for template in pod_templates(resource):
                for container in template['spec']['containers']:
                    if container['image'].split(':')[0] == image['name']:
                        container['image'] = f'{image["name"]}:{image["newTag"]}'
    return resources
