"""The simulated endpoint's limits, faults and latencies, with a simulated clock."""

import statistics
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from dangerous_driving.assessment.keys import Key
from dangerous_driving.simulation.llm_endpoint import Action, Plan, Refusal, SimulatedEndpoint

KEY = Key(SecretStr("sk-a"), qps_limit=3, rpm_limit=5)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def endpoint(clock: Clock, *keys: Key) -> SimulatedEndpoint:
    return SimulatedEndpoint(keys or (KEY,), clock=clock)


def status(verdict: Plan | Refusal) -> int:
    return verdict.status if isinstance(verdict, Refusal) else 200


# whole parts of a second that add up without rounding, as a window is exact only then
@given(st.lists(st.integers(0, 20 * 1024).map(lambda parts: parts / 1024), min_size=20, max_size=60))
def test_the_limits_are_exact_sliding_windows(pauses: list[float]) -> None:
    clock = Clock()
    simulated = endpoint(clock)
    accepted: list[float] = []
    for pause in pauses:
        clock.now += pause
        verdict = simulated.admit("sk-a")
        room = sum(at > clock.now - 1 for at in accepted) < 3 and sum(at > clock.now - 60 for at in accepted) < 5
        assert status(verdict) == (200 if room else 429)
        if room:
            accepted.append(clock.now)
        elif isinstance(verdict, Refusal):
            assert verdict.retry_after is not None
            later = clock.now + verdict.retry_after
            assert sum(at > later - 1 + 1e-6 for at in accepted) < 3
            assert sum(at > later - 60 + 1e-6 for at in accepted) < 5
    assert simulated.state()["rate_limited"] == len(pauses) - len(accepted)


def test_only_listed_keys_are_accepted_and_without_a_list_all_are(clock: Clock) -> None:
    assert status(endpoint(clock).admit("sk-b")) == 401
    assert status(endpoint(clock).admit("")) == 401
    anybody = SimulatedEndpoint(clock=clock)
    assert status(anybody.admit("sk-b")) == 200
    assert status(anybody.admit("")) == 401


def test_faults_of_a_key_and_of_the_whole_endpoint(clock: Clock) -> None:
    other = Key(SecretStr("sk-b"), qps_limit=10, rpm_limit=100)
    simulated = endpoint(clock, KEY, other)
    assert simulated.change(KEY.key_hash, Action.REVOKE, 403)
    assert [status(simulated.admit(secret)) for secret in ("sk-a", "sk-b")] == [403, 200]
    assert simulated.change(None, Action.BREAK, 1.0)
    assert [status(simulated.admit(secret)) for secret in ("sk-a", "sk-b")] == [403, 503]
    assert simulated.change(None, Action.RESTORE, 1.0)
    assert [status(simulated.admit(secret)) for secret in ("sk-a", "sk-b")] == [200, 200]
    assert simulated.change(other.key_hash, Action.THROTTLE, 0.0)
    assert status(simulated.admit("sk-b")) == 429
    assert not simulated.change("key_hash_unknown", Action.RESTORE, 1.0)


@pytest.mark.parametrize(
    ("action", "amount"), [(Action.REVOKE, 500), (Action.SLOW, 0), (Action.BREAK, 1.5), (Action.THROTTLE, -0.1)]
)
def test_amounts_without_sense_are_refused(clock: Clock, action: Action, amount: float) -> None:
    with pytest.raises(ValueError, match="does not take"):
        endpoint(clock).change(None, action, amount)


def test_latencies_have_the_stated_medians_and_tails(clock: Clock) -> None:
    simulated = SimulatedEndpoint(clock=clock, qps_limit=10**6, rpm_limit=10**6)
    plans = [plan for _ in range(4000) if isinstance(plan := simulated.admit("sk-a"), Plan)]
    for values, median, tail in (
        ([plan.first_token for plan in plans], 0.4, 0.8),
        ([plan.whole for plan in plans], 1.2, 2.5),
    ):
        assert statistics.median(values) == pytest.approx(median, rel=0.05)
        assert statistics.quantiles(values, n=20)[-1] == pytest.approx(tail, rel=0.08)
    assert all(plan.first_token < plan.whole for plan in plans)


def test_the_seed_repeats_and_speed_divides(clock: Clock) -> None:
    def first_tokens(seed: int, speed: float) -> list[float]:
        simulated = SimulatedEndpoint(clock=clock, seed=seed, speed=speed)
        return [plan.first_token for _ in range(5) if isinstance(plan := simulated.admit("sk-a"), Plan)]

    assert first_tokens(1, 1.0) == first_tokens(1, 1.0) != first_tokens(2, 1.0)
    assert first_tokens(1, 4.0) == pytest.approx([value / 4 for value in first_tokens(1, 1.0)])


def test_rates_are_kept(clock: Clock) -> None:
    simulated = SimulatedEndpoint(clock=clock, qps_limit=10**6, rpm_limit=10**6)
    simulated.change(None, Action.BREAK, 0.1)
    simulated.change(None, Action.GARBAGE, 0.2)
    verdicts = [simulated.admit("sk-a") for _ in range(5000)]
    assert sum(map(status, verdicts)) == pytest.approx(5000 * (0.9 * 200 + 0.1 * 503), rel=0.02)
    plans = [verdict for verdict in verdicts if isinstance(verdict, Plan)]
    assert sum(plan.garbage for plan in plans) / len(plans) == pytest.approx(0.2, abs=0.03)


def test_the_state_counts_and_shows_no_secret(clock: Clock) -> None:
    simulated = endpoint(clock)
    for _ in range(4):
        simulated.admit("sk-a")
    simulated.admit("sk-unknown")
    state = simulated.state()
    assert (state["requests"], state["rate_limited"], state["unknown_keys"], state["simulated"]) == (5, 1, 1, True)
    (key,) = state["keys"]
    assert (key["requests"], key["rate_limited"], key["accepted_in_minute"]) == (4, 1, 3)
    assert "sk-" not in str(state)
    assert all(earlier <= later for earlier, later in pairwise([0.0, key["last_request_at"]]))


def test_a_request_about_several_groups_takes_longer_to_write_and_a_little_longer_to_begin(clock: Clock) -> None:
    plan = endpoint(clock).admit("sk-a")
    assert isinstance(plan, Plan)
    assert plan.about(1).whole == pytest.approx(plan.whole)
    three = plan.about(3)
    assert three.first_token == pytest.approx(1.5 * plan.first_token)
    assert three.whole - three.first_token == pytest.approx(3 * (plan.whole - plan.first_token))
