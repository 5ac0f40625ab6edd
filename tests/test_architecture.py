"""The rules of the layout: who may import whom."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "dangerous_driving"
MODULES = sorted(PACKAGE.rglob("*.py"))

#: Pure decisions: they may import contracts, errors, settings, plain data and each other.
PURE = (
    "contracts.py",
    "errors.py",
    "camera/sharing.py",
    "tasks/derivation.py",
    "assessment/windows.py",
    "assessment/answer.py",
    "assessment/risk.py",
    "assessment/tolerant_json.py",
    "assessment/shadow.py",
    "assessment/key_pool/core.py",
    "alerts/inputs.py",
    "alerts/lifecycle.py",
    "alerts/place.py",
    "alerts/quiet.py",
    "alerts/tracking.py",
    "detection/grouping.py",
    "detection/priority.py",
    "detection/riders.py",
    "detection/regions.py",
    "objects/keys.py",
    "evaluation/answers.py",
    "evaluation/cases.py",
    "evaluation/metrics.py",
    "evaluation/comparison.py",
    "evaluation/gate.py",
    "evaluation/figures.py",
    "evaluation/drift.py",
    "evaluation/detection_scores.py",
    "evaluation/group_recall.py",
)
IO = {
    "sqlalchemy", "psycopg", "kafka", "confluent_kafka", "minio", "cv2", "onnxruntime", "openai", "httpx", "fastapi",
    "uvicorn", "requests", "socket", "subprocess", "threading", "asyncio", "dagster", "urllib", "http",
}  # fmt: skip


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def within(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def test_the_package_never_imports_its_dagster_definitions() -> None:
    for path in MODULES:
        if within(path).startswith("defs/") or within(path) == "definitions.py":
            continue
        assert not {name for name in imports(path) if name.startswith("dangerous_driving.def")} - {
            "dangerous_driving.demo"
        }, within(path)


def test_simulated_parts_are_imported_by_the_command_line_alone() -> None:
    allowed = ("simulation/", "cli.py", "services.py")  # services: what the command line runs
    for path in MODULES:
        if not within(path).startswith(allowed):
            assert not {name for name in imports(path) if name.startswith("dangerous_driving.simulation")}, within(path)


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_import_no_input_or_output(module: str) -> None:
    roots = {name.split(".")[0] for name in imports(PACKAGE / module)}
    assert not roots & IO, module


def test_the_key_pool_is_a_library_of_its_own() -> None:
    for path in MODULES:
        if within(path).startswith("assessment/key_pool/"):
            foreign = {
                name
                for name in imports(path)
                if name.startswith("dangerous_driving") and not name.startswith("dangerous_driving.assessment.key_pool")
            }
            assert foreign <= {"dangerous_driving.errors"}, within(path)


def test_modules_stay_readable() -> None:
    for path in MODULES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 500, within(path)


def test_nothing_is_called_after_what_it_is_not() -> None:
    vague = {"utils", "helpers", "common", "manager", "base", "misc"}
    assert not {within(path) for path in MODULES if path.stem in vague}
