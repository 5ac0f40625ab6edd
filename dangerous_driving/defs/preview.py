"""Features of Dagster that this version marks as beta or preview and that are used all the same.

They are several partitions per run of a backfill (``backfill_policy``), checks per partition, and freshness policies.
An upgrade of Dagster looks at each of them again; the tests would tell.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg


@contextmanager
def knowingly() -> Iterator[None]:
    """Without the warnings about them, within the block or the decorated function."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)
        warnings.simplefilter("ignore", dg.BetaWarning)
        yield
