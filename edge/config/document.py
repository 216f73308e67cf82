"""YAML, and so JSON, as a tree of texts with their places. What a text means is its reader's business:
`22` and `yes` are texts here. Bounded in size, depth and number, aliases counted each time."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.composer import Composer, ComposerError
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from edge.config.mistakes import Mistake, Mistakes, Place

LONGEST = 256 * 1024
"""Characters of a configuration."""
DEEPEST = 12
MOST = 20_000
"""Values, those of an alias counted at each use."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_TAGS = {yaml.ScalarNode: "str", yaml.SequenceNode: "seq", yaml.MappingNode: "map"}


@dataclass(frozen=True, slots=True)
class Text:
    """`plain`: without quotes, so it may be a number, a truth or nothing. `shift`: how far behind
    `place` its first character is; None where the text is not in the source character by character.
    `filled`: a variable is in it, which may be a secret; `broken`: one that has no value."""

    value: str
    place: Place
    plain: bool = False
    shift: int | None = None
    filled: bool = False
    broken: bool = False

    @property
    def empty(self) -> bool:
        """Written as nothing, or as YAML's null."""
        return self.plain and self.value in ("", "~", "null", "Null", "NULL")


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    items: tuple[Value, ...]
    place: Place


@dataclass(frozen=True, slots=True)
class Table:
    """Keys and values, in their order."""

    rows: tuple[tuple[Text, Value], ...]
    place: Place


Value = Text | Items | Table


def read_document(text: str, source: str) -> Table:
    """The table that the text is. Raises Mistakes."""
    if len(text) > LONGEST:
        raise Mistakes(source, [_all(f"longer than {LONGEST} characters")])
    composer = None
    try:
        composer = _Composer(text)
        root = composer.get_single_node()
        return _Tree(text).top(root)
    except ReaderError as error:
        place = place_of(text, error.position)
        mistake = Mistake(place, "", "a character that YAML does not allow")
        raise Mistakes(source, [mistake]) from None
    except yaml.MarkedYAMLError as error:
        raise Mistakes(source, [_syntax(error)]) from None
    except (
        ValueError,
        OverflowError,
    ):  # an escape for a character that does not exist, and the like
        place = _place(composer.get_mark()) if composer is not None else Place(1, 1)
        mistake = Mistake(place, "", "a character that does not exist")
        raise Mistakes(source, [mistake]) from None


def _all(text: str) -> Mistake:
    return Mistake(Place(1, 1), "", text)


def _syntax(error: yaml.MarkedYAMLError) -> Mistake:
    said = ", ".join(filter(None, (error.context, error.problem)))
    mark = error.problem_mark or error.context_mark
    return Mistake(_place(mark) if mark else Place(1, 1), "", said)


def _place(mark: Any) -> Place:
    return Place(mark.line + 1, mark.column + 1)


def place_of(text: str, position: int) -> Place:
    before = text[:position]
    return Place(before.count("\n") + 1, position - (before.rfind("\n") + 1) + 1)


class _Composer(Reader, Scanner, Parser, Composer, BaseResolver):
    """PyYAML's parser, up to its tree of nodes: nothing is constructed."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)
        self._depth = self._count = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        self._count += 1
        if self._depth > DEEPEST or self._count > MOST:
            what = "nested too deep" if self._depth > DEEPEST else f"more than {MOST} values"
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise ComposerError(None, None, what, mark)
        found = super().compose_node(parent, index)
        self._depth -= 1
        return found

    def scan_to_next_token(self) -> None:
        """JSON may be indented with tabs, which PyYAML refuses within brackets as well."""
        super().scan_to_next_token()
        while self.flow_level and self.peek() == "\t":
            self.forward()
            super().scan_to_next_token()


class _Tree:
    """Nodes of PyYAML into ours."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._count = 0

    def top(self, root: yaml.Node | None) -> Table:
        if root is None:
            raise ComposerError(None, None, "there is nothing in it", None)
        found = self.value(root, 0)
        if not isinstance(found, Table):
            raise ComposerError(None, None, "a map of sections was expected", root.start_mark)
        return found

    def value(self, node: yaml.Node, depth: int) -> Value:
        self._count += 1
        if self._count > MOST or depth > DEEPEST:
            raise ComposerError(None, None, "aliases make too much of it", node.start_mark)
        if node.tag not in ("!", f"tag:yaml.org,2002:{_TAGS[type(node)]}"):
            raise ComposerError(None, None, "tags are not supported", node.start_mark)
        place = _place(node.start_mark)
        if isinstance(node, yaml.ScalarNode):
            return self._text(node)
        if isinstance(node, yaml.SequenceNode):
            return Items(tuple(self.value(item, depth + 1) for item in node.value), place)
        return Table(tuple(self._row(key, value, depth + 1) for key, value in node.value), place)

    def _row(self, key: yaml.Node, value: yaml.Node, depth: int) -> tuple[Text, Value]:
        name = self.value(key, depth)
        if not isinstance(name, Text):
            raise ComposerError(None, None, "a key must be a text", key.start_mark)
        return name, self.value(value, depth)

    def _text(self, node: yaml.ScalarNode) -> Text:
        start, end = node.start_mark.index, node.end_mark.index
        quoted = node.style in ("'", '"')
        shown = self._source[start + quoted : end - quoted]
        shift = int(quoted) if shown == node.value and node.style != "|" else None
        value = _joined(node)
        return Text(value, _place(node.start_mark), node.style is None, shift)


def _joined(node: yaml.ScalarNode) -> str:
    """JSON writes a character beyond 16 bits as two halves; a half alone is no character."""
    value: str = node.value
    if not _SURROGATE.search(value):
        return value
    try:
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        raise ComposerError(None, None, "half a character", node.start_mark) from None
