"""What it saves, and what it costs, that groups of one frame share a call (`assessment.coalesce_groups`).

    python -m benchmarks.shared_calls            # about five minutes
    python -m benchmarks.shared_calls --quick    # about two

The realtime lane as `assess` runs it, on the simulated LLM at its default latencies (an answer to three groups takes three times as
long to write), with frames of three groups of random priority and two keys for ten calls a second in all: at ease (3 groups
a second) and short of quota (18 a second). Groups have a call of their own; share one where the first has waited 0.2 s
for a key; or always share. No model's judgement is measured: the simulated one answers each group as it does alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

from pydantic import SecretStr

from benchmarks.endpoint import secrets_of
from benchmarks.figures import Figure, tell
from benchmarks.key_pool import ROOT, database
from dangerous_driving.assessment.keys import Key
from dangerous_driving.simulation.llm import serving

GROUPS, KEYS, QPS = 3, 2, 5
LOADS = {"at ease": 3.0, "short of quota": 18.0}
WAYS = {"alone": (1, 0.0), "shared after 0.2 s": (GROUPS, 0.2), "always shared": (GROUPS, 0.0)}


def measure(rate: float, share: int, after: float, seconds: float) -> dict[str, Any]:
    keys = [Key(SecretStr(secret), 10, 300) for secret in secrets_of(10)]
    with database() as url, serving(keys=keys, seed=1) as address:
        command = [
            sys.executable, "-m", "benchmarks.realtime_lane", "--url", address, "--database", url,
            "--seconds", str(seconds), "--rate", str(rate), "--groups", str(GROUPS), "--keys", str(KEYS),
            "--qps", str(QPS), "--share", str(share), "--share-after", str(after),
        ]  # fmt: skip
        ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def figures(found: dict[tuple[str, str], dict[str, Any]]) -> list[Figure]:
    rows = []
    for load in LOADS:
        alone = found[load, "alone"]
        for way in WAYS:
            part = found[load, way]
            name = f"{load}, {way}"
            values: list[tuple[str, float | None, float | None, str]] = [
                ("calls per answered group", part["calls"] / part["answered"], alone["calls"] / alone["answered"], "calls"),
                ("groups answered in time", part["answered"] / part["tasks"], alone["answered"] / alone["tasks"], "share"),
                ("riskiest answered in time", part["riskiest_answered"] / part["riskiest"],
                 alone["riskiest_answered"] / alone["riskiest"], "share"),
            ]  # fmt: skip
            values += [
                (f"riskiest group, {stage} P{share}", part[f"riskiest_{stage}_p{share}"], alone[f"riskiest_{stage}_p{share}"], "s")
                for stage in ("provisional", "final")
                for share in (50, 95)
            ]  # fmt: skip
            for what, value, baseline, unit in values:
                ratio = value / baseline if value is not None and baseline else None
                rows.append(Figure(f"{name}: {what}", value, unit, baseline, ratio))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    seconds = 10.0 if given.quick else 30.0
    found = {}
    for load, rate in LOADS.items():
        for way, (share, after) in WAYS.items():
            found[load, way] = measure(rate, share, after, seconds)
            print(f"[{len(found)}/{len(LOADS) * len(WAYS)}] {load}, {way}", flush=True)
    tell("shared_calls_quick" if given.quick else "shared_calls", figures(found))


if __name__ == "__main__":
    main()
