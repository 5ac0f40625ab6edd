"""What one request asks, about one group or about several of a frame, and how its answer is read. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dangerous_driving.assessment.answer import ParsedAnswer, level_in_stream, parse_answer
from dangerous_driving.assessment.frame_answer import levels_in_stream, parse_frame_answer
from dangerous_driving.assessment.prompt import Prompt
from dangerous_driving.contracts import RiskLevel
from dangerous_driving.ledger.claims import Claim
from dangerous_driving.settings import CameraContext

#: Characters of one group's answer within which its level is looked for while it streams: it is asked for first, and each look
#: reads all that is there, so that a model which rambles would keep the event loop busy.
LEVEL_WITHIN = 2000


@dataclass(frozen=True)
class Question:
    """One request's content. ``claims``: on the groups asked about, in that order; the call's row stands under the first."""

    claims: tuple[Claim, ...]
    prompt: Prompt
    messages: list[dict[str, Any]]

    @property
    def shared(self) -> bool:
        """Whether it asks about several groups."""
        return len(self.claims) > 1

    @property
    def level_within(self) -> int:
        """Characters of an answer behind which no level is looked for while it streams."""
        return LEVEL_WITHIN * len(self.claims)

    def levels(self, text: str) -> dict[int, RiskLevel]:
        """The levels, by group index, that are known from an answer so far."""
        if self.shared:
            return levels_in_stream(text[: self.level_within], set(self._groups()))
        level = level_in_stream(text[: self.level_within])
        return {} if level is None else {self.claims[0].task.group_index: level}

    def read(self, text: str) -> dict[int, ParsedAnswer]:
        """The answers by group index; a group may be missing in one that is shared.

        Raises:
            AnswerError: there is none.
        """
        groups = self._groups()
        if self.shared:
            return parse_frame_answer(text, groups)
        [(index, known)] = groups.items()
        return {index: parse_answer(text, known)}

    def _groups(self) -> dict[int, set[int]]:
        return {
            claim.task.group_index: {item.object_id for item in claim.task.detected_objects} for claim in self.claims
        }


def question_about(groups: Sequence[tuple[Claim, str]], prompt: Prompt, context: CameraContext) -> Question:
    """Ask about groups.

    Args:
        groups: one, or several of a frame, each with its picture as an URL.
        prompt: one that takes a group, or a frame.
        context: what is known of the camera's place.
    """
    claims = tuple(claim for claim, _ in groups)
    if len(claims) > 1:
        messages = prompt.frame_messages([(claim.task, url) for claim, url in groups], context)
    else:
        [(claim, url)] = groups
        messages = prompt.messages(claim.task, url, context)
    return Question(claims, prompt, messages)
