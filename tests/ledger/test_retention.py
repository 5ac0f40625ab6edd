"""What retention deletes of the small tables."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy import Engine, text

from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.retention import prune_rows

pytestmark = pytest.mark.integration

BEFORE = date(2026, 1, 10)
MIDNIGHT = datetime(2026, 1, 10, tzinfo=UTC)


def put(
    ledger: Engine, name: str, state: str, created_at: datetime, *, kind: str = "ring", digest: str | None = None
) -> None:
    with transaction(ledger) as connection:
        connection.execute(
            text(
                "INSERT INTO notification (notification_id, receiver, kind, level, state, digest_id, created_at, due_at)"
                " VALUES (:name, 'desk', :kind, 'high', :state, :digest, :at, :at)"
            ),
            {"name": name, "kind": kind, "state": state, "digest": digest, "at": created_at},
        )


def test_notifications_go_with_their_day_whatever_became_of_them(ledger: Engine) -> None:
    for state in ("sent", "failed", "pending"):
        put(ledger, f"old {state}", state, MIDNIGHT - timedelta(seconds=1))
        put(ledger, f"new {state}", state, MIDNIGHT)
    # a digest may be of the day after what it tells, never of the day before
    put(ledger, "member", "merged", MIDNIGHT - timedelta(seconds=1), digest="digest")
    put(ledger, "digest", "sent", MIDNIGHT + timedelta(seconds=1), kind="digest")
    assert prune_rows(ledger, BEFORE)["notification"] == 4
    with transaction(ledger) as connection:
        left = set(connection.scalars(text("SELECT notification_id FROM notification")))
    assert left == {"new sent", "new failed", "new pending", "digest"}
    assert prune_rows(ledger, BEFORE)["notification"] == 0
