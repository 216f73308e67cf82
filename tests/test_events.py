"""The names of events: docs/events.md, edge/events.py and what the code says are the same."""

import ast
import re
from pathlib import Path

import pytest

from edge.errors import ConfigError
from edge.events import EVENTS, event

ROOT = Path(__file__).parent.parent
SOURCES = [path for path in (ROOT / "edge").rglob("*.py") if path.name != "events.py"]
LEVELS = {"info", "warning", "error", "exception", "log"}
QUIET = {"edge.cli"}


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


def test_the_document_lists_them() -> None:
    rows = re.findall(
        r"^\| `([a-z-]+)` \| (.*) \| (.*) \|$", (ROOT / "docs/events.md").read_text(), re.M
    )
    shown = {name: (meaning, advice) for name, meaning, advice in rows}
    assert shown == {name: (one.meaning, one.advice) for name, one in EVENTS.items()}


def test_the_code_tells_all_of_them() -> None:
    said = {
        node.value
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert EVENTS.keys() <= said


def test_every_line_of_a_node_has_an_event() -> None:
    """DEBUG is for those who read the code."""
    without = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in SOURCES
        if path.parent.name != "cli"
        for call in calls(path)
        if isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "log"
        and call.func.attr in LEVELS
        and not any(keyword.arg == "extra" for keyword in call.keywords)
    ]
    assert without == []


def test_what_ends_is_an_event() -> None:
    assert {ended for one in EVENTS.values() for ended in one.ends} <= EVENTS.keys()


def test_an_event_is_known_and_says_what_to_do() -> None:
    with pytest.raises(KeyError):
        event("relay-upp")
    assert event("bug", ConfigError("x", hint="y"), peer=None, relay=3) == {
        "event": "bug", "hint": "y", "fields": {"relay": "3"},
    }  # fmt: skip
    assert event("bug", OSError())["hint"] == EVENTS["bug"].advice
