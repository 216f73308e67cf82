"""Pace: a fleet comes back evenly, a lone node at once; the clock is a number here."""

from collections import Counter

import pytest

from edge.routing import pace as paces
from edge.routing.accepting import TURN
from edge.routing.pace import AT_ONCE, DOUBLED, FIRST, LATE, MOST, Pace

SPAN = 30
"""Seconds in which a thousand are to be back (their highest rate at most 3 times the mean)."""


def accepted(pace: Pace, knocks: list[float], until: float, late: float = 0.0) -> list[float]:
    """When those who knock are accepted, by turns as accepting.py makes them."""
    waiting, taken, turn = sorted(knocks), [], 0
    while waiting and turn * TURN < until:
        now = turn * TURN
        for _ in range(pace.allowed(now, late)):
            if waiting and waiting[0] <= now:
                waiting.pop(0)
                taken.append(now)
                pace.took()
        turn += 1
    return taken


def peak(moments: list[float]) -> int:
    """Most of them in any second."""
    return max(sum(begin <= at < begin + 1 for at in moments) for begin in moments)


@pytest.mark.parametrize("spread", [0.0, 0.5, 2.0, 10.0])
def test_a_thousand_come_back_evenly(spread: float) -> None:
    knocks = [n * spread / 1000 for n in range(1000)]
    moments = accepted(Pace(0.0), knocks, SPAN)
    assert len(moments) == 1000, "nobody is lost"
    assert moments[-1] <= DOUBLED
    assert peak(moments) <= 3 * 1000 / SPAN


@pytest.mark.parametrize("since", [0.0, 0.4, 7.0, 100.0])
def test_who_comes_alone_is_accepted_at_once(since: float) -> None:
    pace = Pace(0.0)
    assert pace.allowed(since) >= 1
    assert accepted(Pace(0.0), [since], 200) == pytest.approx([since], abs=TURN)


def test_a_small_fleet_is_accepted_at_once() -> None:
    assert Pace(0.0).allowed(0.0) == 6


def test_the_pace_doubles() -> None:
    pace = Pace(100.0)
    assert [pace.rate(100.0 + at) for at in (-5, 0, 19.9, 20, 40, 60, 80, 1e9)] == [
        FIRST, FIRST, FIRST, 2 * FIRST, 4 * FIRST, 8 * FIRST, MOST, MOST,
    ]  # fmt: skip
    counted = Counter(int(at // 20) for at in accepted(Pace(0.0), [0.0] * 4000, 100))
    assert counted[0] == pytest.approx(20 * FIRST, abs=10)
    assert counted[1] == pytest.approx(40 * FIRST, abs=10)
    assert counted.total() == 4000


def test_where_nobody_comes_back_there_is_no_slow_start() -> None:
    assert Pace().rate(0.0) == MOST
    assert len(accepted(Pace(), [0.0] * 1000, 1.3)) == 1000
    assert Pace().allowed(0.0) == AT_ONCE


def test_a_loop_that_does_not_keep_up_lets_in_one_at_most_but_always_one() -> None:
    pace = Pace()
    assert [pace.allowed(now, LATE + 0.01) for now in (0.0, 1.0, 2.0)] == [1, 1, 1]
    assert pace.allowed(3.0, LATE) == AT_ONCE
    moments = accepted(Pace(), [0.0] * 50, 10, late=1.0)
    assert len(moments) == len(set(moments)) == 50


def test_what_was_not_used_is_not_saved_up() -> None:
    pace = Pace(0.0)
    pace.allowed(0.0)
    assert pace.allowed(19.0) == FIRST * paces.SAVED
    for _ in range(6):
        pace.took()
    assert pace.allowed(19.0) == 0
    assert pace.allowed(18.0) == 0, "a clock that goes back gives nothing"
