from __future__ import annotations

import socket
from pathlib import Path

import pytest

from dangerous_driving.ports import RANGE, free_port, free_ports

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_ports_differ_and_can_be_listened_on() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    for port in ports:
        socket.create_server(("127.0.0.1", port)).close()


def test_a_port_somebody_listens_on_is_never_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    first = free_port()
    monkeypatch.setattr("dangerous_driving.ports.RANGE", range(first, first + 40))
    with socket.create_server(("127.0.0.1", first)):
        for _ in range(10):
            assert first not in free_ports(20)


def test_too_few_free_ports_are_an_error_that_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    first = free_port()
    monkeypatch.setattr("dangerous_driving.ports.RANGE", range(first, first + 1))
    with socket.create_server(("127.0.0.1", first)), pytest.raises(OSError, match="0 of 1 ports are free"):
        free_port()


@pytest.mark.skipif(not EPHEMERAL.exists(), reason="the range of outgoing connections is read from Linux's /proc")
def test_no_outgoing_connection_takes_a_chosen_port() -> None:
    low, high = map(int, EPHEMERAL.read_text().split())
    assert RANGE.stop <= low or RANGE.start > high
