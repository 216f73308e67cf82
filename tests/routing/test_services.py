"""Echo, Uppercase, HopService, over a real link."""

from edge.wire import bare
from edge.wire.route import Route
from tests.net import Net, play, play_both, until


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


@play_both
async def test_who_does_not_read_answers_through_a_hop_is_not_read(net: Net) -> None:
    hub = await net.hub()
    raw = await net.raw(hub.port)
    assert await raw.alive()
    (link,) = hub.listener.links
    for _ in range(300):
        raw.send(Route.of("hop", "echo"), Route.of("me"), bytes(60_000))
    await until(lambda: link.held)
    assert link._transport.get_write_buffer_size() < 2 * 1024 * 1024


@play
async def test_a_hop_opens_no_door(net: Net) -> None:
    hub = await net.hub()
    raw = await net.raw(hub.port)
    raw.send(Route.of("hop", "control"), Route.of("me"), b"x")
    raw.send(Route.of("hop"), Route.of("me"), b"to nobody")
    assert await raw.alive()
    assert not hub.control.messages
