"""Shadow mode: a challenger assesses a share of the live groups beside the champion, and nobody hears of it (pure).

A shadow is a backfill of a share of every window that the live lanes have completed. So it pays from the evaluation lane,
nothing of it leaves the ledger, its answers stand under its own run, and a killed run asks nothing twice.

The share is chosen by a hash of the task's id: the same groups whoever asks, whenever, and for every challenger, so that
challengers can be held against each other; a larger share contains the smaller one.
"""

from __future__ import annotations

import hashlib

SHADOW_PREFIX = "shadow:"
#: Values of the hash that decides: the first 32 bits of the id's MD5, which every database can compute, too.
HASHES = 2**32


def shadow_run(prompt_version: str, model: str) -> str:
    """The name under which a challenger's answers stand: one for each prompt version and model."""
    return f"{SHADOW_PREFIX}{prompt_version}:{model}"


def sampled_below(share: float) -> int:
    """The first value of the hash that is not sampled."""
    return round(min(1.0, max(0.0, share)) * HASHES)


def is_sampled(task_id: str, share: float) -> bool:
    """Whether a group is in the share, 0 to 1."""
    digest = hashlib.md5(task_id.encode(), usedforsecurity=False).hexdigest()
    return int(digest[:8], 16) < sampled_below(share)
