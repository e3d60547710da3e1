#!/usr/bin/env bash
# Runs the benchmarks and appends their results to benchmarks/history.jsonl, one JSON object a line, with commit and
# machine. Run it on an otherwise idle machine: benchmarks/record.sh [--print] (--print: do not append)
set -euo pipefail
cd "$(dirname "$0")/.."
deploy/local/setup >&2
deploy/local/build release >&2
append=(tee -a benchmarks/history.jsonl)
[ "${1:-}" = --print ] && append=(cat)
commit=$(git rev-parse --short=12 HEAD)$(git diff --quiet HEAD -- || echo -dirty)
{
  python3 benchmarks/service_benchmarks.py build/release
  benchmarks/attention/compare build/release
} | python3 -c '
import datetime, json, os, platform, sys
commit = sys.argv[1]
with open("/proc/cpuinfo", encoding="utf-8") as file:
    model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), platform.machine())
for line in sys.stdin:
    print(json.dumps({"time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                      "commit": commit, "cpu": model, "cores": os.cpu_count(), **json.loads(line)}), flush=True)
' "$commit" | "${append[@]}"
