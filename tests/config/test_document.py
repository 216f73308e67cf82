"""YAML as texts with places; its bounds, and what of it is refused."""

import pytest

from edge.config import document
from edge.config.document import Items, Table, Text, read_document
from edge.config.mistakes import Mistakes, Place


def said(text: str) -> str:
    with pytest.raises(Mistakes) as refused:
        read_document(text, "f")
    return str(refused.value)


def test_texts_stay_texts_and_know_their_place() -> None:
    found = read_document("a: yes\nb: [0x10, 1_0, '5']\nc: {d: ~}\n", "f")
    a, b, c = (value for _, value in found.rows)
    assert a == Text("yes", Place(1, 4), plain=True, shift=0)
    assert isinstance(b, Items)
    assert [one.value for one in b.items if isinstance(one, Text)] == ["0x10", "1_0", "5"]
    assert b.items[2] == Text("5", Place(2, 16), plain=False, shift=1)
    assert isinstance(c, Table)
    assert [key.place for key, _ in c.rows] == [Place(3, 5)]
    assert isinstance(c.rows[0][1], Text)
    assert c.rows[0][1].empty


def test_aliases_are_counted_at_each_use() -> None:
    found = read_document("a: &x {b: c}\nd: *x\n", "f")
    assert found.rows[0][1] == found.rows[1][1]
    laughs = "".join(
        f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" if n else "l0: &l0 [lol]\n"
        for n in range(9)
    )
    assert said(laughs).endswith(": aliases make too much of it")
    assert said("a: &a [*a]") == "f:1:4: aliases make too much of it"


def test_json_of_any_make() -> None:
    found = read_document('{\t"a":1,\n\t"b"\t:\t"\\ud83d\\ude00\\/"\t}', "f")
    values = [(key.value, value.value) for key, value in found.rows if isinstance(value, Text)]
    assert values == [("a", "1"), ("b", "\U0001f600/")]


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("a: \x07", "f:1:4: a character that YAML does not allow"),
        ("a: b\nc: \ud800", "f:2:4: a character that YAML does not allow"),
        ('a: "\\ud800"', "f:1:4: half a character"),
        ('a: "\\UFFFFFFFF"', "f:1:7: a character that does not exist"),
        ("a: !!python/name:os.system x", "f:1:4: tags are not supported"),
        ("a: !!binary aGk=", "f:1:4: tags are not supported"),
        ("a: !x [b]", "f:1:4: tags are not supported"),
        ("a: *b", "f:1:4: found undefined alias 'b'"),
        ("a:\n\tb: c", "f:2:1: while scanning for the next token, found character '\\t' that cannot "
            "start any token"),
        ("[" * 1000, "f:1:13: nested too deep"),
        ("- " * 1000, "f:1:25: nested too deep"),
    ],
)  # fmt: skip
def test_what_is_refused(text: str, mistake: str) -> None:
    assert said(text) == mistake


def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert said("#" * (document.LONGEST + 1)) == "f:1:1: longer than 262144 characters"
    monkeypatch.setattr(document, "MOST", 4)
    assert said("a: [b, c, d]").endswith(": more than 4 values")
    monkeypatch.setattr(document, "MOST", 6)
    assert said("a: &x [b]\nc: *x").endswith(": aliases make too much of it")
