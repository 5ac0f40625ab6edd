"""What ``docs/metrics.md`` says, and what a service's /metrics told, to be held against each other."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENT = REPOSITORY / "docs/metrics.md"

#: Of the client library, in every process.
FOREIGN = ("python_", "process_")


@dataclass(frozen=True)
class Documented:
    """One row of the page. ``told_by``: services; what stands in brackets behind one says when."""

    kind: str
    labels: frozenset[str]
    told_by: frozenset[str]


def documented() -> dict[str, Documented]:
    """The page's metrics by name."""
    found = {}
    for name, kind, labels, told_by in re.findall(
        r"^\| `(\w+)` \| (\w+) \| ([^|]*) \| ([^|]+) \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE
    ):
        services = {re.sub(r" *\(.*", "", service) for service in re.split(r", (?![^(]*\))", told_by)}
        found[name] = Documented(kind, frozenset(re.findall(r"`(\w+)`", labels)), frozenset(services))
    return found


def told(text: str) -> dict[str, frozenset[str]]:
    """The metrics with samples in an answer of /metrics, and the labels that they have there."""
    found: dict[str, frozenset[str]] = {}
    for family in text_string_to_metric_families(text):
        name = family.name + ("_total" if family.type == "counter" else "")
        if family.samples and not name.startswith(FOREIGN):
            found[name] = frozenset(label for sample in family.samples for label in sample.labels) - {"le"}
    return found


def problems(service: str, text: str) -> list[str]:
    """How an answer of that service differs from the page."""
    page = documented()
    found = []
    for name, labels in told(text).items():
        row = page.get(name)
        if row is None:
            found.append(f"{service} tells {name}, which is not documented")
        elif labels != row.labels:
            found.append(
                f"{service} tells {name} with the labels {sorted(labels)}, documented are {sorted(row.labels)}"
            )
        elif labels and service not in row.told_by:  # one without labels stands in every process, as 0
            found.append(f"{service} tells {name}, documented is {sorted(row.told_by)}")
    return found
