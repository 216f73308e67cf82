"""Policy expressions: their two syntaxes, printing and CBOR."""

from __future__ import annotations

import math
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import ConfigError, DecodeError
from edge.policy import expr
from edge.policy.expr import Call, Name, Seq, call
from edge.policy.values import MAX_DEPTH, MAX_TEXT
from edge.wire import cbor
from tests.load import vectors

PEER = "I" + "ab" * 32
IS_PEER = call("=", Name("subject.identifier"), PEER)


def has(name: str, value: str = "true") -> expr.Expr:
    return call("=", Name(f"subject.{name}"), value)


# -- the shorthand


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a or b or c", call("or", call("or", has("a"), has("b")), has("c"))),
        ("a and b and c", call("and", call("and", has("a"), has("b")), has("c"))),
        ("a or b and c", call("or", has("a"), call("and", has("b"), has("c")))),
        ("(a or b)and c", call("and", call("or", has("a"), has("b")), has("c"))),
        ("not not a", call("not", call("not", has("a")))),
        (" not a", call("not", has("a"))),
        ("android", has("android")),
        ("orange=1", has("orange", "1")),
        ("_a-b.c=-x.1_", has("_a-b.c", "-x.1_")),
        ('place="hall 1 (or 2)"', has("place", "hall 1 (or 2)")),
        ("a\tor\r\nb", call("or", has("a"), has("b"))),
        (PEER, IS_PEER),
        ("I" + "AB" * 32, IS_PEER),
        (f"({PEER}) or a", call("or", IS_PEER, has("a"))),
        (PEER + "0", has(PEER + "0")),
        ("nota", call("not", has("a"))),
    ],
)
def test_shorthand(text: str, expected: expr.Expr) -> None:
    assert expr.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("role = plc", 5),
        ("a==b", 2),
        ('a=""', 2),
        (PEER + "=x", 66),
        ("a or", 2),
        ("a or or!", 8),
        ("é", 1),
        ("(a", 3),
        ("not ,", 4),
    ],
)
def test_what_is_wrong_with_a_shorthand(text: str, at: int) -> None:
    with pytest.raises(ConfigError, match=rf"from character {at}$"):
        expr.parse(text)


# -- the full form


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(= 1 -1 +7 0x1f -0x_)", None),
        ("(= 1 -1 +7 0x1f 1_000)", call("=", 1, -1, 7, 31, 1000)),
        (
            "(= 9223372036854775807 -9223372036854775808)",
            call("=", 9223372036854775807, -9223372036854775808),
        ),
        ("(= 1.0 1. 1e3 -2.5E-1)", call("=", 1.0, 1.0, 1000.0, -0.25)),
        ("(= inf +inf -inf)", call("=", math.inf, math.inf, -math.inf)),
        ("(= true false)", call("=", True, False)),
        (
            '(= "\\n\\t\\r\\\'\\"\\\\" "\\41\\c3\\a9" "\\u{20ac}")',
            call("=", "\n\t\r'\"\\", "Aé", "€"),
        ),
        ("(= $a @b $1)", call("=", Name("a"), Name("b"), Name("1"))),
        ('(= $"a b" c)', call("=", Name("a b"), Name("c"))),
        (
            "(= a/b:c@d+e-f !$%&*~?^ >=)",
            call("=", Name("a/b:c@d+e-f"), Name("!$%&*~?^"), Name(">=")),
        ),
        ("(member? 1 [])", call("member?", 1, Seq(()))),
        ("(member? 1 [1 2])", call("member?", 1, Seq((1, 2)))),
        (";; first\n(= 1 1) (; a (; b ;) c ;)", call("=", 1, 1)),
        ("= 1 2", call("=", 1, 2)),
        ("(=) 1", Call((call("="), 1))),
        ("=", Name("=")),
        ("(=) 1) 2)", Call((Call((call("="), 1)), 2))),
    ],
)
def test_full(text: str, expected: expr.Expr | None) -> None:
    if expected is None:
        with pytest.raises(ConfigError, match="invalid reserved token '-0x_'"):
            expr.parse(text)
    else:
        parsed = expr.parse(text)
        assert parsed == expected
        assert expr.parse(expr.text(parsed)) == parsed


@pytest.mark.parametrize(
    ("text", "problem", "at"),
    [
        ("   ;; nothing", "empty expression value", 14),
        ("(= [1 2)", r"'\[' without matching '\]'", 4),
        ("(= (1 2])", r"'\(' without matching '\)'", 4),
        ("(= 1 1) ]", r"'\]' without '\['", 9),
        ("(= [1 2", r"unclosed '\['", 4),
        (")", "must be an operation", 1),
        ("(= [1 true])", "1 and true are not of the same type", 4),
        ("(= 9223372036854775808)", "an integer of more than 64 bits", 4),
        (f"(= {'9' * 5000})", "an integer of more than 64 bits", 4),
        ("(= 1_.0)", "invalid reserved token '1_.0'", 4),
        ("(= 0x1.8)", "invalid reserved token", 4),
        ("(= $)", r"invalid reserved token '\$'", 4),
        ("(= @)", "invalid reserved token", 4),
        ("(= -a)", "invalid reserved token", 4),
        ('(= "a""b")', "invalid reserved token", 4),
        ("(= {)", "invalid reserved token", 4),
        ("(= ; )", "invalid reserved token", 4),
        ('(= "abc', "a string without end", 4),
        ('(= a"bc', "a string without end", 5),
        ("(= (; x", "a comment without end", 4),
        ('(= "\\q")', "an escape that is not known", 5),
        ('(= "\\u{d800}")', "a character that does not exist", 5),
        ('(= "\\u{ffffffff}")', "a character that does not exist", 5),
        ('(= "a\\ff")', "a string that is not UTF-8", 4),
        ('(= "a\tb")', "a control character in a string", 4),
        ("(= a\x00)", "a character that is not allowed", 5),
        ("(= a \u202e)", "a character that is not allowed", 6),
        ("(= " * (MAX_DEPTH + 1), "nested deeper than", 3 * MAX_DEPTH + 1),
        ("(=)" + ")" * (MAX_DEPTH + 1), "nested deeper than", MAX_DEPTH + 4),
    ],
)
def test_what_is_wrong_with_a_full_form(text: str, problem: str, at: int) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        expr.parse(text)
    assert f"at character {at}" in str(caught.value)
    assert caught.value.hint


def test_limits() -> None:
    with pytest.raises(ConfigError, match=f"at most {MAX_TEXT}"):
        expr.parse("a" * (MAX_TEXT + 1))
    deepest = " or ".join("a" for _ in range(MAX_DEPTH))
    assert expr.parse(expr.text(expr.parse(deepest))) == expr.parse(deepest)
    for deep in (deepest + " or a" * 2, "not " * 200 + "a", "(" * 200 + "a" + ")" * 200):
        with pytest.raises(ConfigError, match="nested deeper"):
            expr.parse(deep)


# -- printing


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.0, "1.0"),
        (1e21, "1e21"),
        (math.inf, "+inf"),
        (-math.inf, "-inf"),
        (math.nan, "nan"),
        (-3, "-3"),
        (True, "true"),
        (Call(()), "()"),
        (Seq(("a", "b")), '["a" "b"]'),
        ("q\"b\\n\nr\rt\t'", '"q\\"b\\\\n\\nr\\rt\\t\'"'),
        ("\x00\u200b é", '"\\u{0}\\u{200b} é"'),
        (Name("subject.a"), "subject.a"),
        (Name("true"), "$true"),
        (Name("1"), "$1"),
        (Name("$a"), "$$a"),
        (Name("a b"), '$"a b"'),
        (Name(""), '$""'),
    ],
)
def test_text(value: expr.Expr, expected: str) -> None:
    assert expr.text(value) == expected


def test_policy_for_identifier() -> None:
    assert expr.policy_for_identifier(f" {PEER.replace('b', 'B')}\n") == IS_PEER
    assert expr.text(IS_PEER) == f'(= subject.identifier "{PEER}")'
    with pytest.raises(ConfigError, match="not an identifier"):
        expr.policy_for_identifier("Iab")


# -- CBOR


def test_structures_of_the_vectors() -> None:
    found = str(vectors("authority-enrollment-policy"))
    boolean = "8201818204828200" + "8164726f6c65820581820081677265766f6b6564"
    full = "8200818207818382" + "0581613d8205816c7375626a6563742e726f6c6582018163706c63"
    assert boolean in found
    assert full in found
    wanted = call("and", has("role"), call("not", has("revoked")))
    assert expr.decode_policy(bytes.fromhex(boolean)) == wanted
    assert expr.decode_policy(bytes.fromhex(full)) == has("role", "plc")
    assert expr.encode_policy(has("role", "plc")).hex() == full


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([0, ["a"]], has("a")),
        ([1, ["a", "b"]], has("a", "b")),
        ([2, ["I" + "AB" * 32]], IS_PEER),
        ([1, [[0, ["a"]], [0, ["b"]]]], call("or", has("a"), has("b"))),
        ([3, [[0, ["a"]], [0, ["b"]]]], call("or", has("a"), has("b"))),
        ([2, [[0, ["a"]], [0, ["b"]]]], call("and", has("a"), has("b"))),
        ([4, [[0, ["a"]], [0, ["b"]]]], call("and", has("a"), has("b"))),
        ([3, [[0, ["a"]]]], call("not", has("a"))),
        ([5, [[0, ["a"]]]], call("not", has("a"))),
        ([4, []], Call(())),
        ([6, []], Call(())),
    ],
)
def test_boolean_form_of_both_numberings(value: object, expected: expr.Expr) -> None:
    assert expr.decode_policy(cbor.encode([1, [value]])) == expected


@pytest.mark.parametrize(
    "value",
    [
        [2, [[0, ["a"]]]],
        [0, []],
        [1, [[7, []]]],
        [1, [[0, []]]],
        [1, [[1, ["a", [0, ["a"]]]]]],
        [0, [[8, [1]]]],
        [0, [[1, []]]],
        [0, [[1, [1]]]],
        [0, [[2, [1 << 63]]]],
        [0, [[3, [1]]]],
        [0, [[4, [1]]]],
        [0, [[5, [b"a"]]]],
        [0, [[6, [1]]]],
        [0, [[6, [[[2, [1]], [1, ["a"]]]]]]],
        "x",
    ],
)
def test_what_is_not_a_policy(value: object) -> None:
    with pytest.raises(DecodeError):
        expr.decode_policy(cbor.encode(value))


def test_numbers_keep_their_types() -> None:
    value = call("=", 1, 1.5, True, -1, Seq((1, 2)))
    decoded = expr.decode(expr.encode(value))
    assert expr.text(decoded) == expr.text(value)


# -- anything


LEAVES: st.SearchStrategy[expr.Expr] = st.one_of(
    st.text(),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.floats(),
    st.booleans(),
    st.text(max_size=8).map(Name),
)


def lists(inner: st.SearchStrategy[expr.Expr]) -> st.SearchStrategy[expr.Expr]:
    items = st.lists(inner, max_size=4)
    return st.one_of(
        items.map(lambda found: Call(tuple(found))),
        items.map(lambda found: Seq(tuple(item for item in found if type(item) is type(found[0])))),
    )


ANY = st.recursive(LEAVES, lists, max_leaves=12)


@given(ANY)
def test_text_and_back(value: expr.Expr) -> None:
    whole = call("=", value)
    assert expr.text(expr.parse(expr.text(whole))) == expr.text(whole)


@given(st.text() | st.text("()[] \"=notandrI1.$@;\\x'", max_size=60))
def test_any_text_is_an_expression_or_a_config_error(text: str) -> None:
    with suppress(ConfigError):
        found = expr.parse(text)
        assert expr.text(expr.parse(expr.text(found))) == expr.text(found)


@given(st.binary(max_size=60))
def test_any_bytes_are_an_expression_or_a_decode_error(data: bytes) -> None:
    for decode in (expr.decode, expr.decode_policy):
        with suppress(DecodeError):
            decode(data)
