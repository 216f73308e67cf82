"""Transport and channel messages: the examples of 01 §1.11, 02 §7.1, 03 §4.3; recorded traffic; the
tolerance table of 01 §1.3; any bytes at all."""

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import DecodeError, ProtocolError
from edge.wire import message as module
from edge.wire.frame import MAX_FRAME
from edge.wire.message import (
    CLOSE,
    CLOSE_MESSAGE,
    PAYLOAD,
    PAYLOAD_END,
    REFRESH,
    TRANSPORT_TAIL,
    ChannelReader,
    Head,
    TransportReader,
    encode_payload,
    encode_refresh,
    encode_transport,
    parse_channel,
    parse_transport,
    payload_start,
    transport_parts,
)
from edge.wire.route import Address, Route
from tests.load import vectors
from tests.wire.test_route import ROUTES

LIVE = (
    "live-authority", "live-channel", "live-channel-p256", "live-channel-rotated", "live-enroll",
    "live-inlet", "live-kafka", "live-outlet", "live-relay", "live-respond",
)  # fmt: skip
EPHEMERAL = "6f1e3b2a9c8d7e6f5a4b3c2d1e0f9a8b"
HELLO = b"\x05hello"


def view(text: str) -> memoryview:
    return memoryview(bytes.fromhex(text))


# ruff: noqa: E501
FRAMES = [
    ("echo", EPHEMERAL, HELLO, "0000003884818200446563686f81820058203666316533623261396338643765366635613462336332643165306639613862460568656c6c6f627b7d"),
    (EPHEMERAL, "echo", HELLO, "000000388481820058203666316533623261396338643765366635613462336332643165306639613862818200446563686f460568656c6c6f627b7d"),
    ("uppercase", EPHEMERAL, HELLO, "0000003d848182004975707065726361736581820058203666316533623261396338643765366635613462336332643165306639613862460568656c6c6f627b7d"),
    (EPHEMERAL, "uppercase", b"\x05HELLO", "0000003d848182005820366631653362326139633864376536663561346233633264316530663961386281820049757070657263617365460548454c4c4f627b7d"),
    (None, None, b"", "0000000784808040627b7d"),
    ("static_forwarding_service", "RR_O", b"\x01x", "0000002d8481820058197374617469635f666f7277617264696e675f736572766963658182004452525f4f420178627b7d"),
    ("RR_O", "forward_to_x", b"\x0cforward_to_x", "0000002a848182004452525f4f8182004c666f72776172645f746f5f784d0c666f72776172645f746f5f78627b7d"),
    ("outlet", "S_I", b"\x00", "0000001784818200466f75746c657481820043535f494100627b7d"),
    ("S_I", "S_O", b"\x01", "000000148481820043535f4981820043535f4f4101627b7d"),
    ("S_O", "S_I", b"\x03" + HELLO, "0000001a8481820043535f4f81820043535f4947030568656c6c6f627b7d"),
    ("S_O", "S_I", b"\x02", "000000148481820043535f4f81820043535f494102627b7d"),
]  # fmt: skip
PLAINTEXTS = [
    ("echoer", "app", HELLO, "8282008183818200466563686f657281820043617070460568656c6c6f40"),
    ("outlet", "S_I", b"\x00", "8282008183818200466f75746c657481820043535f49410040"),
    ("S_I", "S_O", b"\x01", "828200818381820043535f4981820043535f4f410140"),
    ("S_O", "S_I", b"\x03" + HELLO, "828200818381820043535f4f81820043535f4947030568656c6c6f40"),
]


def route(name: str | None) -> Route:
    return Route.of(name) if name else Route.EMPTY


@pytest.mark.parametrize(("onward", "back", "payload", "encoded"), FRAMES)
def test_transport_examples(onward: str, back: str, payload: bytes, encoded: str) -> None:
    head = Head(route(onward), route(back))
    assert encode_transport(*head, payload).hex() == encoded
    assert parse_transport(view(encoded[8:])) == (*head, payload)
    pieces = transport_parts(head.onward.encoded + head.back.encoded, len(payload))
    assert (pieces + payload + TRANSPORT_TAIL).hex() == encoded


@pytest.mark.parametrize(("onward", "back", "payload", "encoded"), PLAINTEXTS)
def test_channel_examples(onward: str, back: str, payload: bytes, encoded: str) -> None:
    head = Head(route(onward), route(back))
    assert encode_payload(*head, payload).hex() == encoded
    assert parse_channel(view(encoded)) == (PAYLOAD, *head, payload)
    pieces = payload_start(head.onward.encoded + head.back.encoded, len(payload))
    assert (pieces + payload + PAYLOAD_END).hex() == encoded


def test_close() -> None:
    assert CLOSE_MESSAGE.hex() == "8282028040"
    assert parse_channel(memoryview(CLOSE_MESSAGE)) == (CLOSE, Route.EMPTY, Route.EMPTY, b"")
    assert vectors("secure-channel-messages-upstream")["close"]["hex"] == CLOSE_MESSAGE.hex()


def test_refresh_of_upstream() -> None:
    encoded = vectors("secure-channel-messages-upstream")["refresh_credentials"]["hex"]
    kind, onward, back, body = parse_channel(view(encoded))
    assert (kind, onward, back) == (REFRESH, Route.EMPTY, Route.EMPTY)
    assert encoded == "82820181" + body.hex() + "40"


def test_refresh() -> None:
    encoded = encode_refresh(b"\x81\x01", [b"\x82\x01\x02", b"\x80"])
    assert encoded.hex() == "828201818281018282010280" + "40"
    assert parse_channel(memoryview(encoded))[3].hex() == "8281018282010280"


def test_refresh_keeps_what_must_be_refused() -> None:
    """An indefinite array is no enumeration, and does not become one here (02 §2)."""
    assert parse_channel(view("82820181829f0080ff8040"))[3].hex() == "829f0080ff80"


@pytest.mark.parametrize("name", LIVE)
def test_recorded_frames(name: str) -> None:
    read = TransportReader().read
    for frame in vectors(name)["frames"]:
        if frame["hex"] == "01":
            continue
        onward, back, payload = read(view(frame["hex"][8:]))
        assert encode_transport(onward, back, payload).hex() == frame["hex"]


@pytest.mark.parametrize("name", LIVE)
def test_recorded_plaintexts(name: str) -> None:
    read = ChannelReader().read
    for plaintext in vectors(name)["plaintexts"]:
        kind, onward, back, payload = read(view(plaintext["plaintext"]))
        if plaintext["kind"] == "payload":
            assert kind == PAYLOAD
            assert payload.hex() == plaintext["payload"]
            again = encode_payload(onward, back, payload)
        elif plaintext["kind"] == "refresh":
            assert kind == REFRESH
            again = b"\x82\x82\x01\x81" + payload + b"\x40"
        else:
            assert kind == CLOSE
            again = CLOSE_MESSAGE
        assert again.hex() == plaintext["plaintext"]


ONWARD, BACK = "8182004161", "8182004162"
ACCEPTED = {
    "no tracing": "83" + ONWARD + BACK + "4170",
    "null tracing": "84" + ONWARD + BACK + "4170f6",
    "tracing that is not JSON": "84" + ONWARD + BACK + "41706178",
    "long tracing": "84" + ONWARD + BACK + "41707864" + "61" * 100,
    "more items": "86" + ONWARD + BACK + "4170627b7d01a0",
    "more items, null": "85" + ONWARD + BACK + "4170f601",
    "indefinite message": "9f" + ONWARD + BACK + "4170627b7dff",
    "indefinite route": "849f82004161ff" + BACK + "4170627b7d",
    "indefinite address": "84819f004161ff" + BACK + "4170627b7d",
    "indefinite return address": "84" + ONWARD + "819f004162ff4170627b7d",
    "long address": "8481830041610a" + BACK + "4170627b7d",
    "long kind": "84818218004161" + BACK + "4170627b7d",
    "longer kind": "8481821a000000004161" + BACK + "4170627b7d",
    "long length": "84818200580161" + BACK + "4170627b7d",
    "longer length": "8481820059000161" + BACK + "4170627b7d",
    "long payload length": "84" + ONWARD + BACK + "580170627b7d",
    "longer payload length": "84" + ONWARD + BACK + "59000170627b7d",
    "still longer": "84" + ONWARD + BACK + "5a0000000170627b7d",
    "longest": "84" + ONWARD + BACK + "5b000000000000000170627b7d",
    "bytes behind": "84" + ONWARD + BACK + "4170627b7dff",
    "bytes behind, no tracing": "83" + ONWARD + BACK + "4170ff",
    "long count": "849801" + "82004161" + BACK + "4170627b7d",
}
REFUSED = {
    "nothing": "",
    "tracing of bytes": "84" + ONWARD + BACK + "417040",
    "tracing undefined": "84" + ONWARD + BACK + "4170f7",
    "tracing a number": "84" + ONWARD + BACK + "417001",
    "tracing a number, more": "85" + ONWARD + BACK + "41700101",
    "tracing not UTF-8": "84" + ONWARD + BACK + "417061ff",
    "tracing missing": "84" + ONWARD + BACK + "4170",
    "two items": "82" + ONWARD + BACK,
    "chunked payload": "84" + ONWARD + BACK + "5f4170ff627b7d",
    "chunked value": "848182005f4161ff" + BACK + "4170627b7d",
    "payload text": "84" + ONWARD + BACK + "6170627b7d",
    "payload array": "84" + ONWARD + BACK + "80627b7d",
    "payload null": "84" + ONWARD + BACK + "f6627b7d",
    "value text": "8481820061" + "61" + BACK + "4170627b7d",
    "one item": "84818100" + BACK + "4170627b7d",
    "kind 256": "84818219010041" + "61" + BACK + "4170627b7d",
    "map": "a40001020304050607",
    "tag": "c184" + ONWARD + BACK + "4170627b7d",
    "tag before a route": "84c1" + ONWARD + BACK + "4170627b7d",
    "cut in the onward route": "84818200" + "58ff61",
    "cut in the payload": "84" + ONWARD + BACK + "5901006161",
    "cut in the length": "84" + ONWARD + BACK + "5901",
    "cut in a long length": "84" + ONWARD + BACK + "5a0101",
    "cut before the payload": "84" + ONWARD + BACK,
    "cut after the onward route": "84" + ONWARD,
    "route is a number": "8401" + BACK + "4170627b7d",
}  # fmt: skip


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_accepted(name: str, warm: bool) -> None:
    read = TransportReader().read
    if warm:
        read(memoryview(encode_transport(Route.of("a"), Route.of("b"), b"x")[4:]))
    onward, back, payload = read(view(ACCEPTED[name]))
    assert (onward, back, payload) == (Route.of("a"), Route.of("b"), b"p")
    assert isinstance(payload, memoryview)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str, warm: bool) -> None:
    read = TransportReader().read
    if warm:
        read(memoryview(encode_transport(Route.of("a"), Route.of("b"), b"x")[4:]))
    with pytest.raises(DecodeError):
        read(view(REFUSED[name]))


CHANNEL_CASES = [
    c for c in vectors("cbor-decoding-tolerance")["cases"] if c["type"] == "secure channel message"
]


@pytest.mark.parametrize("case", CHANNEL_CASES, ids=[c["case"] for c in CHANNEL_CASES])
def test_tolerance_vectors(case: dict[str, Any]) -> None:
    if case["decodes"]:
        parse_channel(view(case["hex"]))
    else:
        with pytest.raises(DecodeError):
            parse_channel(view(case["hex"]))


@pytest.mark.parametrize(
    "encoded",
    [
        "8282008183" + ONWARD + BACK + "417042ffff",  # padding
        "8282008183" + ONWARD + BACK + "4170" + "58" + "03616161",
        "9f82008183" + ONWARD + BACK + "417040ff",
        "828200819f" + ONWARD + BACK + "4170ff40",
        "8282008184" + ONWARD + BACK + "41700140",
        "8282008283" + ONWARD + BACK + "41700140",
        "8382008183" + ONWARD + BACK + "41704001",
        "8282008183" + ONWARD + "819f004162ff417040",
    ],
)
def test_channel_forms_that_are_accepted(encoded: str) -> None:
    assert parse_channel(view(encoded)) == (PAYLOAD, Route.of("a"), Route.of("b"), b"p")


@pytest.mark.parametrize(
    "encoded",
    [
        "",
        "8282008183",
        "8282008183" + ONWARD + BACK + "4170",
        "8282008183" + ONWARD + BACK + "417060",
        "8282008183" + ONWARD + BACK + "5f4170ff40",
        "8282008182" + ONWARD + BACK + "40",
        "82820080" + "40",
        "82820181814040",
        "82820180" + "40",
        "829f0280ff40",
        "8282038040",
    ],
)
def test_channel_forms_that_are_refused(encoded: str) -> None:
    with pytest.raises(DecodeError):
        parse_channel(view(encoded))


@pytest.mark.parametrize("size", [0, 23, 24, 255, 256, 65535, 65536, 131_076])
def test_sizes(size: int) -> None:
    payload = bytes(size)
    head = Head(Route.of("a", Address(1, b"h:1")), Route.of("b" * 32))
    assert parse_transport(memoryview(encode_transport(*head, payload)[4:])) == (*head, payload)
    assert parse_channel(memoryview(encode_payload(*head, payload))) == (PAYLOAD, *head, payload)


def test_the_greatest_message() -> None:
    head = Route.of("a").encoded + Route.EMPTY.encoded
    most = MAX_FRAME - len(head) - 1 - 5 - len(TRANSPORT_TAIL)
    assert transport_parts(head, most)[:4] == MAX_FRAME.to_bytes(4, "big")
    with pytest.raises(ProtocolError):
        transport_parts(head, most + 1)


def test_no_payload_is_copied() -> None:
    buffer = bytearray(encode_transport(Route.of("a"), Route.of("b"), b"p")[4:])
    payload = parse_transport(memoryview(buffer))[2]
    buffer[-4] = ord("q")
    assert payload == b"q"


def test_many_streams_through_one_reader() -> None:
    read, read_channel = TransportReader().read, ChannelReader().read
    for n in range(3 * module.KNOWN_ROUTES):
        head = Head(Route.of(f"in {n % 1100}", "x" * (n % 9)), Route.of(f"out {n}"))
        assert read(memoryview(encode_transport(*head, b"p")[4:])) == (*head, b"p")
        assert read_channel(memoryview(encode_payload(*head, b"p"))) == (PAYLOAD, *head, b"p")
    assert len(module._fronts) <= module.KNOWN_ROUTES


def test_long_heads() -> None:
    head = Head(Route.of(*["x" * 200] * 5), Route.of(*["y"] * 30))
    for back in (head.back, Route.of("b")):
        assert parse_transport(memoryview(encode_transport(head.onward, back, b"p")[4:])) == (
            head.onward, back, b"p",
        )  # fmt: skip


@given(ROUTES, ROUTES, st.binary(max_size=300))
def test_round_trip(onward: Route, back: Route, payload: bytes) -> None:
    for read in (TransportReader().read, parse_transport):
        body = memoryview(encode_transport(onward, back, payload)[4:])
        assert read(body) == read(body) == (onward, back, payload)
    plain = memoryview(encode_payload(onward, back, payload))
    assert parse_channel(plain) == (PAYLOAD, onward, back, payload)


TRANSPORT_SEED = encode_transport(Route.of("a"), Route.of("b"), HELLO)[4:]
CHANNEL_SEED = encode_payload(Route.of("a"), Route.of("b"), HELLO)
DAMAGE = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 255)), max_size=3)


def damaged(seed: bytes, damage: list[tuple[int, int]], size: int) -> memoryview:
    data = bytearray(seed)
    for at, byte in damage:
        data[at % len(data)] = byte
    return memoryview(bytes(data[: size or None]))


@given(st.binary(max_size=100))
def test_any_bytes(data: bytes) -> None:
    for parse in (parse_transport, parse_channel):
        for start in (b"", b"\x84", b"\x82\x82\x00\x81\x83"):
            with contextlib.suppress(DecodeError):
                parse(memoryview(start + data))


@given(DAMAGE, st.integers(0, 40))
def test_damaged_messages_read_alike_on_both_ways(damage: list[tuple[int, int]], size: int) -> None:
    """What is read by hand is exactly what the CBOR decoder would accept, with the same result."""
    cases: list[tuple[Any, Any, bytes]] = [
        (parse_transport, module._tolerant_transport, TRANSPORT_SEED),
        (parse_channel, module._tolerant_channel, CHANNEL_SEED),
    ]
    for parse, tolerant, seed in cases:
        data = damaged(seed, damage, size)
        try:
            expected = tolerant(data)
        except DecodeError:
            with pytest.raises(DecodeError):
                parse(data)
        else:
            assert parse(data) == expected
