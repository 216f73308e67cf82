"""Echo, Uppercase, HopService: the small workers that every node can offer (01 §4.3, §4.4, §2.3)."""

from __future__ import annotations

from edge.errors import DecodeError
from edge.routing.hop import Message
from edge.routing.router import Router
from edge.wire import bare
from edge.wire.route import Address, Route


class Echo:
    """Returns each payload as it came. Peers ping it to see whether we live (03 §5.1)."""

    def __init__(self, router: Router, address: bytes = b"echo") -> None:
        self._router, self._back = router, Route.of(address)

    def deliver(self, message: Message) -> None:
        self._router.reply(message, self._back, message.payload)


class Uppercase:
    """Returns a BARE string in upper case; anything else is left without an answer."""

    def __init__(self, router: Router, address: bytes = b"uppercase") -> None:
        self._router, self._back = router, Route.of(address)

    def deliver(self, message: Message) -> None:
        try:
            text = bare.decode_string(memoryview(message.payload))
        except DecodeError:
            return
        self._router.reply(message, self._back, bare.encode_string(text.upper()))


class HopService:
    """Forwards to the next address, and stands in the return route (01 §2.3)."""

    def __init__(self, router: Router, address: bytes = b"hop") -> None:
        self._router, self._own = router, Address(0, address)

    def deliver(self, message: Message) -> None:
        onward = message.onward.rest
        back = message.back.pushed(self._own)
        self._router.deliver(Message(onward, back, message.payload, message.flow))
