"""Fixtures of the whole suite."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real weights, pictures and clips that lies beside the checkout of a developer."""
    if not (SHARED / "samples").is_dir():
        pytest.skip("no ../shared beside this checkout: real weights, pictures and clips are not part of the project")
    return SHARED
