"""Several groups of one frame in one call: which go together, and what of the call's cost is each one's. Pure.

A key's quota counts calls, so a call for three groups saves two. What it costs is time: the answer is written group by group,
and is whole when the last one is. The riskiest group is therefore asked about first, so that its level streams as early as alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dangerous_driving.assessment.llm import Reply
from dangerous_driving.contracts import LIVE_RUN
from dangerous_driving.ledger.claims import Claim


def by_frame(claims: Sequence[Claim], limit: int) -> list[list[Claim]]:
    """The claims of one frame together, at most `limit` of them, the riskiest first; each where its first one stood.

    Claims of a backfill stay alone: its answers are to be those of one prompt version.
    """
    frames: dict[tuple[str, str], list[Claim]] = {}
    for claim in claims:
        alone = claim.run != LIVE_RUN
        frames.setdefault((claim.task.request_id, claim.task.task_id if alone else ""), []).append(claim)
    return [
        part
        for members in frames.values()
        for ranked in [sorted(members, key=lambda claim: (-claim.task.priority, claim.task.group_index))]
        for part in (ranked[start : start + limit] for start in range(0, len(ranked), limit))
    ]


def shares(reply: Reply, count: int) -> list[Reply]:
    """The reply of a shared call as `count` replies: equal parts of its tokens, whose sums are the call's."""
    return [
        replace(
            reply,
            input_tokens=_part(reply.input_tokens, number, count),
            output_tokens=_part(reply.output_tokens, number, count),
        )
        for number in range(count)
    ]


def _part(total: int, number: int, count: int) -> int:
    return total // count + (number < total % count)
