"""Router: reach first, then the guard, then a call; everything else is dropped and counted."""

import asyncio

import pytest

from edge.errors import NetworkError, StateError
from edge.routing.hop import Flow, Message
from edge.routing.router import Router, local
from edge.wire.route import Address, Route
from tests.net import Mailbox, Net, play


class Linkless(Flow):
    link = None


def flow(*reach: bytes) -> Flow:
    made = Linkless()
    made.address = b"flow"
    made.reach.update(reach)
    return made


def message(to: str, source: Flow | None, payload: bytes = b"x") -> Message:
    return Message(Route.of(to), Route.EMPTY, payload, source)


def test_our_own_messages_go_anywhere() -> None:
    router, box = Router(), Mailbox()
    router.add(b"box", box)
    router.send(Route.of("box"), Route.EMPTY, b"x")
    assert box.payloads == [b"x"]


def test_reach_then_existence_then_the_guard() -> None:
    router, box = Router(), Mailbox()
    router.add(b"box", box)
    router.add(b"guarded", box, guard=lambda m: m.payload == b"please")
    router.deliver(message("box", flow()))
    assert (router.unreachable, box.payloads) == (1, [])
    router.deliver(message("box", flow(b"box")))
    router.deliver(message("nobody", flow(b"nobody")))
    router.deliver(message("guarded", flow(b"guarded")))
    router.deliver(message("guarded", flow(b"guarded"), b"please"))
    router.deliver(Message(Route.EMPTY, Route.EMPTY, b"", None))
    assert (router.unknown, router.refused, box.payloads) == (1, 1, [b"x", b"please"])


def test_addresses_of_other_kinds_are_nobody_here() -> None:
    router, box = Router(), Mailbox()
    router.add(b"box", box)
    router.send(Route.of(Address(1, b"box")), Route.EMPTY, b"")
    assert (router.unreachable, box.payloads) == (1, [])


def test_an_address_is_taken_once() -> None:
    router, box = Router(), Mailbox()
    router.add(b"box", box)
    with pytest.raises(StateError):
        router.add(b"box", box)
    assert router.addresses() == [b"box"]
    router.remove(b"box")
    router.remove(b"box")
    assert router.at(b"box") is None
    assert len(router.fresh()) == 32
    assert local("a") == local(b"a") == Address(0, b"a")


def test_an_answer_goes_where_the_message_came_from_and_nowhere_else() -> None:
    router, box = Router(), Mailbox()
    router.add(b"box", box)
    asked = Message(Route.of("echo"), Route.of("box", "further"), b"", flow())
    router.reply(asked, Route.of("echo"), b"answer")
    router.reply(message("echo", flow()), Route.of("echo"), b"to nobody")
    asked.back = Route.of(Address(1, b"box"))
    router.reply(asked, Route.of("echo"), b"to nobody")
    assert box.payloads == [b"answer"]
    assert box.messages[0].onward == Route.of("box", "further")


def test_a_route_to_nobody_has_no_path() -> None:
    with pytest.raises(NetworkError, match="leads nowhere"):
        Router().path(Route.of("nobody"))
    with pytest.raises(NetworkError):
        Router().path(Route.EMPTY)


@play
async def test_a_route_inside_the_node_is_walked_in_the_next_turn(net: Net) -> None:
    router, box = Router(), Mailbox()
    router.add(b"box", box)
    path, rest = router.path(Route.of("box"))
    path.press(None)
    path.send(rest.encoded + Route.of("me").encoded, b"in ", b"pieces")
    assert box.payloads == []
    await asyncio.sleep(0)
    assert box.payloads == [b"in pieces"]
    assert box.messages[0].back == Route.of("me")


@play
async def test_a_request_takes_the_first_answer_and_leaves_nothing(net: Net) -> None:
    node = net.node("one")
    before = node.traces()
    assert (await node.router.request(Route.of("echo"), b"hi", timeout=1)).payload == b"hi"
    source = flow()
    with pytest.raises(NetworkError, match="no answer"):
        await node.router.request(Route.of("control"), b"", timeout=0.01, peer_flow=source)
    assert node.traces() == before
    assert not source.reach


@play
async def test_a_second_answer_is_dropped(net: Net) -> None:
    node = net.node("one")

    class Twice:
        def deliver(self, message: Message) -> None:
            for answer in (b"1", b"2"):
                node.router.send(message.back, Route.EMPTY, answer)

    node.router.add(b"twice", Twice())
    assert (await node.router.request(Route.of("twice"), b"", timeout=1)).payload == b"1"
