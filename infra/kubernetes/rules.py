"""The rules of infra/prometheus as the object that the Prometheus Operator reads.

``python -m infra.kubernetes.rules`` writes components/monitoring/rules.yaml; a test holds the file against the rules.
"""

from __future__ import annotations

from pathlib import Path

import yaml

HERE = Path(__file__).parent
RULES = HERE.parent / "prometheus" / "rules"
OUTPUT = HERE / "components" / "monitoring" / "rules.yaml"


def prometheus_rule() -> str:
    """The whole file."""
    groups = [
        group
        for name in ("recording.yml", "alerts.yml")
        for group in yaml.safe_load((RULES / name).read_text(encoding="utf-8"))["groups"]
    ]
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "dangerous-driving", "namespace": "dangerous-driving"},
        "spec": {"groups": groups},
    }
    head = "# Written by `python -m infra.kubernetes.rules` from infra/prometheus/rules; change those.\n"
    return head + yaml.safe_dump(rule, sort_keys=False, width=120, allow_unicode=True)


if __name__ == "__main__":
    OUTPUT.write_text(prometheus_rule(), encoding="utf-8")
