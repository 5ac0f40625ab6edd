"""The client for programs, `watch`, and bridges that are killed behind a load balancer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from typer.testing import CliRunner

from dangerous_driving import cli
from dangerous_driving.commands.realtime import line_of
from dangerous_driving.contracts import Alert, AlertBasis, RiskLevel
from dangerous_driving.errors import BridgeError, BridgeRefusedError, ConfigError, DangerousDrivingError, LedgerError
from dangerous_driving.ledger import alerts as ledger_alerts
from dangerous_driving.messaging import EmbeddedBroker
from dangerous_driving.messaging.embedded import embedded_kafka_settings
from dangerous_driving.realtime.access import Access
from dangerous_driving.realtime.client import BridgeClient
from dangerous_driving.settings import DatabaseSettings, RealtimeSettings
from tests.conftest import REPOSITORY, missing_component
from tests.realtime.bridges import prove
from tests.realtime.conftest import BridgeFactory, RunningBridge, a_frame, a_sighting, moment
from tests.realtime.test_hub import alert

pytestmark = pytest.mark.integration

SECRET = "a secret of more than thirty-two bytes"


class Watching:
    """A client that runs beside the test."""

    def __init__(self) -> None:
        self.seen: list[Alert] = []

    async def ids(self, count: int) -> list[str]:
        async with asyncio.timeout(60):
            while len(self.seen) < count:
                await asyncio.sleep(0.02)
        return [alert.alert_id for alert in self.seen]


@asynccontextmanager
async def watching(client: BridgeClient, *, changes: bool = False) -> AsyncIterator[Watching]:
    watching = Watching()

    async def run() -> None:
        async for came in client.alerts(changes=changes):
            watching.seen.append(came)

    task = asyncio.create_task(run())
    async with asyncio.timeout(60):
        while client.greeting is None and not task.done():
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.2)  # its subscription is on its way
    yield watching
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def in_thread(bridge: RunningBridge, camera: str, **options: object) -> Alert:
    (alert,) = await asyncio.to_thread(bridge.decide, a_sighting(a_frame(camera), **options))  # type: ignore[arg-type]
    return alert


async def test_each_alert_comes_once_over_a_restart_of_the_bridge(bridge: RunningBridge) -> None:
    client = BridgeClient(bridge.url)
    async with watching(client) as once, watching(BridgeClient(bridge.url), changes=True) as all_versions:
        frame = a_frame("a")
        await asyncio.to_thread(bridge.decide, a_sighting(frame, kind=AlertBasis.PROVISIONAL))
        await once.ids(1)
        await asyncio.to_thread(bridge.stop)
        bridge.decide(a_sighting(frame), publish=False)
        (second,) = bridge.decide(a_sighting(a_frame("b")), publish=False)
        await asyncio.to_thread(bridge.restart)
        third = await in_thread(bridge, "c")
        assert (await once.ids(3))[1:] == [second.alert_id, third.alert_id]
        await all_versions.ids(4)
    assert [(alert.camera_id, alert.version) for alert in all_versions.seen] == [("a", 1), ("a", 2), ("b", 1), ("c", 1)]
    assert len({alert.alert_id for alert in once.seen}) == len(once.seen) == 3


async def test_a_new_process_goes_on_where_the_last_one_ended(bridge: RunningBridge) -> None:
    client = BridgeClient(bridge.url)
    async with watching(client) as first:
        await in_thread(bridge, "a")
        await first.ids(1)
    missed = await in_thread(bridge, "b")
    again = BridgeClient(bridge.url, position=client.position)
    async with watching(again) as second:
        assert missed.alert_id in await second.ids(1)


async def test_a_break_too_long_to_resume_is_read_from_the_ledger(
    bridge: RunningBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = BridgeClient(bridge.url)
    async with watching(client) as first:
        await in_thread(bridge, "a")
        await first.ids(1)
    missed = [(await in_thread(bridge, f"m{number}")).alert_id for number in range(5)]
    monkeypatch.setattr("dangerous_driving.realtime.socket.RESUME_LIMIT", 2)
    monkeypatch.setattr(BridgeClient, "PAGE", 2)
    async with watching(BridgeClient(bridge.url, position=client.position)) as second:
        seen = await second.ids(5)
        assert [alert_id for alert_id in seen if alert_id in missed] == missed
        assert len(set(seen)) == len(seen)


async def test_a_long_break_loses_no_alert_that_rose_in_it_to_the_wanted_level(
    bridge: RunningBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dangerous_driving.realtime.socket.RESUME_LIMIT", 2)
    before = a_sighting(a_frame("risen", moment(seconds_ago=4)), RiskLevel.MEDIUM)
    (low,) = await asyncio.to_thread(bridge.decide, before)
    client = BridgeClient(bridge.url, minimum_level=RiskLevel.HIGH)
    async with watching(client) as first:
        (seen_last,) = await asyncio.to_thread(bridge.decide, a_sighting(a_frame("north", moment(seconds_ago=2))))
        assert await first.ids(1) == [seen_last.alert_id]
    assert low.opened_at < seen_last.opened_at
    (risen,) = await asyncio.to_thread(bridge.decide, a_sighting(a_frame("risen")))
    assert risen.alert_id == low.alert_id
    for number in range(5):
        await in_thread(bridge, f"busy{number}", level=RiskLevel.MEDIUM)
    async with watching(BridgeClient(bridge.url, position=client.position, minimum_level=RiskLevel.HIGH)) as second:
        assert risen.alert_id in await second.ids(1)


def quiet_client(bridge: RunningBridge) -> BridgeClient:
    """Of a camera that has shown nothing yet."""
    return BridgeClient(bridge.url, cameras=["quiet"])


async def test_a_long_break_loses_nothing_before_the_first_alert_was_seen(
    bridge: RunningBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dangerous_driving.realtime.socket.RESUME_LIMIT", 2)
    async with watching(quiet_client(bridge)) as seen:
        await asyncio.to_thread(bridge.stop)
        (missed,) = bridge.decide(a_sighting(a_frame("quiet")), publish=False)
        for number in range(5):
            bridge.decide(a_sighting(a_frame(f"busy{number}")), publish=False)
        await asyncio.to_thread(bridge.restart)
        assert await seen.ids(1) == [missed.alert_id]


async def test_nothing_is_lost_when_the_bridge_cannot_read_what_was_missed(
    bridge: RunningBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_arguments: object, **_options: object) -> list[Alert]:
        raise LedgerError("away")

    async with watching(quiet_client(bridge)) as seen:
        await asyncio.to_thread(bridge.stop)
        (missed,) = bridge.decide(a_sighting(a_frame("quiet")), publish=False)
        monkeypatch.setattr("dangerous_driving.realtime.socket.ledger.changed_since", away)
        await asyncio.to_thread(bridge.restart)
        assert await seen.ids(1) == [missed.alert_id]


async def test_a_position_that_the_ledger_does_not_know_hides_nothing(bridge: RunningBridge) -> None:
    missed = await in_thread(bridge, "a")
    async with watching(BridgeClient(bridge.url, position="forgotten:1")) as seen:
        assert await seen.ids(1) == [missed.alert_id]


async def test_only_what_was_asked_for(bridge: RunningBridge) -> None:
    await in_thread(bridge, "south")
    client = BridgeClient(bridge.url, cameras=["north"], minimum_level=RiskLevel.HIGH)
    async with watching(client) as seen:
        await in_thread(bridge, "south")
        await in_thread(bridge, "north", level=RiskLevel.MEDIUM)
        bridge.decide(a_sighting(a_frame("north", moment()), RiskLevel.HIGH))
        await seen.ids(1)
        assert [(alert.camera_id, alert.peak_level) for alert in seen.seen] == [("north", "high")]


async def test_a_program_judges_alerts(bridge: RunningBridge) -> None:
    made = await in_thread(bridge, "a")
    client = BridgeClient(bridge.url)
    assert (await client.acknowledge(made.alert_id, by="night shift", note="seen")).verdict_by == "night shift"
    assert (await client.reject(made.alert_id)).verdict == "rejected"
    with pytest.raises(BridgeRefusedError, match="no such alert"):
        await client.reject("unknown")
    await asyncio.to_thread(bridge.stop)
    with pytest.raises(BridgeError, match="try again") as away:
        await client.reject(made.alert_id)
    assert away.value.retriable


async def test_a_token_that_is_not_accepted_ends_the_client(start_bridge: BridgeFactory) -> None:
    bridge = await asyncio.to_thread(lambda: start_bridge(token="correct horse battery staple"))
    with pytest.raises(BridgeRefusedError, match="not accepted"):
        await anext(BridgeClient(bridge.url, token="wrong").alerts())
    with pytest.raises(BridgeRefusedError, match="HTTP 40"):
        await anext(BridgeClient(f"{bridge.url}/elsewhere").alerts())


@pytest.mark.parametrize("url", ["bridge:8080", "ws://bridge/ws", "", "http://"])
def test_what_is_no_address_is_an_error_at_once(url: str) -> None:
    with pytest.raises(BridgeRefusedError, match="no address"):
        BridgeClient(url)


# the command line


def test_watch_prints_alerts_and_keeps_its_position(bridge: RunningBridge, tmp_path: Path) -> None:
    made = [bridge.decide(a_sighting(a_frame(camera)))[0] for camera in ("a", "b", "c")]
    state = tmp_path / "position"
    state.write_text(f"{made[0].alert_id}:1\n", encoding="utf-8")
    command = ["watch", "--url", bridge.url, "--state", str(state), "--json", "--count"]
    result = CliRunner().invoke(cli.app, [*command, "3"])
    assert result.exit_code == 0, result.output
    printed = [json.loads(line) for line in result.output.splitlines()]
    assert {alert["alertId"] for alert in printed} == {alert.alert_id for alert in made}
    assert state.read_text(encoding="utf-8").startswith(printed[-1]["alertId"])


def test_a_line_of_watch_shows_no_control_characters_of_the_llm() -> None:
    nasty = alert(description="\x1b[2J\x1b]0;owned\x07 a [bold]person[/bold]\nruns", risk_types=("wrong_way",))
    line = line_of(nasty).plain
    assert line.isprintable()
    assert "HIGH    north  open  wrong way: " in line
    assert "[bold]person[/bold] runs" in line


def test_a_token_is_issued_for_a_bridge_that_accepts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DD_REALTIME__TOKEN_SECRET", SECRET)
    result = CliRunner().invoke(cli.app, ["token", "issue", "--name", "Ada", "--role", "admin", "--hours", "1"])
    assert result.exit_code == 0
    caller = Access.of(RealtimeSettings(token_secret=SECRET)).identify(authorization=f"Bearer {result.output.strip()}")
    assert (caller.name, caller.role) == ("Ada", "admin")


@pytest.mark.parametrize("arguments", [["--name", "Ada"], ["--name", "Ada", "--role", "root"]])
def test_what_no_token_can_be_made_of_is_an_error(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if "--role" in arguments:
        monkeypatch.setenv("DD_REALTIME__TOKEN_SECRET", SECRET)
    result = CliRunner().invoke(cli.app, ["token", "issue", *arguments])
    assert isinstance(result.exception, ConfigError)


# bridges behind a load balancer


async def test_bridges_killed_in_turn_lose_and_double_no_alert(
    ledger: Engine, database: DatabaseSettings, tmp_path: Path
) -> None:
    try:
        broker = EmbeddedBroker().start()
    except DangerousDrivingError as error:
        missing_component(f"no embedded broker: {error}")
        raise
    with broker:
        kafka = embedded_kafka_settings(broker.bootstrap_servers)
        outcome = await prove(tmp_path, ledger, database, kafka, seconds=12, clients=10, kills=2)
    assert outcome.alerts >= 20
    assert outcome.held, outcome


async def test_the_program_of_the_documentation_acknowledges_what_comes(bridge: RunningBridge) -> None:
    page = (REPOSITORY / "docs" / "realtime.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0].replace("http://127.0.0.1:8080", bridge.url)
    names: dict[str, Any] = {}
    exec(code.replace("asyncio.run(main())", ""), names)  # noqa: S102 - ours
    task = asyncio.create_task(names["main"]())
    judged: str | None = None
    async with asyncio.timeout(60):
        while judged is None:  # the first may be made before the program is connected
            made = await in_thread(
                bridge, f"camera-{len(bridge.producer.sent)}-{asyncio.get_running_loop().time():.0f}"
            )
            await asyncio.sleep(0.5)
            kept = await asyncio.to_thread(ledger_alerts.get_alert, bridge.engine, made.alert_id)
            judged = kept.verdict_by if kept else None
    assert judged == "night shift"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
