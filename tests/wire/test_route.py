"""Routes and addresses: 01 §1.3 and §1.5; interning."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import ConfigError, DecodeError
from edge.wire import route as module
from edge.wire.route import MAX_ADDRESSES, Address, Route

ADDRESSES = st.builds(Address, st.integers(0, 255), st.binary(max_size=40))
ROUTES = st.lists(ADDRESSES, max_size=5).map(lambda a: Route.of(*a))


def test_encoding() -> None:
    assert Route.of("echo").encoded.hex() == "818200446563686f"
    assert Route.of(Address(200, b"a" * 32)).encoded.hex() == "818218c85820" + "61" * 32
    assert Route.EMPTY.encoded == b"\x80"


def test_equal_routes_are_one_object() -> None:
    one = Route.of("a", Address(1, b"h:1"))
    assert Route.of(b"a", Address(1, b"h:1")) is one
    assert Route.decode(one.encoded) is one
    assert Route.of(Address(1, b"h:1")).pushed(Address.local("a")) is one
    assert Route.of("a").appended(Address(1, b"h:1")) is one
    assert Route.of("a").joined(Route.of(Address(1, b"h:1"))) is one
    longer = Route.of("x", *one)
    assert longer.rest is longer.rest is one
    assert Route.EMPTY.rest is Route.EMPTY
    assert Route.decode(b"\x80") is Route.EMPTY


def test_equality_is_that_of_the_encoding() -> None:
    one = Route.of("a", "b")
    other = Route(one.addresses, one.encoded)
    assert other == one
    assert other is not one
    assert hash(other) == hash(one)
    assert one != Route.of("a")
    assert one != "a"
    assert {one: 1}[other] == 1


def test_parts() -> None:
    one = Route.of("a", "b", "c")
    assert one.first == (0, b"a")
    assert one.last == Address.local("c")
    assert one.rest == Route.of("b", "c")
    assert len(one) == 3
    assert list(one) == list(one.addresses)
    assert one
    assert not Route.EMPTY
    assert Route.EMPTY.first is None
    assert Route.EMPTY.last is None


@pytest.mark.parametrize(
    "encoded",
    [
        "818200446563686f",
        "9f8200446563686fff",
        "819f00446563686fff",
        "818300446563686f01",
        "81821800446563686f",
        "81821a0000000058046563686f",
        "98018200446563686f",
    ],
)
def test_tolerated_forms_become_ours(encoded: str) -> None:
    data = bytes.fromhex(encoded)
    assert Route.decode(data) is Route.of("echo")
    assert Route.decode(data) is Route.of("echo")  # now from the dictionary
    assert Route.decode(data).encoded.hex() == "818200446563686f"


@pytest.mark.parametrize(
    "encoded",
    [
        "",
        "a0",
        "818200646563686f",  # text
        "81820044656368",  # cut off
        "818100",  # one item
        "8182190100" + "40",  # kind 256
        "81822040",
        "8182f440",
        "81825f40ff00",
        "81d82a820040",  # a tag
        "8000",  # something behind
        "8182005901" + "00" + "61" * 256,
        "9841" + "820040" * 65,
    ],
)
def test_refused(encoded: str) -> None:
    with pytest.raises(DecodeError):
        Route.decode(bytes.fromhex(encoded))


def test_limits() -> None:
    most = Route.of(*["a"] * MAX_ADDRESSES)
    assert Route.decode(most.encoded) == most
    with pytest.raises(DecodeError):
        most.pushed(Address.local("a"))
    with pytest.raises(DecodeError):
        most.joined(most)
    assert Route.decode(Route.of("a" * 255).encoded) == Route.of("a" * 255)


def test_long_routes_are_not_remembered() -> None:
    long = Route.of(*["a" * 100] * 10)
    assert Route.of(*["a" * 100] * 10) is not long
    assert Route.decode(long.encoded) == long


def test_memory_is_bounded() -> None:
    base = Route.of("base")
    for n in range(2 * module.KNOWN_ROUTES):
        name = Address.local(f"n{n}")
        assert base.pushed(name).first == name
        assert base.joined(Route.of(name)).last == name
    assert len(module._known) <= module.KNOWN_ROUTES
    assert len(base._pushed) <= module.NEIGHBOURS
    assert len(base._joined) <= module.NEIGHBOURS
    assert base.pushed(name) is base.pushed(name)
    assert Route.decode(b"\x80") is Route.EMPTY
    assert base.joined(Route.of(name)) is base.joined(Route.of(name))


def test_text() -> None:
    assert str(Route.parse("0#a => 1#h:1=>c")) == "0#a => 1#h:1 => 0#c"
    assert repr(Route.of("a")) == "<Route 0#a>"
    assert Route.parse("") is Route.EMPTY
    assert Address.parse("1#127.0.0.1:4000") == (1, b"127.0.0.1:4000")
    assert Address.parse("0#") == (0, b"")
    assert str(Address(0, b"a\n\xff\x1b")) == "0#a\\n\\xff\\x1b"


@pytest.mark.parametrize(
    "text",
    ["a =>", "=>", "a#b", "#b", "0#a#b", "256#b", "-1#b", "²#b", "0001#b", "a" * 256, "a\udcff"],
)
def test_wrong_text(text: str) -> None:
    with pytest.raises(ConfigError):
        Route.parse(text)


def test_too_many_addresses_in_text() -> None:
    with pytest.raises(ConfigError):
        Route.parse("=>".join(["a"] * 65))


@given(ROUTES)
def test_round_trip(route: Route) -> None:
    assert Route.decode(route.encoded) == route
    module._known.pop(route.encoded, None)
    assert Route.decode(route.encoded) == route


@given(st.binary(max_size=80))
def test_any_bytes(data: bytes) -> None:
    try:
        route = Route.decode(data)
    except DecodeError:
        return
    assert Route.decode(route.encoded) == route
