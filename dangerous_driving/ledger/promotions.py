"""Decisions of the gate and promotions: which prompt is in use, since when, and on what evidence."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, select, text
from sqlalchemy.dialects.postgresql import insert

from dangerous_driving.errors import ConfigError
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.tables import PromptDecision, PromptPromotion

#: One promotion at a time.
PROMOTION_LOCK = 7_261_021


@dataclass(frozen=True)
class Decision:
    """What the gate said; `differences` are plain data, as in the table."""

    champion: str
    challenger: str
    model: str
    set_version: int
    champion_run: str
    challenger_run: str
    verdict: str
    reasons: list[str]
    cases: int
    clusters: int
    coverage: float
    differences: list[dict[str, Any]]
    decided_by: str


@dataclass(frozen=True)
class Promotion:
    """One change of the prompt in use."""

    promotion_id: int
    promoted_at: datetime
    kind: str
    prompt_version: str
    prompt_digest: str
    previous: str
    promoted_by: str
    note: str
    decision_id: int | None


def keep_decision(engine: Engine, decision: Decision) -> int:
    """Keep a decision; returns its id."""
    with transaction(engine) as connection:
        made = connection.scalar(insert(PromptDecision).values(**asdict(decision)).returning(PromptDecision.id))
    assert made is not None  # the statement returns it  # noqa: S101
    return made


def champion_of(engine: Engine) -> Promotion | None:
    """The promotion that holds; None: there was none yet, ``llm.prompt_version`` is in use."""
    found = promotions(engine, limit=1)
    return found[0] if found else None


def promotions(engine: Engine, *, limit: int) -> list[Promotion]:
    """All of them, the newest first."""
    statement = select(PromptPromotion.__table__).order_by(PromptPromotion.id.desc()).limit(limit)
    with transaction(engine) as connection:
        return [Promotion(*row) for row in connection.execute(statement)]


def promote(
    engine: Engine,
    *,
    kind: str,
    prompt_version: str,
    prompt_digest: str,
    previous: str,
    by: str,
    note: str = "",
    decision_id: int | None = None,
) -> Promotion:
    """Put a prompt into use from now on.

    Raises:
        ConfigError: the prompt in use is no longer `previous`: somebody promoted another one meanwhile.
    """
    with transaction(engine) as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": PROMOTION_LOCK})
        held = connection.scalar(select(PromptPromotion.prompt_version).order_by(PromptPromotion.id.desc()).limit(1))
        if held is not None and held != previous:
            raise ConfigError(
                f"prompt {prompt_version}",
                f"{held} was promoted meanwhile, the decision was made against {previous}",
                "evaluate it against the prompt that is in use now",
            )
        row = connection.execute(
            insert(PromptPromotion)
            .values(
                kind=kind,
                prompt_version=prompt_version,
                prompt_digest=prompt_digest,
                previous=previous,
                promoted_by=by,
                note=note,
                decision_id=decision_id,
            )
            .returning(PromptPromotion.__table__)
        ).one()
    return Promotion(*row)
