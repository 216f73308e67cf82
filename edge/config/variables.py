"""Variables in a configuration: `$NAME`, `${NAME}`, `${NAME:-otherwise}`, and `$$` for a dollar sign.

A variable stands for a value, never for YAML: what a reference says is filled in after the text was
parsed (decision 0014). For that each reference becomes a mark of the same length, so that places stay
what they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from edge.config.document import Items, Table, Text, Value, place_of
from edge.config.mistakes import Mistake, Mistakes, Place

LONGEST = 128 * 1024
"""Characters of a text with its variables filled in."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_REFERENCE = re.compile(
    r"\$(?:\$|(?P<bare>[A-Za-z_][A-Za-z0-9_]*)|\{(?P<name>[^{}:\n]*)(?::-(?P<otherwise>[^{}\n]*))?\})"
)
_FIRST, _FILLER = 0xF0000, "\U0010fffd"
_MARK = re.compile(f"[\U000f0000-\U000ffffd]{_FILLER}+")
_OURS = re.compile(f"[\U000f0000-\U000ffffd{_FILLER}]")
_MOST = 0xFFFD


def is_name(text: str) -> bool:
    """Whether a variable may be called so."""
    return _NAME.fullmatch(text) is not None


Lookup = Callable[[str, str | None], str]


class References:
    """The references of one text. `marked` is the text with a mark for each."""

    def __init__(self, text: str, source: str) -> None:
        """Raises Mistakes where a reference is not one."""
        self._text = text
        self._found: list[re.Match[str]] = []
        if ours := _OURS.search(text):
            wrong = "a character that a configuration cannot have"
            raise Mistakes(source, [Mistake(place_of(text, ours.start()), "", wrong)])
        self.marked = _REFERENCE.sub(self._mark, text)
        if len(self._found) > _MOST:
            raise Mistakes(source, [Mistake(Place(1, 1), "", "too many variables")])

    def _mark(self, match: re.Match[str]) -> str:
        self._found.append(match)
        number = min(len(self._found) - 1, _MOST)
        return chr(_FIRST + number) + _FILLER * (len(match[0]) - 1)

    def fill(self, value: str, lookup: Lookup, mistakes: list[Mistake]) -> str:
        """The text of a value. `lookup` gives what a name stands for; it gets what stands there
        otherwise, if anything does. What it refuses goes to `mistakes`."""

        def said(mark: re.Match[str]) -> str:
            match = self._found[ord(mark[0][0]) - _FIRST]
            if match[0] == "$$":
                return "$"
            try:
                return lookup(match["bare"] or match["name"], match["otherwise"])
            except ValueError as error:
                mistakes.append(Mistake(place_of(self._text, match.start()), "", str(error)))
                return ""

        return _MARK.sub(said, value)


class Variables:
    """What names stand for: what was given first, then the environment, then the file itself."""

    def __init__(self, given: Mapping[str, str], environment: Mapping[str, str]) -> None:
        self._given = given
        self._environment = environment
        self._own: dict[str, str] = {}

    def define(self, name: str, value: str) -> bool:
        """By the file; whether that counts."""
        if self._environment.get(name) or name in self._given:
            return False
        self._own[name] = value
        return True

    def lookup(self, name: str, otherwise: str | None) -> str:
        """Raises ValueError."""
        if not is_name(name):
            raise ValueError(f"{name[:40]!r} is no name of a variable")
        for values in (self._given, self._environment, self._own):
            if found := values.get(name):
                return found
        if otherwise is None:
            raise ValueError(
                f"the variable {name} has no value: set it in the environment, with --variable "
                f"{name}=…, or under variables"
            )
        return otherwise


class Filling:
    """Fills a tree in, and keeps what is wrong."""

    def __init__(self, references: References, variables: Variables) -> None:
        self.mistakes: list[Mistake] = []
        self._references = references
        self._variables = variables

    def table(self, table: Table) -> Table:
        rows = [(self.text(key), self.value(value)) for key, value in table.rows]
        return Table(tuple(rows), table.place)

    def value(self, value: Value) -> Value:
        if isinstance(value, Text):
            return self.text(value)
        if isinstance(value, Items):
            return Items(tuple(map(self.value, value.items)), value.place)
        return self.table(value)

    def text(self, text: Text) -> Text:
        if "${" in text.value:
            self._wrong(text, "a variable is ${NAME} or ${NAME:-otherwise}; $$ is a dollar sign")
            return Text("", text.place, broken=True)
        if not _MARK.search(text.value):
            return text
        before = len(self.mistakes)
        filled = self._references.fill(text.value, self._variables.lookup, self.mistakes)
        if len(filled) > LONGEST:
            self._wrong(text, f"longer than {LONGEST} characters with its variables")
        broken = len(self.mistakes) > before
        return Text(filled, text.place, text.plain, filled=True, broken=broken)

    def _wrong(self, text: Text, said: str) -> None:
        self.mistakes.append(Mistake(text.place, "", said))
