"""Logs: one JSON object per line on standard output (or readable lines on a terminal), ids bound as fields."""

from __future__ import annotations

import logging
import sys

import structlog


def configure(*, level: str, service: str, node: str) -> None:
    """Set up structlog and route the standard library's loggers (kafka, uvicorn, …) through it.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``; foreign libraries speak from ``warning`` on.
        service: name of this process in every line.
        node: name of this machine in every line.
    """
    configure_own(level=level, service=service, node=node)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_shared(),
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _renderer()],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)


def configure_own(*, level: str, service: str, node: str) -> None:
    """Our own lines alone, in processes whose other loggers belong to somebody else (Dagster's)."""
    # our own lines go straight out: the way through the standard library doubles what each costs (benchmarks/observability.py)
    structlog.configure(
        processors=[*_shared(), _renderer()],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stdout),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service, node=node)


def _shared() -> list[structlog.typing.Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]


def _renderer() -> structlog.typing.Processor:
    return structlog.dev.ConsoleRenderer() if sys.stdout.isatty() else structlog.processors.JSONRenderer()
