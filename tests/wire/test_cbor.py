"""CBOR: the examples of 01 §8, the tolerance vectors of 02 §2, and any bytes at all."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import DecodeError, StateError
from edge.wire import cbor
from tests.load import vectors

EXAMPLES: list[tuple[object, str]] = [
    ([1], "8101"),
    ([1, None, 3], "8301f603"),
    ([1, 2], "820102"),
    ([None, 1], "82f601"),
    ([], "80"),
    ({1: 1, 24: True}, "a201011818f5"),
    ({2: 2, 5: 5}, "a202020505"),
    (404, "190194"),
    ([1, []], "820180"),
    ([0, [1234]], "8200811904d2"),
    ([2, {1: 1}], "8202a10101"),
    ([0, {}], "8200a0"),
    ([1, [1, None]], "82018201f6"),
    ([0, [None, None]], "820082f6f6"),
    ([1, {1: None, 2: 1}], "8201a201f60201"),
    ([2, [None, 1, None, 3]], "820284f601f603"),
    ([1, [None, 2]], "820182f602"),
    ([2, [None, "outlet"]], "820282f6666f75746c6574"),
    (-1, "20"),
    (False, "f4"),
    (True, "f5"),
    (None, "f6"),
    (1.5, "fb3ff8000000000000"),
    ([1, 2, 3], "83010203"),
    ([200], "8118c8"),
    ([1, 500_000_000], "82011a1dcd6500"),
    ([b"\x7f\0\0\x01", 80], "82447f0000011850"),
    (["127.0.0.1", 5000], "82693132372e302e302e31191388"),
    (65536, "1a00010000"),
    (2**32, "1b0000000100000000"),
    (2**64 - 1, "1bffffffffffffffff"),
    (-(2**64), "3bffffffffffffffff"),
]


@pytest.mark.parametrize(("value", "encoded"), EXAMPLES, ids=[hexed for _, hexed in EXAMPLES])
def test_examples_of_the_document(value: object, encoded: str) -> None:
    assert cbor.encode(value).hex() == encoded
    found = cbor.decode(bytes.fromhex(encoded))
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("encoded", "value"),
    [
        ("1800", 0),
        ("1a00000000", 0),
        ("590001ff", b"\xff"),
        ("9f01ff", [1]),
        ("bf0102ff", {1: 2}),
        ("9fbf0180ffff", [{1: []}]),
        ("f93e00", 1.5),
        ("fa3fc00000", 1.5),
        ("a201010102", {1: 2}),
        ("a320016161024162" + "03", {-1: 1, "a": 2, b"b": 3}),
    ],
)
def test_forms_that_are_accepted(encoded: str, value: object) -> None:
    assert cbor.decode(bytes.fromhex(encoded)) == value


@pytest.mark.parametrize(
    "encoded",
    [
        "",  # nothing
        "f7",  # undefined
        "e0",  # a simple value
        "f818",  # another one
        "5f4101ff",  # bytes in chunks
        "7f6161ff",  # text in chunks
        "c101",  # a tag
        "c24101",  # a bignum
        "1c",  # reserved
        "1f",
        "ff",  # a break alone
        "61ff",  # not UTF-8
        "62c3",  # cut off
        "42ff",
        "19ff",
        "fb00",
        "8201",
        "9f01",
        "9bffffffffffffffff",
        "bbffffffffffffffff",
        "5bffffffffffffffff",
        "a101",
        "bf01ff",  # a key without a value
        "a1f501",  # keys that are no keys here
        "a1f601",
        "a1fb3ff800000000000001",
        "a18001",
        "0000",  # more than one item
        "81" * 17 + "00",
        "9f" * 17 + "ff" * 17,
    ],
)
def test_forms_that_are_refused(encoded: str) -> None:
    with pytest.raises(DecodeError):
        cbor.decode(bytes.fromhex(encoded))


def test_nesting_up_to_the_limit() -> None:
    assert cbor.decode(b"\x81" * 16 + b"\x00")


def test_items_up_to_the_limit() -> None:
    array = cbor.head(cbor.ARRAY, cbor.MAX_ITEMS)
    assert cbor.decode(cbor.encode([0] * (cbor.MAX_ITEMS - 1)))
    with pytest.raises(DecodeError):
        cbor.decode(array + bytes(cbor.MAX_ITEMS))


def test_prefix_leaves_the_rest() -> None:
    assert cbor.decode_prefix(b"\xff\x01\x02", 1) == (1, 2)
    assert cbor.decode_prefix(memoryview(b"\x41a\x02")) == (b"a", 2)


def test_encoded_items_are_copied_and_buffers_are_byte_strings() -> None:
    assert cbor.encode([cbor.Raw(b"\x18\x00"), bytearray(b"a"), memoryview(b"b")]).hex() == (
        "83180041614162"
    )
    assert cbor.encode((1, "ä")).hex() == "820162c3a4"


def test_indefinite_arrays_stay_so() -> None:
    assert cbor.encode(cbor.decode(bytes.fromhex("9f0102ff"))).hex() == "9f0102ff"


@pytest.mark.parametrize("value", [2**64, -(2**64) - 1, object(), {1}])
def test_what_has_no_form(value: object) -> None:
    with pytest.raises(StateError):
        cbor.encode(value)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"))
    | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.integers(0, 2**64 - 1) | st.text("abä") | st.binary(), inner)
    ),
    max_leaves=12,
)


@given(VALUES)
def test_round_trip(value: object) -> None:
    encoded = cbor.encode(value)
    found = cbor.decode(encoded)
    assert found == value
    assert cbor.encode(found) == encoded


def test_not_a_number() -> None:
    found = cbor.decode(cbor.encode(math.nan))
    assert isinstance(found, float)
    assert math.isnan(found)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_refused(data: bytes) -> None:
    try:
        value = cbor.decode(data)
    except DecodeError:
        return
    again = cbor.encode(value)
    assert cbor.encode(cbor.decode(again)) == again


# -- what an item must be


def test_integers_are_not_booleans() -> None:
    assert cbor.as_int(5) == 5
    assert cbor.as_int(-5, minimum=-5) == -5
    for value in (True, "5", -1, 2**64):
        with pytest.raises(DecodeError):
            cbor.as_int(value)
    with pytest.raises(DecodeError):
        cbor.as_int(256, 255)
    assert cbor.as_bool(True) is True
    with pytest.raises(DecodeError):
        cbor.as_bool(1)


def test_strings_lists_and_maps() -> None:
    assert cbor.as_bytes(b"ab", 2) == b"ab"
    assert cbor.as_text("a") == "a"
    assert cbor.as_list([1], 1) == [1]
    assert cbor.as_map({1: 2}) == {1: 2}
    wrong: list[tuple[Any, tuple[Any, ...]]] = [
        (cbor.as_bytes, ("a",)),
        (cbor.as_bytes, (b"a", 2)),
        (cbor.as_text, (b"a",)),
        (cbor.as_list, ({},)),
        (cbor.as_list, ([1], 2)),
        (cbor.as_map, ([],)),
    ]
    for accessor, arguments in wrong:
        with pytest.raises(DecodeError):
            accessor(*arguments)


def test_enumerations_are_definite_arrays_of_two() -> None:
    assert cbor.variant([1, [2]]) == (1, [2])
    assert cbor.variant([2, None]) == (2, [])
    for encoded in ("00", "8100", "83008080", "9f0080ff", "822080", "82f580"):
        with pytest.raises(DecodeError):
            cbor.variant(cbor.decode(bytes.fromhex(encoded)))


def _signature(value: object) -> None:
    kind, fields = cbor.variant(value)
    cbor.as_int(kind, 1)
    cbor.as_bytes(cbor.as_list(fields, 1)[0], 64)


def _change(value: object) -> None:
    fields = cbor.as_list(value, 2)
    cbor.as_bytes(fields[0])
    _signature(fields[1])
    if len(fields) > 2 and fields[2] is not None and cbor.variant(fields[2])[0] <= 1:
        _signature(fields[2])


def _history(value: object) -> None:
    for change in cbor.as_list(value):
        _change(change)


def _versioned(value: object) -> None:
    version, kind, data = cbor.as_list(value, 3)[:3]
    cbor.as_int(version, 255)
    cbor.as_int(kind, 255)
    cbor.as_bytes(data)


def _change_data(value: object) -> None:
    previous, key, revoke, since, until = cbor.as_list(value, 5)[:5]
    assert previous is None or cbor.as_bytes(previous, 32)
    cbor.variant(key)
    cbor.as_bool(revoke)
    cbor.as_int(since)
    cbor.as_int(until)


def _credential_data(value: object) -> None:
    fields = cbor.as_list(value, 5)
    schema, attributes = cbor.as_list(fields[2], 2)[:2]
    cbor.as_int(schema)
    for key, item in cbor.as_map(attributes).items():
        cbor.as_bytes(key)
        cbor.as_bytes(item)


def _payload(value: object) -> None:
    history, _, credentials = cbor.as_list(value, 3)[:3]
    _history(history)
    cbor.as_list(credentials)


SHAPES = {
    "change history": _history,
    "versioned data": _versioned,
    "change data": _change_data,
    "credential data": _credential_data,
    "handshake identity payload": _payload,
}
TOLERANCE = [c for c in vectors("cbor-decoding-tolerance")["cases"] if c["type"] in SHAPES]


@pytest.mark.parametrize("case", TOLERANCE, ids=[f"{c['type']}: {c['case']}" for c in TOLERANCE])
def test_tolerance_vectors(case: dict[str, Any]) -> None:
    data, shape = bytes.fromhex(case["hex"]), SHAPES[case["type"]]
    if case["decodes"]:
        shape(cbor.decode_prefix(data)[0])
    else:
        with pytest.raises(DecodeError):
            shape(cbor.decode_prefix(data)[0])


def test_keys_of_integers() -> None:
    data = bytes.fromhex("a1821870186301")  # {[112, 99]: 1}
    assert cbor.decode(data, byte_keys=True) == {b"pc": 1}
    with pytest.raises(DecodeError, match="map key"):
        cbor.decode(data)
    with pytest.raises(DecodeError, match="range"):
        cbor.decode(bytes.fromhex("a18119010001"), byte_keys=True)  # [256]


def test_deeper_where_the_caller_says_so() -> None:
    nested = b"\x81" * 20 + b"\x00"
    with pytest.raises(DecodeError, match="deeper than 16"):
        cbor.decode(nested)
    assert cbor.decode(nested, depth=20)
