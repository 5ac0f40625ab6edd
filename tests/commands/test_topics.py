"""`topics …` as a person uses it, on the three-broker cluster."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from dangerous_driving.cli import app
from dangerous_driving.contracts import DetectionResult
from dangerous_driving.errors import ConfigError
from dangerous_driving.messaging import AckPolicy, Consumer, Producer, Topic, apply, group_lag
from dangerous_driving.settings import KafkaSettings
from infra.kafka.cluster import KafkaCluster
from tests.messaging.conftest import frame, numbers, receive, wait_until

pytestmark = pytest.mark.integration


@pytest.fixture
def kafka(kafka_cluster: KafkaCluster) -> KafkaSettings:
    kafka = KafkaSettings(
        bootstrap_servers=kafka_cluster.bootstrap_servers,
        group_prefix=f"test-{uuid.uuid4().hex[:8]}",
        session_timeout=6,
    )
    apply(kafka)
    return kafka


@pytest.fixture
def settings_file(kafka: KafkaSettings, tmp_path: Path) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump({"kafka": kafka.model_dump(mode="json", exclude_defaults=True)}))
    return path


def run(settings_file: Path, *arguments: str, exit_code: int = 0) -> str:
    result = CliRunner().invoke(app, ["topics", *arguments, "--config", str(settings_file)], env={"COLUMNS": "200"})
    if isinstance(result.exception, ConfigError):
        raise result.exception
    assert result.exit_code == exit_code, result.output
    return result.output


def letters(settings_file: Path, group: str) -> int:
    """How many messages the group has set aside."""
    [count] = re.findall(r"(\d+) dead letters", run(settings_file, "dead-letter", "list", "--group", group))
    return int(count)


def test_topics_are_applied_checked_described(settings_file: Path) -> None:
    assert "detection-results existed: 16 partitions, kept 3 times" in run(settings_file, "apply")
    assert "topics as wanted" in run(settings_file, "check")
    assert "24 h" in run(settings_file, "describe")
    lags = json.loads(run(settings_file, "lag", "--json"))
    assert [group.rpartition(".")[2] for group in lags] == ["tasks", "assess", "alerts"]


def test_a_difference_is_named_and_the_exit_code_says_so(settings_file: Path, kafka: KafkaSettings) -> None:
    content = yaml.safe_load(settings_file.read_text())
    content["kafka"]["partitions"] = 99
    settings_file.write_text(yaml.safe_dump(content))
    assert "kafka.partitions is 99" in run(settings_file, "check", exit_code=1)


def test_a_message_set_aside_is_listed_shown_and_sent_again(settings_file: Path, kafka: KafkaSettings) -> None:
    camera = f"cam-{uuid.uuid4().hex[:8]}"
    # right in itself, but under another camera's key
    right = frame(camera, 3).to_json()
    with (
        Producer(kafka, "test") as producer,
        Consumer(
            kafka, {Topic.DETECTION_RESULTS: DetectionResult}, name="tasks", policy=AckPolicy.AFTER_EFFECT
        ) as consumer,
    ):
        # a new group begins with what other tests left on the topic, unusable messages among it

        def caught_up() -> bool:
            consumer.poll(0.2, 500)
            consumer.commit()
            return not sum(group_lag(kafka, consumer.group, follows=[Topic.DETECTION_RESULTS]).values())

        wait_until(caught_up, "the end of the topic")
        before = letters(settings_file, consumer.group)
        producer.send_bytes(Topic.DETECTION_RESULTS, b"{} no json", camera.encode())
        producer.send_bytes(Topic.DETECTION_RESULTS, right, b"another").result()

        def both_set_aside() -> bool:
            consumer.poll(0.2, 500)
            return letters(settings_file, consumer.group) == before + 2

        wait_until(both_set_aside, "the dead letters")
        listed = run(settings_file, "dead-letter", "list", "--group", consumer.group)
        [line] = [line for line in listed.splitlines() if camera in line]
        name = line.split("│")[1].strip()

        shown = run(settings_file, "dead-letter", "show", name)
        assert "field    cameraId" in shown
        assert "detection-results[" in shown
        assert camera in shown
        assert run(settings_file, "dead-letter", "show", name, "--raw").encode() == right

        # what sent it wrongly is mended; the same bytes now come under their key
        producer.send_bytes(Topic.DETECTION_RESULTS, right, camera.encode())
        assert numbers(receive(consumer, camera, 1), camera) == [3]

        assert "1 messages sent again" in run(settings_file, "dead-letter", "replay", name)
        wait_until(
            lambda: not consumer.poll(0.2, 500) and letters(settings_file, consumer.group) == before + 3,
            "the same letter again, since its key is still wrong",
        )


def test_a_letter_that_is_not_there_and_a_replay_of_nothing_are_refused(settings_file: Path) -> None:
    with pytest.raises(ConfigError, match="dead-letter list"):
        run(settings_file, "dead-letter", "show", "123456")
    with pytest.raises(ConfigError, match="--all"):
        run(settings_file, "dead-letter", "replay")
