"""Truth out of labels, and the two sides of a set."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dangerous_driving.contracts import RiskLevel
from dangerous_driving.evaluation.cases import Label, Split, Truth, below, cluster_of, split_of, truth_of

AT = datetime(2025, 10, 20, 10, tzinfo=UTC)
NONE, LOW, MEDIUM, HIGH = RiskLevel


def label(
    by: str,
    lowest: RiskLevel,
    highest: RiskLevel | None = None,
    *,
    after: int = 0,
    types: tuple[str, ...] | None = None,
) -> Label:
    return Label(by, lowest, highest or lowest, AT + timedelta(minutes=after), types)


def test_one_label_is_the_truth() -> None:
    assert truth_of([label("ann", NONE, LOW)]) == Truth(NONE, LOW)


def test_two_persons_narrow_it_down() -> None:
    assert truth_of([label("ann", NONE, MEDIUM), label("bob", LOW, HIGH)]) == Truth(LOW, MEDIUM)


def test_two_persons_who_contradict_each_other_leave_no_truth() -> None:
    assert truth_of([label("ann", NONE, LOW), label("bob", HIGH)]) is None


def test_whoever_changed_their_mind_counts_with_the_last_word() -> None:
    said = [label("ann", HIGH, after=0), label("ann", NONE, LOW, after=1)]
    assert truth_of(said) == truth_of(said[::-1]) == Truth(NONE, LOW)


def test_types_are_those_of_the_newest_label_that_names_any() -> None:
    said = [label("ann", HIGH, types=("collision",)), label("bob", HIGH, types=("wrong_way",), after=1)]
    assert truth_of([*said, label("cem", MEDIUM, HIGH, after=2)]) == Truth(HIGH, HIGH, ("wrong_way",))


def test_no_label_is_no_truth() -> None:
    assert truth_of([]) is None


def test_levels_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match="above the highest"):
        label("ann", HIGH, LOW)
    assert below(MEDIUM) is LOW
    with pytest.raises(ValueError, match="below none"):
        below(NONE)


@given(st.integers(0, 86_399), st.integers(0, 86_399))
def test_frames_of_one_camera_and_day_are_never_parted(one: int, two: int) -> None:
    day = datetime(2025, 10, 20, tzinfo=UTC)
    sides = {
        split_of(cluster_of("north-1", day + timedelta(seconds=second)), held_out_share=0.5) for second in (one, two)
    }
    assert len(sides) == 1


def test_both_sides_get_about_their_share_and_a_larger_share_takes_none_back() -> None:
    clusters = [f"camera-{number}/2025-10-20" for number in range(2000)]
    small = {name for name in clusters if split_of(name, held_out_share=0.3) is Split.HELD_OUT}
    large = {name for name in clusters if split_of(name, held_out_share=0.5) is Split.HELD_OUT}
    assert 500 < len(small) < 700
    assert small < large
