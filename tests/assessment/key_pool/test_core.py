"""The pool's decisions against a brute-force provider, with a simulated clock."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dangerous_driving.assessment.key_pool.core import Account, decide, settle, usage
from dangerous_driving.assessment.key_pool.health import (
    Grant,
    Health,
    Key,
    KeyState,
    Outcome,
    Policy,
    Report,
    Request,
    StatedLimits,
    after,
    key_hash,
)
from dangerous_driving.errors import (
    KeyRejectedError,
    LlmRequestError,
    LlmTimeoutError,
    LlmUnavailableError,
    RateLimitedError,
)

POLICY = Policy(
    window_margin=0.05, burst=1.0
)  # without spread, which holds a key back a little longer than its windows
SPREAD = Policy(window_margin=0.05, burst=0.2)
URGENT, PACED = Request("realtime"), Request("window")
BROKEN = LlmUnavailableError("503", http_status=503)
LIMITED = RateLimitedError("429", http_status=429)
REJECTED = KeyRejectedError("401", http_status=401)


def accounts_of(*limits: tuple[int, int]) -> dict[str, Account]:
    return {f"k{n}": Account(Key(f"k{n}", qps, rpm)) for n, (qps, rpm) in enumerate(limits)}


class Provider:
    """Counts requests as the endpoint does, the slow and obvious way."""

    def __init__(self, accounts: dict[str, Account], policy: Policy) -> None:
        self.accounts, self.policy = accounts, policy
        self.sent: dict[str, list[float]] = {name: [] for name in accounts}

    def has_room(self, name: str, now: float) -> bool:
        key, policy = self.accounts[name].key, self.policy
        return all(
            sum(1 for at in self.sent[name] if at > now - length - policy.window_margin + 1e-9) < limit
            for limit, length in ((key.qps_limit, policy.second), (key.rpm_limit, policy.minute))
        )

    def count(self, grant: Grant) -> None:
        assert self.has_room(grant.key_hash, grant.reserved_at), f"{grant} exceeds a limit"
        self.sent[grant.key_hash].append(grant.reserved_at)


limits = st.tuples(st.integers(1, 12), st.integers(1, 60))
lanes = st.sampled_from(["realtime", "realtime", "window", "inline", "evaluation"])
arrivals = st.lists(st.tuples(st.floats(0, 5), st.lists(lanes, max_size=12)), max_size=60)


@given(st.lists(limits, min_size=1, max_size=4), arrivals, st.sampled_from([POLICY, SPREAD]))
def test_no_window_ever_exceeds_a_limit_and_no_free_slot_is_refused(
    keys: list[tuple[int, int]], steps: list[tuple[float, list[str]]], policy: Policy
) -> None:
    accounts = accounts_of(*keys)
    provider = Provider(accounts, policy)
    now = 0.0
    for pause, wanted in steps:
        now += pause
        requests = [Request(lane) for lane in wanted]
        decision = decide(accounts, requests, now=now, policy=policy)
        for grant in decision.grants:
            if grant is not None:
                provider.count(grant)
        for request, grant, free_at in zip(requests, decision.grants, decision.free_at, strict=True):
            if grant is None:
                assert now < free_at < inf
                if request.urgent and policy is POLICY:
                    # every slot that the provider would accept (but for the margin) was given to somebody
                    assert not any(provider.has_room(name, now - 1e-6) for name in accounts)


@given(st.lists(limits, min_size=1, max_size=3), st.integers(1, 200))
def test_asking_again_at_the_named_instant_is_never_in_vain_and_never_late(
    keys: list[tuple[int, int]], taken: int
) -> None:
    accounts = accounts_of(*keys)
    provider = Provider(accounts, POLICY)
    now = 0.0
    for _ in range(taken):
        decision = decide(accounts, [URGENT], now=now, policy=POLICY)
        while decision.grants[0] is None:
            assert not any(provider.has_room(name, decision.free_at[0] - 1e-6) for name in accounts)
            now = decision.free_at[0]
            decision = decide(accounts, [URGENT], now=now, policy=POLICY)
        provider.count(decision.grants[0])


@pytest.mark.parametrize("policy", [POLICY, SPREAD])
@pytest.mark.parametrize(("count", "qps"), [(1, 10), (10, 10), (1, 11)])  # 11: no multiple of what may leave at once
def test_a_backlog_uses_the_whole_quota(count: int, qps: int, policy: Policy) -> None:
    accounts = accounts_of(*[(qps, 300)] * count)
    provider = Provider(accounts, policy)
    now, minutes = 0.0, 5
    while now < minutes * 60:
        decision = decide(accounts, [URGENT] * 20, now=now, policy=policy)
        for grant in decision.grants:
            if grant is not None:
                provider.count(grant)
        now = max(decision.free_at[-1], now + 0.002)  # 2 ms: a late timer
    used = sum(len(sent) for sent in provider.sent.values()) / (count * 300 * minutes)
    assert used >= 0.98


def test_a_keys_second_is_not_spent_in_one_instant() -> None:
    accounts = accounts_of((10, 300))
    sent: list[float] = []
    now = 0.0
    while len(sent) < 10:
        decision = decide(accounts, [URGENT] * 10, now=now, policy=SPREAD)
        sent += [grant.reserved_at for grant in decision.grants if grant is not None]
        now = max(decision.free_at)
    assert sent == pytest.approx([0, 0, 0.21, 0.21, 0.42, 0.42, 0.63, 0.63, 0.84, 0.84])


@pytest.mark.parametrize(("qps", "rpm"), [(10, 300), (1, 60), (2, 300), (10, 1)])
def test_lower_lanes_are_spread_over_the_minute_and_leave_the_reserve(qps: int, rpm: int) -> None:
    accounts = accounts_of((qps, rpm))
    (account,) = accounts.values()
    whole = min(rpm, qps * 60)
    now, sent = 0.0, []
    while now < 300:
        decision = decide(accounts, [PACED] * 3, now=now, policy=POLICY)
        sent += [grant.reserved_at for grant in decision.grants if grant is not None]
        now = max(decision.free_at)
    gaps = [later - earlier for earlier, later in pairwise(sent)]
    assert min(gaps) >= 60 / whole - 1e-9
    for start in sent:
        assert sum(1 for at in sent if start <= at < start + 60) <= max(whole * 0.8, 1)
    assert len(sent) >= 0.98 * 5 * max(int(whole * 0.8), 1)
    # so a dangerous scene finds room at once
    room = decide(accounts, [URGENT], now=now, policy=POLICY)
    assert room.grants[0] is not None or rpm == 1 or qps == 1
    assert account.share(POLICY) == max(int(whole * 0.8), 1)


def test_realtime_may_use_everything_and_pushes_the_lower_lanes_out() -> None:
    accounts = accounts_of((10, 20))
    decision = decide(accounts, [URGENT] * 16, now=0.0, policy=replace(POLICY, second=0.0))
    assert decision.grants.count(None) == 6  # of the short window
    decide(accounts, [URGENT] * 6, now=10.0, policy=POLICY)
    assert decide(accounts, [PACED], now=20.0, policy=POLICY).grants == (
        None,
    )  # 16 of 20 are used: the rest is reserved
    assert decide(accounts, [URGENT] * 4, now=20.0, policy=POLICY).grants.count(None) == 0


def test_the_least_loaded_key_comes_first() -> None:
    accounts = accounts_of((10, 300), (10, 300), (20, 600))
    decision = decide(accounts, [URGENT] * 40, now=0.0, policy=POLICY)
    given_to = [grant.key_hash for grant in decision.grants if grant is not None]
    assert len(given_to) == 40
    assert [given_to.count(name) for name in accounts] == [10, 10, 20]
    assert len(set(given_to[:3])) == 3


def test_excluded_keys_are_never_chosen() -> None:
    accounts = accounts_of((10, 300), (10, 300))
    decision = decide(
        accounts,
        [Request("realtime", frozenset({"k0"}))] * 5 + [Request("realtime", frozenset(accounts))],
        now=0.0,
        policy=POLICY,
    )
    assert {grant.key_hash for grant in decision.grants if grant} == {"k1"}
    assert decision.grants[5] is None
    assert decision.free_at[5] == inf


outcomes: st.SearchStrategy[Outcome] = st.sampled_from(
    [
        "ok",
        "ok",
        "cancelled",
        BROKEN,
        LlmTimeoutError("slow"),
        LIMITED,
        RateLimitedError("429", http_status=429, retry_after=3.0),
        LlmRequestError("400", http_status=400),
        REJECTED,
    ]
)


@settings(max_examples=200)
@given(st.integers(1, 3), st.lists(st.tuples(st.floats(0, 3), st.lists(outcomes, max_size=4)), max_size=60))
def test_whatever_happens_only_ready_keys_are_chosen_and_the_pool_goes_on(
    count: int, steps: Sequence[tuple[float, list[Outcome]]]
) -> None:
    accounts = accounts_of(*[(10, 100)] * count)
    under_way: list[Grant] = []
    now = 0.0
    for pause, ends in steps:
        now += pause
        for outcome in ends:
            if under_way:
                report = Report(under_way.pop(0), outcome)
                account = accounts[report.grant.key_hash]
                account.health = after(account.health, report, now=now, policy=POLICY)
        before = {name: account.health for name, account in accounts.items()}
        decision = decide(accounts, [URGENT] * 3, now=now, policy=POLICY)
        probes = [grant.key_hash for grant in decision.grants if grant and grant.probe]
        assert len(probes) == len(set(probes))
        for grant in decision.grants:
            if grant is not None:
                health = before[grant.key_hash]
                assert health.state is not KeyState.DISABLED
                assert health.cooling_until <= now
                assert grant.probe == (health.failures >= POLICY.breaker_failures)
                under_way.append(grant)
    # with no more news than good answers, every key that a person did not have to take out comes back
    for _ in range(200):
        now += 1.0
        for grant in under_way:
            account = accounts[grant.key_hash]
            account.health = after(account.health, Report(grant, "ok"), now=now, policy=POLICY)
        decision = decide(accounts, [URGENT] * 2, now=now, policy=POLICY)
        under_way = [grant for grant in decision.grants if grant is not None]
    for account in accounts.values():
        assert account.health.stands(now, POLICY) in {KeyState.AVAILABLE, KeyState.DISABLED}


def report(outcome: Outcome, *, at: float = 0.0, probe: bool = False) -> Report:
    return Report(Grant("k0", "realtime", at, probe), outcome)


def test_a_429_rests_the_key_for_its_retry_after() -> None:
    limited = RateLimitedError("429", http_status=429, retry_after=7.5)
    health = after(Health(), report(limited), now=100.0, policy=POLICY)
    assert (health.state, health.cooling_until) == (KeyState.COOLING, 107.5)
    assert health.stands(107.4, POLICY) is KeyState.COOLING
    assert health.stands(107.5, POLICY) is KeyState.AVAILABLE


@pytest.mark.parametrize(("retry_after", "rest"), [(0.0, 0.05), (1e12, 24 * 3600.0)])
def test_an_absurd_retry_after_is_bounded(retry_after: float, rest: float) -> None:
    limited = RateLimitedError("429", http_status=429, retry_after=retry_after)
    assert after(Health(), report(limited), now=0.0, policy=POLICY).cooling_until == rest


def test_rests_without_retry_after_double_up_to_the_cap_and_a_good_answer_forgets_them() -> None:
    health, now, rests = Health(), 0.0, []
    for _ in range(9):
        health = after(health, report(LIMITED, at=now), now=now, policy=POLICY)
        rests.append(health.cooling_until - now)
        now = health.cooling_until
    assert rests == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    health = after(health, report("ok", at=now), now=now, policy=POLICY)
    assert after(health, report(LIMITED, at=now), now=now, policy=POLICY).cooling_until == now + 1


def test_many_429s_of_one_moment_are_one_rest() -> None:
    health = Health()
    for _ in range(10):
        health = after(health, report(LIMITED, at=0.0), now=0.5, policy=POLICY)
    assert (health.cooling_until, health.coolings) == (1.5, 1)


def test_failures_in_a_row_rest_the_key_and_one_probe_decides() -> None:
    health = Health()
    for _ in range(4):
        health = after(health, report(BROKEN), now=1.0, policy=POLICY)
        assert health.state is KeyState.AVAILABLE
    health = after(health, report(LlmTimeoutError("slow")), now=1.0, policy=POLICY)
    assert (health.state, health.cooling_until) == (KeyState.COOLING, 2.0)

    accounts = accounts_of((10, 300))
    accounts["k0"].health = health
    assert decide(accounts, [PACED], now=1.9, policy=POLICY).free_at == (2.0,)
    first, second = decide(accounts, [PACED, URGENT], now=2.0, policy=POLICY).grants
    assert first is not None
    assert first.probe
    assert second is None  # until the probe has told
    # what left before the rest tells nothing new
    stale = after(accounts["k0"].health, report(BROKEN, at=0.5), now=2.5, policy=POLICY)
    assert stale == accounts["k0"].health

    failed = after(stale, report(BROKEN, at=2.0, probe=True), now=3.0, policy=POLICY)
    assert (failed.state, failed.cooling_until) == (KeyState.COOLING, 5.0)  # twice the rest
    worked = after(stale, report("ok", at=2.0, probe=True), now=3.0, policy=POLICY)
    assert worked.clean
    assert after(worked, report(BROKEN, at=0.5), now=3.0, policy=POLICY).clean  # still no news


@pytest.mark.parametrize("outcome", ["ok", LlmRequestError("400", http_status=400)])
def test_an_answer_ends_the_row_of_failures(outcome: Outcome) -> None:
    health = replace(Health(), failures=4)
    assert after(health, report(outcome), now=1.0, policy=POLICY).failures == 0


def test_a_probe_that_is_never_reported_is_given_up() -> None:
    accounts = accounts_of((10, 300))
    accounts["k0"].health = Health(KeyState.COOLING, cooling_until=1.0, failures=5)
    assert decide(accounts, [PACED], now=1.0, policy=POLICY).grants[0] is not None
    refused = decide(accounts, [PACED], now=2.0, policy=POLICY)
    assert refused.grants == (None,)
    assert decide(accounts, [PACED], now=refused.free_at[0], policy=POLICY).grants[0] is not None


def test_a_cancelled_probe_makes_room_for_another() -> None:
    health = Health(KeyState.COOLING, cooling_until=1.0, failures=5, probing_until=61.0)
    freed = after(health, report("cancelled", at=1.0, probe=True), now=2.0, policy=POLICY)
    assert freed.ready_at(POLICY) == 1.0


def test_urgent_requests_leave_the_probe_to_others_unless_it_is_overdue() -> None:
    accounts = accounts_of((10, 300), (10, 300))
    accounts["k0"].health = Health(KeyState.COOLING, cooling_until=1.0, failures=5)
    assert [grant.key_hash for grant in decide(accounts, [URGENT], now=2.0, policy=POLICY).grants if grant] == ["k1"]
    assert [grant.key_hash for grant in decide(accounts, [URGENT], now=62.0, policy=POLICY).grants if grant] == ["k0"]


@pytest.mark.parametrize("status", [401, 403])
def test_a_rejected_key_is_disabled_until_a_person_enables_it(status: int) -> None:
    health = after(Health(), report(KeyRejectedError("no", http_status=status)), now=1.0, policy=POLICY)
    for outcome in ("ok", LIMITED, BROKEN):
        health = after(health, report(outcome, at=2.0), now=1e9, policy=POLICY)
    assert health.state is KeyState.DISABLED
    assert str(status) in health.reason
    accounts = accounts_of((10, 300))
    accounts["k0"].health = health
    assert decide(accounts, [URGENT], now=1e9, policy=POLICY).free_at == (inf,)


def test_usage_counts_the_providers_windows() -> None:
    accounts = accounts_of((10, 300))
    for at in (0.0, 59.0, 59.5, 60.0):
        accounts["k0"].add("realtime", at)
    item = usage(accounts["k0"], now=60.2, policy=POLICY)
    assert (item.used_second, item.used_minute, item.status) == (2, 3, "available")


def test_a_hash_names_a_key_without_giving_it_away() -> None:
    assert key_hash("a") == "key_hash_ca978112ca1b"  # sha256 of "a"


def test_a_key_that_has_rested_returns_little_by_little() -> None:
    accounts = accounts_of((10, 300))
    accounts["k0"].health = Health(cooling_until=100.0)
    sent: list[float] = []
    now = 100.0
    while now < 130.0:
        decision = decide(accounts, [URGENT], now=now, policy=replace(POLICY, recovery=10.0))
        if decision.grants[0] is not None:
            sent.append(now)
        else:
            now = decision.free_at[0]
    by_time = [sum(1 for at in sent if at < 100.0 + seconds) for seconds in (2, 5, 10)]
    assert by_time[0] <= 2
    assert by_time[1] <= 8
    assert 20 <= by_time[2] <= 27  # half of what its rate of 5/s gives in 10 s


def test_limits_are_learnt_from_refusals_where_there_was_room_and_rise_again() -> None:
    accounts = accounts_of((10, 300))
    account = accounts["k0"]
    now = 1000.0
    for _ in range(200):  # 200 were taken, the next is refused
        account.add("realtime", now)
        now += 0.2
    refused = RateLimitedError("429", http_status=429, retry_after=20.0)
    settle(account, Report(Grant("k0", "realtime", now), refused), now=now, policy=POLICY)
    assert account.health.learned_rpm == 200
    account.prune(now, POLICY)
    assert (account.rpm, account.qps) == (200, 10)
    account.prune(now + 60, POLICY)
    assert account.rpm == 215
    account.prune(now + 3600, POLICY)
    assert account.rpm == 300  # never above what is configured

    settle(
        account,
        Report(Grant("k0", "realtime", now + 30), RateLimitedError("429", http_status=429, retry_after=0.5)),
        now=now + 30,
        policy=POLICY,
    )
    assert account.health.learned_qps == 5  # halved at most by one lesson


def test_limits_that_the_provider_states_hold_until_it_states_others() -> None:
    account = Account(Key("k0", 10, 300))
    stated = Report(Grant("k0", "realtime", 1.0), "ok", limits=StatedLimits(rpm=60))
    settle(account, stated, now=2.0, policy=POLICY)
    account.prune(7200.0, POLICY)
    assert (account.qps, account.rpm) == (10, 60)
    settle(account, Report(Grant("k0", "realtime", 1.0), "ok", limits=StatedLimits(rpm=500)), now=2.0, policy=POLICY)
    account.prune(7200.0, POLICY)
    assert account.rpm == 300
    assert usage(account, now=7200.0, policy=POLICY).rpm_limit == 300
