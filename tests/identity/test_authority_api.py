"""Bodies of the authority's services: vectors of 05, limits, and any bytes at all."""

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import DecodeError
from edge.identity import authority_api as api
from edge.identity.history import Identifier
from edge.wire import bare, cbor
from edge.wire.api import Request, Response

VECTORS = json.loads(
    (Path(__file__).parents[1] / "vectors/authority-enrollment-policy.json").read_text()
)
MESSAGES = VECTORS["messages"]
MEMBER = Identifier.parse(VECTORS["identities"]["member"]["identifier"])
ENROLLER = Identifier.parse(VECTORS["identities"]["enroller"]["identifier"])
ENTRY = api.MemberEntry({b"role": b"plc"}, 1700000000, ENROLLER)


def asked(name: str) -> bytes | None:
    return Request.decode(bare.encode_data(bytes.fromhex(MESSAGES[name]))).body


def answered(name: str) -> bytes | None:
    return Response.decode(bare.encode_data(bytes.fromhex(MESSAGES[name]))).body


def test_tokens() -> None:
    token = api.CreateToken({"role": "plc", "ockam-relay": "plant-7"}, 600, 1)
    assert token.encode() == asked("create_token_request")
    decoded = api.CreateToken.decode(token.encode())
    assert decoded == token
    assert api.CreateToken.decode(api.CreateToken({}).encode()) == api.CreateToken({})
    code = bytes(range(32))
    assert api.encode_code(code) == answered("create_token_response")
    assert api.decode_code(asked("present_token_request")) == code


def test_members() -> None:
    adding = api.AddMember(MEMBER, {"role": "plc"})
    assert adding.encode() == asked("add_member_request")
    assert api.AddMember.decode(adding.encode()) == adding
    assert ENTRY.encode().hex() == MESSAGES["member_entry_body"]
    assert api.MemberEntry.decode(answered("show_member_response")) == ENTRY
    ids = answered("list_member_ids_response")
    assert api.encode_identifiers([ENROLLER, MEMBER]) == ids
    assert api.decode_identifiers(ids) == [ENROLLER, MEMBER]
    both = {MEMBER: ENTRY, ENROLLER: api.MemberEntry({}, 5, None, 9)}
    assert api.decode_members(api.encode_members(both)) == both


def test_names_that_are_texts() -> None:
    body = cbor.encode({1: {"role": [112]}, 2: 5})
    assert api.MemberEntry.decode(body).attributes == {b"role": b"p"}


@pytest.mark.parametrize(
    "attributes",
    [{str(n): "" for n in range(api.MAX_ATTRIBUTES + 1)}, {"a": "x" * api.MAX_ATTRIBUTE_BYTES}],
)
def test_attributes_are_bounded(attributes: dict[str, str]) -> None:
    with pytest.raises(DecodeError, match="attributes"):
        api.CreateToken.decode(api.CreateToken(attributes).encode())


def test_no_body() -> None:
    with pytest.raises(DecodeError, match="body"):
        api.AddMember.decode(None)


@given(st.binary() | st.sampled_from([ENTRY.encode(), api.encode_code(bytes(32))]), st.data())
def test_any_bytes(body: bytes, data: st.DataObject) -> None:
    if body and data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(body) - 1))
        body = body[:at] + data.draw(st.binary(max_size=2)) + body[at + 1 :]
    readers = (
        api.AddMember.decode, api.CreateToken.decode, api.MemberEntry.decode, api.decode_code,
        api.decode_members, api.decode_identifiers,
    )  # fmt: skip
    for read in readers:
        with contextlib.suppress(DecodeError):
            read(body)
