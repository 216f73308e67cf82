"""RelayService and Relay: who gets which name, what is forwarded, and what remains afterwards."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.relay import relay as relays
from edge.relay.relay import ANY_NAME
from edge.routing.hop import Message
from edge.wire import bare
from edge.wire.route import Address, Route
from tests.net import Mailbox, Net, Node, Raw, netting, play, play_both, until

STATIC, ANY = "static_forwarding_service", "forwarding_service"


async def register(raw: Raw, name: str, service: str = STATIC) -> Message | None:
    """The reply, or None for the silence of a refusal."""
    raw.send(Route.of(service), Route.of("mine"), bare.encode_string(name))
    raw.send(Route.of("echo"), Route.of("me"), b"end")
    reply = await raw.receive()
    if reply.payload == b"end":
        return None
    assert (await raw.receive()).payload == b"end"
    return reply


async def over_channel(net: Net, node: Node, hub: Node, name: str) -> bytes | None:
    """Register through a channel of `node`; the answer."""
    connection = await node.connect(hub.at + "/secure/api")
    way = connection.route.joined(Route.of(STATIC))
    return await node.ask(way, bare.encode_string(name))


def names(hub: Node) -> set[str]:
    assert hub.relays is not None
    return set(hub.relays.relays)


# -- names


@play_both
async def test_a_name_of_ones_own(net: Net) -> None:
    hub = await net.hub()
    raw = await net.raw(hub.port)
    reply = await register(raw, "gw")
    assert reply is not None
    assert reply.onward == Route.of("mine")
    assert reply.back.last == Address.local("forward_to_gw")
    assert reply.payload == bare.encode_string("forward_to_gw")
    assert hub.relays.relays["gw"].peer is None
    assert hub.relays.relays["gw"].path in hub.listener.links


@play_both
async def test_a_name_asked_for_through_a_hop_goes_with_its_link_too(net: Net) -> None:
    hub = await net.hub()
    raw = await net.raw(hub.port)
    raw.send(Route.of("hop", STATIC), Route.of("mine"), bare.encode_string("gw"))
    assert (await raw.receive()).payload == bare.encode_string("forward_to_gw")
    raw.writer.close()
    await until(lambda: not names(hub))


@pytest.mark.parametrize("service", [STATIC, ANY])
@play
async def test_any_name(net: Net, service: str) -> None:
    raw = await net.raw((await net.hub()).port)
    first, second = [await register(raw, ANY_NAME, service) for _ in range(2)]
    for reply in (first, second):
        address = reply.back.last.value
        assert reply.payload == bare.encode_string(address.decode())
        assert len(address) == len("forward_to_") + 32
    assert first.payload != second.payload


@pytest.mark.parametrize(
    "name",
    ["", "0#echo", "a#b", "a\nb", "a\0", "\x1b[31m", "a\u202eb", "x" * 201, "é" * 101, "\u2028"],
)
@play
async def test_what_is_no_name(net: Net, name: str) -> None:
    hub = await net.hub()
    raw = await net.raw(hub.port)
    assert await register(raw, name) is None
    assert hub.relays.refused == 1
    assert not names(hub)


@play
async def test_what_is_no_request(net: Net) -> None:
    hub = await net.hub()
    raw = await net.raw(hub.port)
    for payload in (b"", b"\x05ab", b"\x02\xff\xfe", b"\xff" * 12):
        raw.send(Route.of(STATIC), Route.of("mine"), payload)
    hub.relays.deliver(Message(Route.of(STATIC), Route.of("gone"), bare.encode_string("x"), None))
    assert await raw.alive()
    assert not names(hub)


@play
async def test_the_longest_and_the_strangest_names_that_go(net: Net) -> None:
    raw = await net.raw((await net.hub()).port)
    for name in ("x" * 200, "é" * 100, "a b/c", "日本", "forward_to_"):
        assert await register(raw, name) is not None


@play
async def test_policy_and_limit(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = await net.node("hub").listen()
    hub.serve_relays(allows=lambda peer, name: name != "secret")
    raw = await net.raw(hub.port)
    assert await register(raw, "secret") is None
    monkeypatch.setattr(relays, "RELAYS_MAX", 2)
    assert await register(raw, "one") is not None
    assert await register(raw, "two") is not None
    assert await register(raw, "three") is None
    assert await register(raw, "two") is not None, "replacing is no addition"


@play
async def test_who_may_no_longer_loses_its_relays(net: Net) -> None:
    forbidden: set[str] = set()
    hub, gateway = await net.node("hub").listen(), net.node("gateway")
    service = hub.serve_relays(allows=lambda peer, name: name not in forbidden).relays
    assert await over_channel(net, gateway, hub, "of-a-member") is not None
    assert await register(await net.raw(hub.port), "of-nobody") is not None
    forbidden |= {"of-a-member", "of-nobody"}
    service.recheck({net.node("other").identifier})
    assert set(service.relays) == forbidden, "only who was named is looked at"
    service.recheck({gateway.identifier})
    assert set(service.relays) == {"of-nobody"}
    service.recheck()
    assert not service.relays


@play
async def test_an_address_that_is_something_else(net: Net) -> None:
    hub = await net.hub()
    hub.router.add(b"forward_to_x", Mailbox())
    assert await register(await net.raw(hub.port), "x") is None


# -- whose name it is


@play_both
async def test_the_same_identity_takes_its_name_again(net: Net) -> None:
    hub, gateway, thief = await net.hub(), net.node("gateway"), net.node("thief")
    plain = await net.raw(hub.port)
    for _ in range(3):
        assert await over_channel(net, gateway, hub, "gw") is not None
    assert hub.relays.relays["gw"].peer == gateway.identifier
    assert await over_channel(net, thief, hub, "gw") is None
    assert await register(plain, "gw") is None, "nobody is not somebody"
    assert hub.relays.relays["gw"].peer == gateway.identifier
    assert hub.relays.refused == 2
    await gateway.stop()
    await until(lambda: not names(hub))
    assert await over_channel(net, thief, hub, "gw") is not None, "free after its death"


@play
async def test_a_name_without_identity_yields_only_to_one_with(net: Net) -> None:
    hub, somebody = await net.hub(), net.node("somebody")
    raw, other = await net.raw(hub.port), await net.raw(hub.port)
    assert await register(raw, "x") is not None
    assert await register(raw, "x") is not None
    assert await register(other, "x") is None
    assert await over_channel(net, somebody, hub, "x") is not None
    assert hub.relays.relays["x"].peer == somebody.identifier
    assert await register(raw, "x") is None
    assert await register(raw, "y") is not None
    raw.writer.close()
    await until(lambda: names(hub) == {"x"})


@pytest.mark.parametrize("how", ["link", "channel"])
@play_both
async def test_it_dies_with_the_flow_it_came_by(net: Net, how: str) -> None:
    hub, gateway = await net.hub(), net.node("gateway")
    before = hub.traces()
    client = await gateway.relay("gw", hub.at + "/secure/api")
    connection = client.session.connection
    assert names(hub) == {"gw"}
    gateway.connector.present = None  # it cannot come back
    if how == "link":
        connection.link._transport.abort()
    else:
        connection.channels[0].close()
    await until(lambda: not names(hub))
    assert hub.router.at(b"forward_to_gw") is None
    await client.close()
    await until(lambda: hub.traces() == before)
    net.trouble.clear()  # the session found the missing presentation


# -- what passes


@play_both
async def test_the_return_route_stays_and_our_address_goes(net: Net) -> None:
    hub = await net.hub()
    gateway, client = await net.raw(hub.port), await net.raw(hub.port)
    assert await register(gateway, "gw") is not None
    client.send(Route.of("forward_to_gw", "a", "b"), Route.of("me"), b"payload")
    got = await gateway.receive()
    assert got.onward == Route.of("a", "b"), "without the address of the client of the relay"
    assert got.back.last == Address.local("me")
    assert len(got.back) == 2
    assert got.payload == b"payload"
    assert hub.relays.relays["gw"].forwarded == 1
    gateway.send(got.back, Route.of("b"), b"answer")
    answer = await client.receive()
    assert (answer.onward, answer.payload) == (Route.of("me"), b"answer")
    # From now on the two speak directly.
    client.send(answer.back, Route.of("me"), b"direct")
    assert (await gateway.receive()).payload == b"direct"


@play
async def test_only_the_two_are_introduced(net: Net) -> None:
    hub = await net.hub()
    gateway, client, third = [await net.raw(hub.port) for _ in range(3)]
    assert await register(gateway, "gw") is not None
    client.send(Route.of("forward_to_gw", "a"), Route.of("me"), b"hello")
    back = (await gateway.receive()).back
    third.send(back, Route.of("x"), b"stolen")
    assert await third.alive()
    gateway.send(back, Route.of("y"), b"mine")
    assert (await client.receive()).payload == b"mine"
    refused = hub.router.unreachable
    assert refused == 1


@play
async def test_a_route_that_grows_too_long_is_dropped(net: Net) -> None:
    hub = await net.hub()
    gateway, client = await net.raw(hub.port), await net.raw(hub.port)
    gateway.send(
        Route.of(STATIC), Route.of(*[f"r{n}" for n in range(60)]), bare.encode_string("gw")
    )
    assert (await gateway.receive()).payload == bare.encode_string("forward_to_gw")
    client.send(
        Route.of("forward_to_gw", *[f"s{n}" for n in range(60)]), Route.of("me"), b"too far"
    )
    assert await client.alive()
    assert await gateway.alive()


@play
async def test_an_empty_way_back_is_the_node_itself(net: Net) -> None:
    hub = await net.hub()
    gateway, client = await net.raw(hub.port), await net.raw(hub.port)
    gateway.send(Route.of(STATIC), Route.EMPTY, bare.encode_string("gw"))
    await until(lambda: names(hub))
    client.send(Route.of("forward_to_gw", "a"), Route.of("me"), b"x")
    messages = [await gateway.receive() for _ in range(2)]
    assert messages[1].onward == Route.of("a")


@play_both
async def test_a_slow_gateway_stops_its_clients_and_nobody_else(net: Net) -> None:
    hub = await net.hub()
    gateway, client, other = [await net.raw(hub.port) for _ in range(3)]
    assert await register(gateway, "gw") is not None
    assert await client.alive()
    for _ in range(300):
        client.send(Route.of("forward_to_gw", "a"), Route.of("me"), bytes(100_000))
    await until(lambda: any(link.held for link in hub.listener.links))
    (held,) = [link for link in hub.listener.links if link.held]
    assert await other.alive()
    for _ in range(300):
        assert len((await gateway.receive()).payload) == 100_000
    await until(lambda: not held.held)
    assert await client.alive()


@play
async def test_clients_that_come_and_go_leave_nothing(net: Net) -> None:
    hub = await net.hub()
    gateway = await net.raw(hub.port)
    assert await register(gateway, "gw") is not None
    before = hub.traces()
    for _ in range(20):
        client = await net.raw(hub.port)
        client.send(Route.of("forward_to_gw", "a"), Route.of("me"), b"x")
        await gateway.receive()
        client.writer.close()
    await until(lambda: hub.traces() == before)


@play
async def test_a_relay_from_inside_the_node(net: Net) -> None:
    hub = await net.hub()
    gateway = await net.raw(hub.port)
    assert await register(gateway, "gw") is not None
    hub.router.send(Route.of("forward_to_gw", "a"), Route.of("me"), b"from the hub itself")
    assert (await gateway.receive()).payload == b"from the hub itself"
    relay = hub.relays.relays["gw"]
    relay.pause()
    relay.resume()


@play
async def test_a_service_that_is_closed(net: Net) -> None:
    hub = await net.hub()
    raw = await net.raw(hub.port)
    assert await register(raw, "gw") is not None
    service = hub.relays
    service.close()
    assert not service.relays
    assert not {a for a in hub.router.addresses() if b"forward" in a}
    assert not {a for a in hub.wiring.plain | hub.wiring.channels if b"forward" in a}
    assert await raw.alive()


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([STATIC, ANY, "forward_to_a", "forward_to_b"]),
            st.lists(st.sampled_from(["mine", "echo", "forward_to_a", STATIC]), max_size=3),
            st.one_of(
                st.binary(max_size=12),
                st.sampled_from(["a", "b", "register", "x" * 300]).map(bare.encode_string),
            ),
        ),
        max_size=12,
    )
)
def test_any_requests_are_survived(requests: list[tuple[str, list[str], bytes]]) -> None:
    async def main() -> None:
        async with netting() as net:
            hub = await net.hub()
            before = hub.traces()
            one, two = await net.raw(hub.port), await net.raw(hub.port)
            for n, (service, back, payload) in enumerate(requests):
                (one, two)[n % 2].send(Route.of(service, "hop"), Route.of(*back), payload)
            for raw in (one, two):
                assert await raw.alive()
                raw.writer.close()
            await until(lambda: hub.traces() == before)

    asyncio.run(main())


@play
async def test_one_connection_holds_so_many_names(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays, "RELAYS_PER_FLOW", 2)
    hub = await net.hub()
    one, other = await net.raw(hub.port), await net.raw(hub.port)
    assert await register(one, "a")
    assert await register(one, "b")
    assert await register(one, "c") is None
    assert await register(one, "a")
    assert await register(other, "c")
    hub.relays.relays["a"].close()
    assert await register(one, "d")
    assert names(hub) == {"b", "c", "d"}
