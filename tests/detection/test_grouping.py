from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dangerous_driving.detection.grouping import as_boxes, group_boxes, union_box


def around(*centres: tuple[float, float], side: float = 20.0) -> list[tuple[float, float, float, float]]:
    return [(x - side / 2, y - side / 2, x + side / 2, y + side / 2) for x, y in centres]


def groups(centres: list[tuple[float, float]], width: int = 1920, distance: float = 150.0) -> list[list[int]]:
    return [group.tolist() for group in group_boxes(as_boxes(around(*centres)), width, distance)]


def test_a_chain_of_neighbours_is_one_group_however_far_its_ends_are_apart() -> None:
    assert groups([(100 + 150 * n, 50) for n in (3, 0, 4, 1, 2)]) == [[0, 1, 2, 3, 4]]


def test_boxes_further_apart_than_the_distance_are_alone_and_make_no_group() -> None:
    assert groups([(100, 100), (250.1, 100), (100, 900)]) == []
    assert groups([(100, 100), (250, 100), (100, 900)]) == [[0, 1]]


def test_the_distance_is_scaled_with_the_width_of_the_frame() -> None:
    assert groups([(100, 100), (175, 100)], width=960) == [[0, 1]]
    assert groups([(100, 100), (176, 100)], width=960) == []


def test_groups_come_in_the_order_of_their_first_box() -> None:
    assert groups([(1500, 10), (10, 10), (1510, 10), (20, 10)]) == [[0, 2], [1, 3]]


def test_nothing_and_one_box_make_no_group() -> None:
    assert groups([]) == []
    assert groups([(10, 10)]) == []


def test_the_union_box_is_around_all() -> None:
    assert union_box(as_boxes([(120, 200, 360, 520), (330, 300, 400, 540)])) == (120, 200, 400, 540)


def reference(centres: list[tuple[float, float]], reach: float) -> set[frozenset[int]]:
    """Single linkage by walking from box to box."""
    left, found = set(range(len(centres))), set()
    while left:
        reached, edge = set(), {left.pop()}
        while edge:
            here = edge.pop()
            reached.add(here)
            near = {i for i in left if np.square(np.subtract(centres[i], centres[here])).sum() <= reach * reach}
            left -= near
            edge |= near
        if len(reached) > 1:
            found.add(frozenset(reached))
    return found


points = st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 600)), max_size=40)


@given(points)
def test_groups_are_those_of_a_plain_search(centres: list[tuple[int, int]]) -> None:
    found = groups([(float(x), float(y)) for x, y in centres], distance=100.0)
    assert {frozenset(group) for group in found} == reference([(float(x), float(y)) for x, y in centres], 100.0)
    assert all(group == sorted(group) for group in found)
    assert [group[0] for group in found] == sorted(group[0] for group in found)


@given(st.permutations(range(60)))
def test_a_long_chain_in_any_order_is_one_group(order: list[int]) -> None:
    assert groups([(100.0 * n, 0.0) for n in order], distance=100.0) == [list(range(60))]
