"""A node asks who is no member any more: from where it stands, and anew where the numbers went back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from edge.authority.changes import Changed, Told
from edge.authority.registry import Change
from edge.errors import NetworkError
from edge.node.revocations import FIRST_PAUSE, LAST_PAUSE, Revocations
from edge.routing.router import Router
from edge.routing.secure import SecureChannel
from tests.people import NOW, person

ALICE, BOB = (Changed(person(name).identifier, True, NOW) for name in ("alice", "bob"))


class Asked(Revocations):
    """Its answers are written down before; after the last it is cancelled."""

    def __init__(self, *answers: Told | NetworkError | None) -> None:
        self.told: list[Changed] = []
        self.asked: list[int] = []
        self.pauses: list[float] = []
        self._answers = list(answers)
        super().__init__(Router(), self._channel_, self.told.append, sleep=self._paused)

    async def _channel_(self) -> SecureChannel | None:
        raise AssertionError

    async def _paused(self, seconds: float) -> None:
        self.pauses.append(seconds)

    async def _ask(self) -> Told | None:
        self.asked.append(self.bulletin.number)
        if not self._answers:
            raise asyncio.CancelledError
        answer = self._answers.pop(0)
        if isinstance(answer, NetworkError):
            raise answer
        return answer

    def played(self) -> Asked:
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(self.keep())
        return self


def test_each_question_goes_on_from_the_last_answer() -> None:
    one = Asked(Told(3, [ALICE]), Told(3, []), Told(7, [BOB])).played()
    assert (one.asked, one.told) == ([0, 3, 3, 7], [ALICE, BOB])


def test_an_authority_from_a_backup_is_asked_for_everything() -> None:
    one = Asked(Told(60, [ALICE]), Told(55, []), Told(55, [ALICE, BOB])).played()
    assert one.asked == [0, 60, 0, 55]
    assert one.told == [ALICE, ALICE, BOB]
    assert asyncio.run(one.bulletin.since(53)) == Told(55, [ALICE, BOB])


def test_pauses_grow_while_nobody_answers(caplog: pytest.LogCaptureFixture) -> None:
    away: Sequence[NetworkError] = [NetworkError("away")] * 7
    one = Asked(*away, None, Told(1, [ALICE]), NetworkError("away")).played()
    assert one.pauses == [1, 2, 4, 8, 16, 30, LAST_PAUSE, FIRST_PAUSE, FIRST_PAUSE]
    assert len(caplog.records) == 2, "the same failure is said once"
    assert one.told == [ALICE]


def test_what_was_heard_before_a_restart_holds() -> None:
    kept: list[Change] = []

    class Kept(Asked):
        def __init__(self, *answers: Told, known: Sequence[Change] = ()) -> None:
            super().__init__(*answers)
            Revocations.__init__(
                self, Router(), self._channel_, self.told.append, known=known, keep=kept.extend,
                sleep=self._paused,
            )  # fmt: skip

    one = Kept(Told(3, [ALICE]), Told(3, []), Told(9, [BOB])).played()
    assert [change[1:] for change in kept] == [ALICE, BOB]
    again = Kept(known=kept).played()
    assert again.told == one.told
    assert again.asked == [9]
    assert asyncio.run(again.bulletin.since(3)) == Told(9, [BOB])
