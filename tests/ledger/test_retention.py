"""What retention deletes of the small tables, and how it drops days beside readers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy import Engine, text

from dangerous_driving.errors import LedgerBusyError
from dangerous_driving.ledger import retention
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.retention import drop_day, expired_partitions, prune_rows
from dangerous_driving.ledger.schema import LOCK_WAIT, Partitions

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


def test_the_live_lanes_go_on_while_a_reader_keeps_a_day_from_being_dropped(ledger: Engine) -> None:
    Partitions().ensure(ledger, [MIDNIGHT - timedelta(hours=1)])
    with ThreadPoolExecutor(1) as pool:
        with transaction(ledger) as reader:
            reader.execute(text("SELECT count(*) FROM assessment_task"))
            dropping = pool.submit(drop_day, ledger, BEFORE - timedelta(days=1))
            while not waits_for_a_lock(ledger):
                assert not dropping.done()
            with transaction(ledger) as writer:
                writer.execute(text(f"SET LOCAL statement_timeout = {int((LOCK_WAIT + 2) * 1000)}"))
                writer.execute(text("UPDATE assessment_task SET calls = calls"))
            assert not wait([dropping], 0).done
        dropping.result(retention.PATIENCE)
    assert expired_partitions(ledger, BEFORE) == []


def test_what_a_reader_kept_from_being_dropped_is_named_and_left_to_the_next_run(
    ledger: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "PATIENCE", 0.1)
    Partitions().ensure(ledger, [MIDNIGHT - timedelta(hours=1)])
    with transaction(ledger) as reader:
        reader.execute(text("SELECT count(*) FROM assessment_task"))
        with pytest.raises(LedgerBusyError, match="assessment_task_p20260109"):
            drop_day(ledger, BEFORE - timedelta(days=1))
    assert "assessment_task" in {partition.table for partition in expired_partitions(ledger, BEFORE)}
    drop_day(ledger, BEFORE - timedelta(days=1))
    assert expired_partitions(ledger, BEFORE) == []


def waits_for_a_lock(ledger: Engine) -> bool:
    with transaction(ledger) as connection:
        return bool(
            connection.scalar(
                text(
                    "SELECT count(*) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE 'DROP TABLE%'"
                )
            )
        )
