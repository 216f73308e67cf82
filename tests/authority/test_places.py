"""So many requests at once, and so many of each caller."""

from edge.authority.places import Places
from tests.people import person

ALICE, BOB, CAROL = (person(name).identifier for name in ("alice", "bob", "carol"))


def test_each_has_some_and_all_have_more() -> None:
    places = Places(3, 2)
    assert [places.take(ALICE) for _ in range(3)] == [True, True, False]
    assert [places.take(who) for who in (BOB, CAROL)] == [True, False]
    assert (places.taken, places.of(ALICE), places.of(BOB), places.of(CAROL)) == (3, 2, 1, 0)
    places.leave(ALICE)
    assert [places.take(who) for who in (CAROL, ALICE)] == [True, False]


def test_who_has_left_is_forgotten() -> None:
    places = Places(3, 2)
    for who in (ALICE, BOB):
        assert places.take(who)
        places.leave(who)
    assert (places.taken, places._of) == (0, {})
