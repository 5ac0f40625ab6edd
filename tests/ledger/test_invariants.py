"""`verify` finds nothing in a sound ledger, and names whatever was taken out of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from dangerous_driving.alerts.inputs import sightings_of_result
from dangerous_driving.alerts.lifecycle import Lifecycle
from dangerous_driving.assessment.results import final_result
from dangerous_driving.assessment.windows import window_of
from dangerous_driving.contracts import DetectionResult
from dangerous_driving.ledger import alerts, backfills, claims, frames, invariants, windows
from dangerous_driving.ledger.assessments import AssessmentRecord, CallOutcome, complete, fail, finish_call, start_call
from dangerous_driving.ledger.claims import Claim
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.invariants import Verification
from dangerous_driving.ledger.schema import Partitions
from dangerous_driving.objects import FolderStore
from dangerous_driving.settings import AlertsSettings
from dangerous_driving.simulation.messages import detection_result
from dangerous_driving.tasks.derivation import tasks_from_detection
from dangerous_driving.tasks.reimport import reimport

pytestmark = pytest.mark.integration

NOW = datetime.now(UTC).replace(microsecond=0)
LENGTH = 60
KEY = "key_hash_0123456789ab"


def stored(store: FolderStore, result: DetectionResult) -> DetectionResult:
    """The frame as detection leaves it: pictures and result in the store, addresses in the message."""
    day = f"{result.timestamp:%Y/%m/%d/%H}"
    stem = f"{result.camera_id}/{day}/{result.message_id}"
    frame_url = store.put(f"frames/{stem}.jpg", b"jpeg", "image/jpeg")
    groups = tuple(
        group.model_copy(
            update={"group_image_url": store.put(f"groups/{stem}_group{group.group_index}.jpg", b"jpeg", "image/jpeg")}
        )
        for group in result.traffic_groups
    )
    result = result.model_copy(update={"raw_frame_url": frame_url, "traffic_groups": groups})
    store.put(f"frames/{stem}.json", result.to_json(), "application/json")
    return result


def answer(claim: Claim, call_id: str) -> AssessmentRecord:
    task = claim.task
    return AssessmentRecord(
        captured_at=task.timestamp, task_id=task.task_id, run="live", message_id=task.request_id,
        camera_id=task.camera_id, group_index=task.group_index, group_bbox=list(task.group_metadata.bbox),
        risk_level="high", confidence=0.9, risk_types=["tailgating"], description="", trigger_object_ids=[1],
        danger_object_count=1, lane="realtime", prompt_version="v1", model="simulated-vl", key_hash=KEY,
        call_id=call_id, retry_count=0, first_token_latency=0.4, latency=1.2, input_tokens=10, output_tokens=5,
        cost=0.0, reused_from=None, raw_answer="{}", node="here", assessed_at=NOW,
    )  # fmt: skip


def insert(ledger: Engine, table: str, **values: object) -> None:
    names = ", ".join(values)
    with transaction(ledger) as connection:
        connection.execute(text(f"INSERT INTO {table} ({names}) VALUES (:{', :'.join(values)})"), values)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "objects", bucket="traffic")


@pytest.fixture
def filled(ledger: Engine, store: FolderStore) -> Engine:
    """Two frames of two groups: three tasks answered (one at the second attempt), one failed; one alert."""
    results = [stored(store, detection_result("sim-1", NOW - timedelta(seconds=40 * n), groups=2)) for n in (1, 2)]
    tasks = [task for result in results for task in tasks_from_detection(result)]
    frames.record_detections(ledger, Partitions(), results, tasks, window_length=LENGTH)
    insert(ledger, "api_key", key_hash=KEY, qps_limit=10, rpm_limit=300)
    worker = claims.start_worker(ledger, service="assess", node="here", pid=1)
    held = claims.claim_tasks(ledger, Partitions(), worker, tasks, [], deferred_reason="", window_length=LENGTH)

    def call(claim: Claim) -> str:
        return start_call(
            ledger, claim, run="live", lane="realtime", key_hash=KEY, model="simulated-vl", prompt_version="v1"
        )

    finish_call(ledger, held[0].task.timestamp, call(held[0]), CallOutcome("timeout"))
    for claim in held[:3]:
        complete(ledger, claim, answer(claim, call(claim)), CallOutcome("ok"))
    finish_call(ledger, held[3].task.timestamp, call(held[3]), CallOutcome("unparsable"))
    assert fail(ledger, held[3], code="unparsable", message="no JSON", raw="I cannot help")
    add_alert(ledger, held[0])
    add_backfill(ledger, worker, call)
    return ledger


def add_backfill(ledger: Engine, worker: int, call: Callable[[Claim], str]) -> None:
    """Two groups again under a name of its own: one answered, one failed."""
    backfills.open_backfill(ledger, "better", prompt_version="v1", model="simulated-vl")
    window = window_of("sim-1", NOW - timedelta(seconds=80), LENGTH)
    first, second = backfills.claim_backfill(ledger, "better", worker, window, max_attempts=1, limit=2)
    complete(ledger, first, answer(first, call(first)), CallOutcome("ok"))
    finish_call(ledger, second.task.timestamp, call(second), CallOutcome("unparsable"))
    assert fail(ledger, second, code="unparsable", message="no JSON")


def add_alert(ledger: Engine, claim: Claim) -> None:
    """As the alerts service does; the same answer again changes nothing."""
    sightings = sightings_of_result(final_result(answer(claim, "any")), at=NOW)
    changes = alerts.advance(ledger, Lifecycle(AlertsSettings()), [*sightings, *sightings])
    assert [change.after.alert.version for change in changes] == [1]


def verify(ledger: Engine, store: FolderStore, *, until: datetime = NOW) -> Verification:
    return invariants.verify(
        ledger, store, since=NOW - timedelta(days=2), until=until, window_length=LENGTH, key_hashes=[KEY]
    )


def test_a_sound_ledger_has_no_violation(filled: Engine, store: FolderStore) -> None:
    found = verify(filled, store)
    assert found.violations == ()
    assert found.counts["tasks"] == {"assessed": 3, "failed": 1}
    assert found.counts["calls"] == {"ok": 4, "timeout": 1, "unparsable": 2}
    assert found.counts["backfill groups"] == {"assessed": 1, "failed": 1}


def test_a_notification_without_its_digest_or_alert_is_named(filled: Engine, store: FolderStore) -> None:
    from dangerous_driving.ledger.database import transaction

    with transaction(filled) as connection:
        for number, (state, digest, alert) in enumerate(
            (("sent", None, "nobody"), ("merged", "gone", None), ("merged", "notice3", None), ("sent", None, None))
        ):
            connection.execute(
                text(
                    "INSERT INTO notification (notification_id, receiver, kind, alert_id, level, state, digest_id,"
                    " created_at, due_at) VALUES (:id, 'desk', 'ring', :alert, 'high', :state, :digest, :at, :at)"
                ),
                {"id": f"notice{number}", "alert": alert, "state": state, "digest": digest, "at": NOW},
            )
    found = verify(filled, store)
    assert found.counts["notifications"] == {"merged": 2, "sent": 2}
    assert [(item.subject, item.problem) for item in found.violations] == [
        ("notice0", "its alert is not there"),
        ("notice1", "its digest is not there"),
    ]


ROWS = {
    "camera": "sim-1",
    "frame": None,
    "assessment_task": None,
    "risk_assessment": None,
    "llm_call": None,
    "api_key": KEY,
    "worker": "worker",
    "camera_window": "sim-1",
    "alert": None,
    "alert_event": None,
    "backfill": "better",
}


@pytest.mark.parametrize("table", ROWS)
def test_any_deleted_row_is_named(filled: Engine, store: FolderStore, table: str) -> None:
    with transaction(filled) as connection:
        rows = connection.execute(
            text(f"SELECT tableoid::regclass::text AS part, ctid::text AS place FROM {table}")
        ).all()
    for row in rows:
        with transaction(filled) as connection:
            deleted = connection.execute(
                text(
                    f"DELETE FROM {row.part} WHERE ctid = CAST(:place AS tid) RETURNING to_jsonb({row.part}.*) AS gone"
                ),
                {"place": row.place},
            ).scalar_one()
        violations = verify(filled, store).violations
        assert violations, f"{deleted} is gone and nobody noticed"
        named = " ".join(violation.subject + violation.problem for violation in violations)
        wanted = ROWS[table] or deleted.get("call_id") or deleted.get("task_id") or deleted.get("message_id")
        assert (wanted or deleted["alert_id"]) in named or deleted.get("alert_id", "-") in named
        with transaction(filled) as connection:
            connection.execute(
                text(
                    f"INSERT INTO {row.part} OVERRIDING SYSTEM VALUE SELECT * FROM jsonb_populate_record(NULL::{row.part}, CAST(:gone AS jsonb))"
                ),
                {"gone": json.dumps(deleted)},
            )
        assert verify(filled, store).violations == ()


def test_any_deleted_object_is_named(filled: Engine, store: FolderStore, tmp_path: Path) -> None:
    for path in sorted(path for path in (tmp_path / "objects").rglob("*") if path.is_file()):
        content = path.read_bytes()
        path.unlink()
        violations = verify(filled, store).violations
        assert [violation.rule for violation in violations] == ["every object exists"]
        assert path.name in violations[0].subject
        path.write_bytes(content)


def test_a_frame_that_only_the_store_has_is_named_and_reimported(filled: Engine, store: FolderStore) -> None:
    lost = stored(store, detection_result("sim-2", NOW - timedelta(seconds=90), groups=2))
    [violation] = verify(filled, store).violations
    assert (violation.rule, violation.subject) == ("every published frame is in the ledger", lost.message_id)

    done = reimport(filled, store, window_length=LENGTH)
    assert (done.found, done.written) == (3, 1)
    assert verify(filled, store).violations == ()
    assert claims.count_states(filled)["pending"] == 2
    assert reimport(filled, store, window_length=LENGTH).written == 0
    due = windows.due_windows(filled, now=NOW + timedelta(hours=1), lateness=0, length=LENGTH, limit=10)
    assert "sim-2" in {item.window.camera_id for item in due}


def test_frames_lie_in_their_windows_after_the_length_of_windows_has_changed(
    filled: Engine, store: FolderStore
) -> None:
    def broken(length: int) -> set[str]:
        found = invariants.verify(
            filled, store, since=NOW - timedelta(days=1), until=NOW + timedelta(minutes=1), window_length=length
        )
        return {violation.rule for violation in found.violations}

    assert broken(LENGTH) == broken(3600) == set()
    with transaction(filled) as connection:
        connection.execute(text("DELETE FROM camera_window"))
    assert broken(LENGTH) == broken(3600) == {"every frame lies in a window"}


def test_what_is_still_on_its_way_is_no_violation(filled: Engine, store: FolderStore) -> None:
    stored(store, detection_result("sim-1", NOW - timedelta(seconds=5), groups=1))
    assert verify(filled, store, until=NOW - timedelta(seconds=30)).violations == ()
    assert len(verify(filled, store, until=NOW).violations) == 1


def test_an_unreadable_stored_result_is_named_and_skipped_by_the_import(filled: Engine, store: FolderStore) -> None:
    key = f"frames/sim-1/{NOW:%Y/%m/%d/%H}/broken.json"
    store.put(key, b"{", "application/json")
    [violation] = verify(filled, store).violations
    assert violation.subject == "broken"
    assert reimport(filled, store, window_length=LENGTH).unreadable == (key,)


def test_a_stored_result_from_the_future_is_named_and_skipped_by_the_import(filled: Engine, store: FolderStore) -> None:
    early = stored(store, detection_result("sim-1", datetime.now(UTC) + timedelta(days=3), groups=1))
    [key] = reimport(filled, store, window_length=LENGTH).unreadable
    assert early.message_id in key


def test_a_claim_of_a_dead_worker_and_its_open_call_are_named(filled: Engine, store: FolderStore) -> None:
    worker = claims.start_worker(filled, service="assess", node="here", pid=2)
    result = stored(store, detection_result("sim-1", NOW - timedelta(seconds=20), groups=1))
    tasks = tasks_from_detection(result)
    frames.record_detections(filled, Partitions(), [result], tasks, window_length=LENGTH)
    [held] = claims.claim_tasks(filled, Partitions(), worker, tasks, [], deferred_reason="", window_length=LENGTH)
    start_call(filled, held, run="live", lane="realtime", key_hash=KEY, model="m", prompt_version="v1")
    assert verify(filled, store).violations == ()
    claims.stop_worker(filled, worker)
    rules = {violation.rule for violation in verify(filled, store).violations}
    assert rules == {"every claimed task is held by a worker", "every call under way has a living worker"}


@pytest.mark.parametrize(
    ("broken", "rule", "subject", "problem"),
    [
        (
            "UPDATE backfill_task SET task_id = 'nobody' WHERE state = 'failed'",
            "every group of a backfill is a task, and its backfill is known", "better nobody", "no such task",
        ),
        (
            "UPDATE backfill_task SET run = 'unheard' WHERE state = 'failed'",
            "every group of a backfill is a task, and its backfill is known", "unheard", "no row in backfill",
        ),
        (
            "UPDATE backfill_task SET state = 'claimed', worker = 999 WHERE state = 'failed'",
            "every claimed group of a backfill is held by a worker", "better ", "worker 999",
        ),
        (
            "UPDATE backfill_task SET state = 'assessed' WHERE state = 'failed'",
            "every assessed group of a backfill has its answer", "better ", "has no answer",
        ),
        (
            "DELETE FROM backfill_task WHERE state = 'assessed'",
            "every answer of a backfill is to a group that it assessed, with its prompt", "better ", "not there",
        ),
        (
            "UPDATE backfill_task SET state = 'pending' WHERE state = 'assessed'",
            "every answer of a backfill is to a group that it assessed, with its prompt", "better ", "is pending",
        ),
        (
            "UPDATE risk_assessment SET prompt_version = 'v2' WHERE run = 'better'",
            "every answer of a backfill is to a group that it assessed, with its prompt", "better ", "prompt v2",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_backfill_is_named(
    filled: Engine, store: FolderStore, broken: str, rule: str, subject: str, problem: str
) -> None:
    with transaction(filled) as connection:
        assert connection.execute(text(broken)).rowcount == 1
    [violation] = [item for item in verify(filled, store).violations if item.rule == rule]
    assert violation.subject.startswith(subject)
    assert problem in violation.problem


def test_a_group_that_a_dead_run_of_a_backfill_held_is_named_until_a_sweep_hands_it_back(
    filled: Engine, store: FolderStore
) -> None:
    dead = claims.start_worker(filled, service="backfill", node="here", pid=3)
    window = window_of("sim-1", NOW - timedelta(seconds=40), LENGTH)
    [held] = backfills.claim_backfill(filled, "better", dead, window, max_attempts=9, limit=1)
    assert verify(filled, store).violations == ()
    claims.stop_worker(filled, dead)
    [violation] = verify(filled, store).violations
    assert violation.subject == f"better {held.task.task_id}"
    swept = claims.sweep(filled, worker_timeout=60, captured_after=NOW)
    assert (swept.to_backfills, swept.to_realtime, swept.to_window) == (1, 0, 0)
    assert verify(filled, store).violations == ()
