"""Who is no member any more: asked for through whatever channel there is, while it is there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from edge.authority.changes import Changed, Told
from edge.authority.client import Client
from edge.node.revocations import FIRST_PAUSE, Revocations
from edge.routing.hop import Gate
from tests.people import person

ALICE, BOB = person("alice").identifier, person("bob").identifier


class Channel:
    def __init__(self) -> None:
        self.gate = Gate()
        self.closed = False

    def end(self) -> None:
        self.closed = True
        self.gate.lost("gone")


class Asked:
    """Answers in turn: what is told, an error, or `None` for an answer that never comes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: Told | Exception | None) -> None:
        self.answers = list(answers)
        self.since: list[int] = []
        self.pauses: list[float] = []
        self.heard: list[Changed] = []
        self.channel: Channel | None = Channel()
        asked = self

        async def changes(client: Client, since: int) -> Told:
            asked.since.append(since)
            if not asked.answers:
                await asyncio.Event().wait()
            answer = asked.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            if answer is None:
                await asyncio.Event().wait()
            assert isinstance(answer, Told)
            return answer

        monkeypatch.setattr(Client, "changes", changes)

    async def channel_of(self) -> Any:
        return self.channel

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(0)

    def run(self, done: Callable[[Revocations], object], then: Callable[[], object] = int) -> None:
        async def main() -> None:
            made = self.made = Revocations(
                None, self.channel_of, self.heard.append, sleep=self.sleep,  # type: ignore[arg-type]
            )  # fmt: skip
            task = asyncio.create_task(made.keep())
            async with asyncio.timeout(5):
                while not done(made):
                    await asyncio.sleep(0)
                then()
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled()

        asyncio.run(main())


def test_each_answer_says_what_to_ask_next(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Changed(ALICE, True, 5), Changed(BOB, False, 6)
    asked = Asked(monkeypatch, Told(7, [first]), Told(7, []), Told(9, [second]))
    asked.run(lambda made: len(asked.since) == 4)
    assert asked.since == [0, 7, 7, 9]
    assert asked.heard == [first, second]
    assert asked.pauses == []
    told = asyncio.run(asked.made.bulletin.since(7))
    assert told == Told(9, [second]), "a hub passes it on under the authority's numbers"


def test_while_there_is_no_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch)
    asked.channel = None
    asked.run(lambda made: len(asked.pauses) == 3)
    assert (asked.since, set(asked.pauses)) == ([], {FIRST_PAUSE})


def test_a_channel_that_ends_ends_the_question(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch, None, Told(3, []))

    def end() -> None:
        assert asked.channel is not None
        asked.channel.end()
        asked.channel = Channel()

    asked.run(lambda made: len(asked.since) == 1, end)
    assert asked.since[:2] == [0, 0]
    assert asked.made.bulletin.number == 3
