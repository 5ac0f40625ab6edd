"""The lifecycle on simulated scenes with exact truth; `python -m benchmarks.alerts` does all of them and prints shares."""

from __future__ import annotations

import pytest

from benchmarks.alerts import Look, run_scene, score
from dangerous_driving.alerts.lifecycle import Lifecycle
from dangerous_driving.settings import AlertsSettings
from dangerous_driving.simulation.scenes import Light, Scenario, Scene, SceneSpec

PAIR, OTHER = (frozenset({1, 2}), frozenset({"between vehicles"})), (frozenset({3, 4}), frozenset({"wrong_way"}))


def look(task: str, at: float, *dangers: tuple[frozenset[int], frozenset[str]]) -> Look:
    return Look(task, at, frozenset().union(*(who for who, _ in dangers)), dangers)


LOOKS = [look("a", 0, PAIR), look("b", 1.8, PAIR), look("c", 1.8, OTHER), look("d", 3.6, OTHER)]


@pytest.mark.parametrize(
    ("alerts", "split", "merged"),
    [
        ({"x": {"a", "b"}, "y": {"c", "d"}}, 0, 0),
        ({"x": {"a"}, "z": {"b"}, "y": {"c", "d"}}, 1, 0),
        ({"x": {"a", "b", "c", "d"}}, 0, 1),
        ({"x": {"a", "c"}, "y": {"b", "d"}}, 2, 2),
        ({}, 0, 0),
    ],
)
def test_the_score_counts_splits_and_merges(alerts: dict[str, set[str]], split: int, merged: int) -> None:
    found = score(LOOKS, alerts, 5.4)
    assert (found.dangers, found.split, found.merged) == (2, split, merged)


def test_dangers_in_one_group_or_one_after_the_other_with_the_same_road_user_are_one() -> None:
    together = [*LOOKS, look("e", 5.4, PAIR, OTHER)]
    assert score(together, {}, 5.4).dangers == 1
    assert score([look("a", 0, PAIR), look("b", 9, PAIR)], {}, 5.4).dangers == 2


@pytest.mark.parametrize("scenario", [Scenario.STEPPING_OUT, Scenario.WRONG_WAY, Scenario.TAILGATING])
def test_on_a_scene_with_missed_frames_and_late_answers_each_danger_is_one_alert(scenario: Scenario) -> None:
    spec = SceneSpec(scenario, Light.DUSK, seed=90_000)
    found = run_scene(spec, answers="truth", interval=1.8, lifecycle=Lifecycle(AlertsSettings()), seed=1, periods=1)
    assert found.found >= 1
    assert (found.split, found.merged, found.without_danger) == (0, 0, 0)


def test_an_outline_has_the_boxes_and_dangers_of_the_picture() -> None:
    scene = Scene(SceneSpec(Scenario.STEPPING_OUT, seed=90_000, width=640, height=360))
    frame, outline = scene.frame(9.0), scene.outline(9.0)
    drawn = {thing.actor_id: thing.bbox for thing in frame.objects}
    told = {thing.actor_id: thing.bbox for thing in outline.objects}
    both = drawn.keys() & told.keys()
    assert len(both) >= 0.8 * max(len(drawn), len(told)) > 0
    for actor in both:
        near = max(12.0, 0.2 * (drawn[actor][2] - drawn[actor][0]))
        assert all(abs(one - other) <= near for one, other in zip(drawn[actor], told[actor], strict=True)), actor
    assert {(group.risk_type, frozenset(group.actor_ids)) for group in frame.groups if group.dangerous} == {
        (danger.risk_type, frozenset(danger.actor_ids)) for danger in outline.dangers
    }
