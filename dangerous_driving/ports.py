"""Ports for servers that are started later than their port is chosen."""

from __future__ import annotations

import random
import socket

#: Below what systems give to outgoing connections (Linux from 32768, macOS, Windows and IANA from 49152): a port from there may
#: be taken by any client between its choice and the start of its server.
RANGE = range(20_000, 30_000)


def free_ports(count: int, *, host: str = "127.0.0.1") -> list[int]:
    """Different ports on which nobody listens now, and which no outgoing connection takes meanwhile.

    Raises:
        OSError: fewer are free.
    """
    chosen: list[int] = []
    for port in random.sample(RANGE, len(RANGE)):
        if len(chosen) == count:
            break
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what a closed connection left does not matter
            try:
                probe.bind((host, port))
            except OSError:
                continue  # somebody's
        chosen.append(port)
    if len(chosen) < count:
        raise OSError(f"{len(chosen)} of {count} ports are free on {host} between {RANGE.start} and {RANGE.stop - 1}")
    return chosen


def free_port(*, host: str = "127.0.0.1") -> int:
    """One of :func:`free_ports`."""
    return free_ports(1, host=host)[0]
