"""ChangesDesk: a hub tells the nodes behind it who is no member any more, as the authority told it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

from edge.authority.changes import Bulletin, decode_question, encode_told
from edge.authority.places import Places
from edge.authority.service import CHANGES, PER_WAITER, WAITING
from edge.errors import DecodeError
from edge.identity.history import Identifier
from edge.routing.hop import Message
from edge.routing.reach import Origin, Wiring
from edge.routing.router import Router
from edge.wire.api import Failure, Request, Response, Status
from edge.wire.route import Route


class ChangesDesk:
    """Answers members, at the same address as an authority does."""

    def __init__(
        self,
        router: Router,
        wiring: Wiring,
        bulletin: Callable[[], Bulletin],
        is_member: Callable[[Identifier], bool],
    ) -> None:
        self._router, self._wiring = router, wiring
        self._bulletin, self._is_member = bulletin, is_member
        self._waiting = Places(WAITING, PER_WAITER)
        self._tasks: set[asyncio.Task[None]] = set()
        self._back = Route.of(CHANGES)
        router.add(CHANGES, self)
        wiring.open(CHANGES, Origin.CHANNEL)

    async def close(self) -> None:
        self._router.remove(CHANGES)
        self._wiring.shut(CHANGES)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def deliver(self, message: Message) -> None:
        peer = message.flow.peer if message.flow is not None else None
        if peer is None:
            return
        try:
            request = Request.decode(bytes(message.payload))
            since = decode_question(request.body)
        except DecodeError:
            return
        if not self._waiting.take(peer):
            return
        kept = Message(message.onward, message.back, b"", message.flow)
        task = asyncio.create_task(self._answer(request, since, peer, kept))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(
        self, request: Request, since: int, peer: Identifier, message: Message
    ) -> None:
        number = 1 + secrets.randbelow(0xFFFF_FFFE)
        try:
            if self._is_member(peer):
                body = encode_told(await self._bulletin().since(since))
                response = Response(number, request.id, Status.OK, body)
            else:
                failure = Failure("unauthorized member", request.path, request.method)
                response = Response(number, request.id, Status.FORBIDDEN, failure.encode())
        finally:
            self._waiting.leave(peer)
        self._router.reply(message, self._back, response.encode())
