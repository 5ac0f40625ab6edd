"""Random arrivals and faults over several processes: no limit is ever exceeded by the provider's own count, and while a
healthy key exists the pool goes on. The clock is simulated; processes share the windows as they do through the database."""

from __future__ import annotations

import random
from bisect import bisect_right
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dangerous_driving.assessment.key_pool.core import Account, ahead, decide, settle
from dangerous_driving.assessment.key_pool.health import Grant, Key, KeyState, Outcome, Policy, Report, Request
from dangerous_driving.assessment.key_pool.leases import Lease
from dangerous_driving.errors import KeyRejectedError, LlmTimeoutError, LlmUnavailableError, RateLimitedError

POLICY = Policy(window_margin=0.25, lease=0.5)


@dataclass
class Provider:
    """Counts a request when it arrives, in exact sliding windows, and never forgets."""

    keys: dict[str, Key]
    arrived: dict[str, list[float]] = field(default_factory=dict)
    exceeded: list[tuple[str, float]] = field(default_factory=list)

    def take(self, name: str, at: float) -> bool:
        times = self.arrived.setdefault(name, [])
        key = self.keys[name]
        fits = all(
            len(times) - bisect_right(times, at - length) < limit
            for limit, length in ((key.qps_limit, POLICY.second), (key.rpm_limit, POLICY.minute))
        )
        if not fits:
            self.exceeded.append((name, at))
        times.append(at)
        times.sort()
        return fits


class Shared:
    """What the database holds: one exchange at a time."""

    def __init__(self, keys: list[Key]) -> None:
        self.accounts = {key.key_hash: Account(key) for key in keys}


class Process:
    """A lease holder as `PostgresStorage` is one, without the database."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.lease = Lease(POLICY)
        self.reports: list[Report] = []

    def grants(self, requests: list[Request], now: float) -> list[Grant]:
        accounts = self.shared.accounts
        for slot in self.lease.give_back(now):
            accounts[slot.key_hash].remove(slot.lane, slot.reserved_at)
        given = [self.lease.take(request, now) for request in requests]
        left = [request for request, grant in zip(requests, given, strict=True) if grant is None]
        if left or self.reports:
            for report in self.reports:
                settle(accounts[report.grant.key_hash], report, now=now, policy=POLICY)
                if report.outcome not in {"ok", "cancelled"}:
                    for slot in self.lease.drop(report.grant.key_hash):
                        accounts[slot.key_hash].remove(slot.lane, slot.reserved_at)
            self.reports = []
            decision = decide(accounts, left, now=now, policy=POLICY)
            given += decision.grants
            for urgent in (True, False):
                slots = ahead(
                    accounts,
                    "realtime" if urgent else "window",
                    waiting=sum(
                        grant is None and request.urgent is urgent
                        for request, grant in zip(left, decision.grants, strict=True)
                    ),
                    expected=self.lease.expected(urgent=urgent, now=now),
                    now=now,
                    until=now + POLICY.lease,
                    policy=POLICY,
                )
                self.lease.put(slots)
        found = [grant for grant in given if grant is not None]
        for grant in found:
            self.lease.used(urgent=grant.lane == "realtime", now=now)
        return found


FAULTS: list[Outcome] = [
    LlmUnavailableError("503", http_status=503),
    LlmTimeoutError("slow"),
    RateLimitedError("429", http_status=429, retry_after=2.0),
    "cancelled",
    "unsent",
    KeyRejectedError("401", http_status=401),
]


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 90)), min_size=1, max_size=3),
    st.integers(1, 4),
    st.integers(0, 2**32),
    st.floats(0.05, 20.0),
    st.floats(0.0, 0.3),
    st.floats(0.0, 0.02),
)
def test_no_key_exceeds_a_limit_by_the_providers_count_and_the_pool_goes_on(  # noqa: C901  # a simulation
    limits: list[tuple[int, int]], count: int, seed: int, rate: float, faults: float, deaths: float
) -> None:
    chance = random.Random(seed)  # noqa: S311
    keys = [Key(f"k{number}", qps, rpm) for number, (qps, rpm) in enumerate(limits)]
    shared, provider = Shared(keys), Provider({key.key_hash: key for key in keys})
    processes = [Process(shared) for _ in range(count)]
    under_way: list[tuple[float, int, Process, Grant, Outcome]] = []
    now, served, steps = 1000.0, 0, 0
    while now < 1090.0:
        steps += 1
        now += chance.expovariate(rate * 4)
        for entry in [entry for entry in under_way if entry[0] <= now]:
            under_way.remove(entry)
            entry[2].reports.append(Report(entry[3], entry[4]))
        number = chance.randrange(count)
        if chance.random() < deaths:
            processes[number] = Process(shared)  # killed: what it held in hand is used by nobody
        process = processes[number]
        lanes = ["realtime" if chance.random() < 0.5 else "window" for _ in range(chance.randint(1, 6))]
        for grant in process.grants([Request(lane) for lane in lanes], now):
            outcome: Outcome = chance.choice(FAULTS) if chance.random() < faults else "ok"
            if isinstance(outcome, KeyRejectedError) and chance.random() < 0.8:
                outcome = "ok"  # else all keys are gone at once
            if outcome != "unsent":
                # its way takes a moment, of which the margin allows what a slot's validity leaves
                provider.take(grant.key_hash, max(now, grant.reserved_at) + chance.uniform(0, 0.1))
                served += 1
            under_way.append((now + chance.uniform(0.2, 3.0), steps, process, grant, outcome))
    assert provider.exceeded == []
    healthy = [account for account in shared.accounts.values() if account.health.state is not KeyState.DISABLED]
    if healthy:
        # with no more faults somebody is served within the time that a key may rest
        for process in processes:
            process.reports.clear()
        while now < 1090.0 + 3 * 60 + POLICY.probe_timeout:
            now += 0.5
            found = processes[0].grants([Request("realtime"), Request("window")], now)
            for grant in found:
                processes[0].reports.append(Report(grant, "ok"))
            if found:
                return
        pytest.fail(f"nobody was served: {shared.accounts}")


def test_slots_ahead_leave_room_for_a_realtime_request_between_them() -> None:
    keys = [Key("k0", 10, 300)]
    shared = Shared(keys)
    process, other = Process(shared), Process(shared)
    now = 1000.0
    for _ in range(40):  # a backlog of the window lane in one process
        now += 0.05
        process.grants([Request("window")] * 20, now)
    waited = 0.0
    while not other.grants([Request("realtime")], now + waited):
        waited += 0.01
    assert waited < 0.3


def test_a_slot_is_good_for_a_moment_and_then_goes_back() -> None:
    lease = Lease(POLICY)
    lease.put([Grant("k0", "realtime", 10.0), Grant("k0", "realtime", 10.2)])
    assert lease.take(Request("realtime"), 9.9) is None
    assert lease.waits([Request("realtime")] * 3, 9.9)[:2] == pytest.approx([0.1, 0.3])
    assert [slot.reserved_at for slot in lease.give_back(10.15)] == [10.0]
    assert lease.take(Request("realtime", frozenset({"k0"})), 10.25) is None
    assert lease.take(Request("window"), 10.25) is None  # it would eat the reserve
    assert lease.take(Request("realtime"), 10.25) is not None
