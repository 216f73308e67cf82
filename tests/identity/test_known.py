"""What we remember of identities: never back, and never too much (02 §3.4, §10)."""

import pytest

from edge.errors import TrustError
from edge.identity.known import Known, Verdict
from tests.people import Person, person, seed
from tests.people import ed25519 as key

ALICE = person("alice")
LATER = ALICE.rotate(key(seed("second")))
OTHER = ALICE.rotate(key(seed("conflict")))


def test_new_same_newer() -> None:
    known = Known()
    assert known.check(ALICE.history) is Verdict.NEW
    assert known.get(ALICE.identifier) is None
    assert known.learn(ALICE.history) is Verdict.NEW
    assert known.check(ALICE.history) is Verdict.SAME
    assert known.learn(LATER.history) is Verdict.NEWER
    assert known.get(ALICE.identifier) is LATER.history


@pytest.mark.parametrize("bad", [ALICE, OTHER])
def test_older_and_conflicting(bad: Person) -> None:
    known = Known()
    known.learn(LATER.history)
    for ask in (known.check, known.learn):
        with pytest.raises(TrustError):
            ask(bad.history)
    assert known.get(ALICE.identifier) is LATER.history


def test_the_least_recently_used_goes_first_but_no_pinned_one() -> None:
    people = [person(str(n)) for n in range(6)]
    known = Known(capacity=3, pinned=[people[0].identifier])
    for one in people[:3]:
        known.learn(one.history)
    known.check(people[1].history)
    for one in people[3:5]:
        known.learn(one.history)
    kept = [one for one in people if known.get(one.identifier)]
    assert kept == [people[0], people[3], people[4]]
    known.pinned.update(one.identifier for one in people)
    known.learn(people[5].history)
    assert known.size == 4


def test_large_histories_take_the_room_of_many() -> None:
    people = [person(str(n)) for n in range(4)]
    size = len(people[0].history.encoded)
    known = Known(pinned=[people[0].identifier], most_bytes=3 * size)
    for one in people:
        known.learn(one.history)
    kept = [one for one in people if known.get(one.identifier)]
    assert kept == [people[0], people[2], people[3]]
    later = people[3].rotate(key(seed("later")))
    assert known.learn(later.history) is Verdict.NEWER
    assert known.size == 1 + (len(later.history.encoded) <= 2 * size)
