"""What the documents say of the tree: places of the four paths, links, decisions."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
PLACE = re.compile(r"^ *([\w/]+\.py) +(\w+(?:\.\w+)?(?:, \w+(?:\.\w+)?)*)(?:  |$)", re.M)
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#]*)(?:#[^)]*)?\)")
DECISION = re.compile(r"\bdecisions?[ /](\d{1,4})\b")


def places() -> list[tuple[str, str]]:
    blocks = (ROOT / "docs/architecture.md").read_text().split("```")[1::2]
    found = [match.groups() for block in blocks for match in PLACE.finditer(block)]
    return [(file, name) for file, names in found for name in names.split(", ")]


@cache
def defined(file: str) -> set[str]:
    """Functions, classes, methods as Class.method, and constants of a file."""
    path = ROOT / file if file.startswith("vault_backends") else ROOT / "edge" / file
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            inside = (n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
            names |= {f"{node.name}.{one.name}" for one in inside}
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


@pytest.mark.parametrize(("file", "name"), sorted(set(places())))
def test_a_place_on_a_path_exists(file: str, name: str) -> None:
    assert name in defined(file)


def test_the_paths_are_there() -> None:
    assert len(places()) > 60


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for link in LINK.findall(path.read_text()):
        assert not link or (path.parent / link).exists(), link


def test_decisions_that_are_spoken_of_exist() -> None:
    there = {int(path.name[:4]) for path in (ROOT / "docs/decisions").glob("[0-9]*.md")}
    sources = [*(ROOT / "edge").rglob("*.py"), *(ROOT / "vault_backends").rglob("*.py")]
    for path in [*sources, *DOCUMENTS]:
        for number in DECISION.findall(path.read_text()):
            assert int(number) in there, f"{path}: {number}"
