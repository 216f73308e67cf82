"""Echo, Uppercase, HopService, over a real link."""

from edge.wire import bare
from edge.wire.route import Route
from tests.net import Net, play


@play
async def test_echo_and_uppercase(net: Net) -> None:
    raw = await net.raw((await net.hub()).port)
    raw.send(Route.of("echo"), Route.of("me"), b"\x00\xffany")
    answer = await raw.receive()
    assert (answer.onward, answer.back.last, answer.payload) == (
        Route.of("me"),
        Route.of("echo").last,
        b"\x00\xffany",
    )
    raw.send(Route.of("uppercase"), Route.of("me"), b"\x09not text")
    raw.send(Route.of("uppercase"), Route.of("me"), bare.encode_string("straße"))
    assert (await raw.receive()).payload == bare.encode_string("STRASSE")


@play
async def test_hops_stand_in_the_way_back_too(net: Net) -> None:
    hub = await net.hub()
    raw = await net.raw(hub.port)
    raw.send(Route.of("hop", "hop", "echo"), Route.of("me"), b"round")
    answer = await raw.receive()
    assert (answer.onward, answer.payload) == (Route.of("me"), b"round")


@play
async def test_a_hop_opens_no_door(net: Net) -> None:
    hub = await net.hub()
    raw = await net.raw(hub.port)
    raw.send(Route.of("hop", "control"), Route.of("me"), b"x")
    raw.send(Route.of("hop"), Route.of("me"), b"to nobody")
    assert await raw.alive()
    assert not hub.control.messages
