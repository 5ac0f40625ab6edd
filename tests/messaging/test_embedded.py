"""The broker of the demo, as a process of its own sees it."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from dangerous_driving.errors import BrokerError, ConfigError
from dangerous_driving.messaging import EmbeddedBroker, apply, check, embedded_kafka_settings, run_embedded_broker
from tests.messaging.conftest import wait_until


@pytest.mark.integration
def test_the_address_file_appears_whole_with_the_broker_and_goes_with_it(tmp_path: Path) -> None:
    address_file = tmp_path / "run" / "broker"
    address_file.parent.mkdir()
    address_file.write_text("127.0.0.1:1")  # of a broker that was killed
    stop = threading.Event()
    thread = threading.Thread(target=run_embedded_broker, args=(address_file, stop))
    thread.start()
    try:
        wait_until(lambda: _said_by(address_file) not in {None, "127.0.0.1:1"}, "the address")
        kafka = embedded_kafka_settings(address_file.read_text())
        apply(kafka)
        assert check(kafka) == []
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()
    assert list(address_file.parent.iterdir()) == []
    with pytest.raises(BrokerError):
        check(kafka.model_copy(update={"request_timeout": 0.5}))


def _said_by(address_file: Path) -> str | None:
    try:
        return address_file.read_text()
    except FileNotFoundError:  # taken away between any two looks
        return None


def test_without_its_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(ConfigError, match=r"pip install -e '.\[embedded\]'"):
        EmbeddedBroker().start()
