"""Calls, keys and the switch of lanes over HTTP, on a real ledger."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from sqlalchemy import Engine, text

from dangerous_driving.assessment.switch import ALL
from dangerous_driving.contracts import Lane
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.schema import Partitions
from dangerous_driving.ledger.switches import read_switch
from dangerous_driving.realtime.access import Role
from tests.realtime.conftest import BridgeFactory, RunningBridge, moment
from tests.realtime.test_roles import bearer

pytestmark = pytest.mark.integration


@pytest.fixture
def bridge(start_bridge: BridgeFactory) -> RunningBridge:
    return start_bridge(token_secret="a secret of more than thirty-two bytes", open_access=False)


def a_call(
    ledger: Engine, number: int, *, camera: str = "north", status: str = "ok", begun: datetime | None = None
) -> None:
    """A request that began so many seconds after the first, or then."""
    begun = begun or moment(60 - number)
    Partitions().ensure(ledger, [begun])
    with transaction(ledger) as connection:
        connection.execute(
            text(
                "INSERT INTO llm_call (captured_at, call_id, task_id, camera_id, call_number, run, lane, worker, key_hash,"
                " model, prompt_version, status, started_at, first_token_at, finished_at, input_tokens, output_tokens, cost)"
                " VALUES (:at, :id, :task, :camera, 1, 'live', 'realtime', 1, 'key_hash_1', 'simulated-vl', 'v2', :status,"
                " :at, :first, :finished, 900, 40, 0.002)"
            ),
            {
                "at": begun,
                "id": f"task{number}_call1",
                "task": f"task{number}",
                "camera": camera,
                "status": status,
                "first": begun + timedelta(seconds=0.4),
                "finished": begun + timedelta(seconds=1.2),
            },
        )


def test_calls_are_found_by_camera_task_and_status_page_by_page(bridge: RunningBridge, ledger: Engine) -> None:
    for number in range(3):
        a_call(ledger, number)
    a_call(ledger, 3, camera="south", status="timeout")
    everything = {"since": moment(3600).isoformat()}
    with bridge.http(**bearer(Role.VIEWER)) as http:

        def tasks(**wanted: str) -> list[str]:
            return [item["taskId"] for item in http.get("/api/calls", params=everything | wanted).json()["items"]]

        assert tasks() == ["task3", "task2", "task1", "task0"]
        assert tasks(camera="south") == tasks(status="timeout") == ["task3"]
        assert tasks(task="task1") == ["task1"]
        assert tasks(key="key_hash_2") == tasks(lane="window") == []
        page = http.get("/api/calls", params=everything | {"limit": "3"}).json()
        assert (page["items"][1]["firstTokenLatency"], page["items"][1]["latency"]) == (0.4, 1.2)
        assert tasks(before=page["nextBefore"]) == ["task0"]


def test_no_call_is_passed_over_where_many_began_in_the_same_instant(bridge: RunningBridge, ledger: Engine) -> None:
    begun = moment(60)
    for number in range(7):
        a_call(ledger, number, begun=begun)
    seen: list[str] = []
    with bridge.http(**bearer(Role.VIEWER)) as http:
        wanted = {"since": moment(3600).isoformat(), "limit": "3"}
        for _ in range(3):
            page = http.get("/api/calls", params=wanted).json()
            seen += [item["taskId"] for item in page["items"]]
            wanted |= {"before": page["nextBefore"], "beforeId": page["nextBeforeId"]}
        assert (page["nextBefore"], page["nextBeforeId"]) == (None, None)
    assert seen == [f"task{number}" for number in reversed(range(7))]


def test_keys_are_shown_by_hash_with_their_state(bridge: RunningBridge, ledger: Engine) -> None:
    with transaction(ledger) as connection:
        connection.execute(
            text(
                "INSERT INTO api_key (key_hash, label, qps_limit, rpm_limit, state, state_reason)"
                " VALUES ('key_hash_1', 'first', 10, 300, 'disabled', 'HTTP 401')"
            )
        )
    with bridge.http(**bearer(Role.VIEWER)) as http:
        (key,) = http.get("/api/keys").json()
    assert (key["keyHash"], key["state"], key["reason"], key["rpmLimit"]) == ("key_hash_1", "disabled", "HTTP 401", 300)


def test_only_admins_move_the_switch_and_it_is_written_down(bridge: RunningBridge, ledger: Engine) -> None:
    with bridge.http(**bearer(Role.OPERATOR)) as operator:
        assert operator.put("/api/switch/*", json={"lane": "window"}).status_code == 403
    assert read_switch(ledger).entries == {}
    with bridge.http(**bearer(Role.ADMIN)) as admin:
        assert admin.put("/api/switch/*", json={"lane": "window"}).json()["lane"] == "window"
        assert admin.put("/api/switch/north", json={"lane": "inline"}).status_code == 200
        assert read_switch(ledger).lane_of("north") is Lane.INLINE
        assert read_switch(ledger).lane_of("other") is Lane.WINDOW
        assert admin.put("/api/switch/north", json={"lane": None}).json()["lane"] is None
        assert read_switch(ledger).lane_of("north") is Lane.WINDOW
        assert {item["cameraId"] for item in admin.get("/api/switch").json()} == {ALL, "north"}
        acts = [(item["act"], item["target"]) for item in admin.get("/api/audit").json()["items"]]
        assert acts[0] == ("switch", "north")
        assert admin.put("/api/switch/north", json={"lane": "evaluation"}).status_code == 422
