"""What our programs say that they expose, and what PromQL expressions ask for."""

import os
import re
import subprocess

# What every scrape adds.
SCRAPE_LABELS = {'job', 'instance'}


def exposed_series(folder):
    """{name: labels} of all series that the programs in `folder` can expose, and `up`."""
    series = {'up': SCRAPE_LABELS}
    for program in ('ringmaster-coordinator', 'ringmaster-worker'):
        table = subprocess.run([os.path.join(folder, program), '--print-metrics'], check=True, capture_output=True,
                               text=True, timeout=60).stdout
        for name, kind, labels in re.findall(r'^\| `(\w+)` \| (\w+) \| [^|]* \| ([^|]*) \|', table, re.M):
            labels = set(re.findall(r'\w+', labels)) | SCRAPE_LABELS
            parts = {'_bucket': {'le'}, '_sum': set(), '_count': set()} if kind == 'histogram' else {'': set()}
            series |= {name + part: labels | more for part, more in parts.items()}
    return series


def unknown(expression, series):
    """Names and labels in the selectors of the expression that are not among `series`."""
    found = set()
    for name, matchers in re.findall(r'\b(ringmaster_\w+|up)\b(?:{([^}]*)})?', expression):
        if name not in series:
            found.add(name)
            continue
        found |= {f'{name}{{{label}}}' for label in re.findall(r'(\w+) *[=!]', re.sub(r'"[^"]*"', '', matchers))
                  if label not in series[name]}
    return found
