"""Requests and responses: the examples of 01 §5.4, the rules of §5.1 and §5.3, any bytes at all."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import DecodeError
from edge.wire import bare, cbor
from edge.wire.api import MAX_TEXT, Failure, Method, Request, Response, Status
from edge.wire.message import encode_transport
from edge.wire.route import Route

STATUS_BODY = (
    "a301626e31025820000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f038200811904d2"
)
INVALID = (
    "a301692f6e6f64652f666f6f020003781f"
    "496e76616c696420656e64706f696e743a20474554202f6e6f64652f666f6f"
)


def enveloped(text: str) -> bytes:
    return bare.encode_data(bytes.fromhex(text))


def test_request() -> None:
    request = Request(0x01020304, "/node", Method.GET)
    payload = request.encode()
    assert payload.hex() == "12a4011a0102030402652f6e6f6465030004f4"
    assert Request.decode(payload) == request
    frame = encode_transport(
        Route.of("_internal.nodemanager"), Route.of("6f1e3b2a9c8d7e6f5a4b3c2d1e0f9a8b"), payload
    )
    assert frame.hex() == (
        "0000005684818200555f696e7465726e616c2e6e6f64656d616e616765728182005820"
        "3666316533623261396338643765366635613462336332643165306639613862"
        "5312a4011a0102030402652f6e6f6465030004f4627b7d"
    )


def test_response_with_a_body() -> None:
    payload = bytes.fromhex("41" + "a4011a0a0b0c0d021a010203040318c804f5" + STATUS_BODY)
    response = Response.decode(memoryview(payload))
    assert response == (0x0A0B0C0D, 0x01020304, Status.OK, bytes.fromhex(STATUS_BODY))
    assert response.encode() == payload


def test_error_response() -> None:
    payload = bytes.fromhex("3b" + "a4010702090319019004f5" + INVALID)
    response = Response.decode(payload)
    assert response == (7, 9, Status.BAD_REQUEST, bytes.fromhex(INVALID))
    assert response.encode() == payload
    assert response.error == "Invalid endpoint: GET /node/foo"
    failure = Failure("Invalid endpoint: GET /node/foo", "/node/foo", Method.GET)
    assert failure.encode().hex() == INVALID
    assert Failure.from_value(cbor.decode(bytes.fromhex(INVALID))) == failure


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("a4011adeadbeef021a010203040318c804f4", (0xDEADBEEF, 0x01020304, Status.OK, None)),
        ("a4010702090319019404f5", (7, 9, Status.NOT_FOUND, b"")),
        ("a401070209031901f404f5", (7, 9, Status.INTERNAL_SERVER_ERROR, b"")),
        ("a30107020904f4", (7, 9, None, None)),
        ("a4010702090318c804f5", (7, 9, Status.OK, b"")),
        ("a4010702090318c804f580", (7, 9, Status.OK, b"\x80")),
    ],
)
def test_other_responses(header: str, expected: tuple[object, ...]) -> None:
    response = Response.decode(enveloped(header))
    assert response == expected
    assert response.encode() == enveloped(header)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("a0", ""),
        ("", ""),
        ("a20364626f6f6d04a10363776879", "boom: why"),
        ("a20364626f6f6d04a0", "boom"),
        ("a104a10363776879", "why"),
        ("64626f6f6d", "boom"),
        ("44626f6f6d", "boom"),
        ("41ff", ""),
        ("01", ""),
        ("a10301", ""),
        ("a10363620a63", "b c"),
        ("a104" * 20 + "a0", ""),
    ],
)
def test_error_text(body: str, text: str) -> None:
    assert Response(1, 2, Status.NOT_FOUND, bytes.fromhex(body)).error == text


def test_error_text_of_no_body() -> None:
    assert Response(1, 2, None).error == ""
    long = Response(1, 2, None, cbor.encode("x" * 5000))
    assert long.error == "x" * MAX_TEXT


def test_nested_failure() -> None:
    failure = Failure("boom", cause=Failure("why"))
    assert failure.encode().hex() == "a20364626f6f6d04a10363776879"
    assert Failure().encode() == b"\xa0"
    assert str(failure) == "boom: why"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("a4011a0102030402652f6e6f6465030004f4", Method.GET),
        ("a404f4030002652f6e6f6465011a01020304", Method.GET),  # any order
        ("a505617404f4030002652f6e6f6465011a01020304", Method.GET),  # tracing of Elixir
        ("a50019162e011a0102030402652f6e6f6465030004f4", Method.GET),  # an old tag
        ("a503040300011a0102030402652f6e6f646504f4", Method.GET),  # the last one wins
        ("a3011a0102030402652f6e6f646504f4", None),
        ("a4011a0102030402652f6e6f646503f604f4", None),
    ],
)
def test_headers_that_are_accepted(header: str, expected: Method | None) -> None:
    request = Request.decode(enveloped(header) + b"behind")
    assert request == (0x01020304, "/node", expected, None)
    assert Request.decode(request.encode()) == request


@pytest.mark.parametrize(
    "header",
    [
        "",
        "80",
        "a3011a0102030402652f6e6f64650300",  # no has_body
        "a4011a0102030402652f6e6f6465030004f6",
        "a4011a0102030402652f6e6f6465030004" + "01",
        "a4011a0102030402652f6e6f6465030504f4",  # method 5
        "a4011a0102030402652f6e6f646503f504f4",
        "a4011b010203040506070802652f6e6f6465030004f4",
        "a302652f6e6f6465030004f4",  # no id
        "a3011a01020304030004f4",  # no path
        "a501" + "1a0102030402652f6e6f6465030004f4" + "616100",  # a key that is text
        "a501" + "1a0102030402652f6e6f6465030004f4" + "2000",  # a negative one
    ],
)
def test_headers_that_are_refused(header: str) -> None:
    with pytest.raises(DecodeError):
        Request.decode(enveloped(header))


def test_unknown_status() -> None:
    with pytest.raises(DecodeError):
        Response.decode(enveloped("a4010702090319012c04f4"))


def test_segments() -> None:
    assert Request(1, "//a/b/c/d/e/f", None).segments == ["a", "b", "c", "d", "e/f"]
    assert Request(1, "", None).segments == [""]


@given(
    st.integers(0, 2**32 - 1),
    st.text(st.characters(codec="utf-8")),
    st.none() | st.sampled_from(Method),
    st.none() | st.binary(),
)
def test_round_trip(number: int, path: str, method: Method | None, body: bytes | None) -> None:
    request = Request(number, path, method, body)
    assert Request.decode(request.encode()) == request
    response = Response(number, number, Status.OK, body)
    assert Response.decode(response.encode()) == response


@given(st.binary(max_size=60))
def test_any_bytes(data: bytes) -> None:
    assert isinstance(Response(1, 2, None, data).error, str)
    for payload in (data, bare.encode_data(data), bare.encode_data(b"\xa4" + data)):
        for decode in (Request.decode, Response.decode):
            with contextlib.suppress(DecodeError):
                decode(payload)
