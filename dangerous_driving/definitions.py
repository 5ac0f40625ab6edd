"""The code location of `workspace.yaml`. Settings are read when Dagster loads the definitions, not at import."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from dangerous_driving.observability.logging import configure_own
from dangerous_driving.settings import load


@contextmanager
def loading() -> Iterator[None]:
    """Load what stays for the life of the process without looking for garbage in it, now and later.

    Half a million objects, most of them of dbt's and openai's classes, are gone through again and again while they are
    made, and once more when the process ends: without that, a run starts and ends in two thirds of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


@dg.definitions
def definitions() -> dg.Definitions:
    """What Dagster loads, by the settings of this process (``DD_CONFIG``, ``DD_…``)."""
    with loading():
        # these imports are what takes the time
        from dangerous_driving.defs.graph import definitions_of

        settings = load()
        # what runs log, such as each call of the LLM, is read with the lines of the services
        configure_own(level=settings.observability.log_level, service="dagster", node=settings.node)
        return definitions_of(settings)
