"""The way the imports point (docs/architecture.md), read from the source with ast."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PURE = ("wire", "identity", "policy", "channel", "config", "errors", "events")
FORBIDDEN = {
    "asyncio", "logging", "os", "random", "secrets", "select", "signal", "socket", "ssl",
    "subprocess", "threading", "time", "concurrent", "multiprocessing", "uvloop",
}  # fmt: skip

# Lowest first; a part may import itself and the rows below. In a row, neighbours are strangers.
LAYERS = (
    ("errors", "events"),
    ("wire",),
    ("identity", "policy"),
    ("channel", "config"),
    ("tasks",),
    ("token",),
    ("keyring", "routing"),
    ("portal", "relay", "authority"),
    ("node",),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row}
# A part may also import these neighbours.
NEIGHBOURS = {("policy", "identity"), ("relay", "portal")}


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """The dotted names that a file imports, at any depth; `from a import b` counts as a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(path: Path) -> str:
    """The part of edge that a file belongs to; the empty name is edge itself."""
    inside = path.relative_to(ROOT / "edge")
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem.removeprefix("__init__")


def parts_imported(path: Path) -> set[str]:
    found = {name.split(".")[1] for name in imports(path) if name.startswith("edge.")}
    return found & RANK.keys()


@pytest.mark.parametrize("path", sources("edge"), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    ours = part(path)
    if not ours:
        assert not parts_imported(path)
        return
    assert ours in RANK, f"{ours} has no place in the layers"
    for theirs in parts_imported(path) - {ours}:
        assert RANK[theirs] < RANK[ours] or (ours, theirs) in NEIGHBOURS, f"{ours} -> {theirs}"


@pytest.mark.parametrize(
    "path",
    [path for path in sources("edge") if part(path) in PURE],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_the_pure_parts_have_no_world(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & FORBIDDEN


def test_only_the_keyring_and_what_is_above_it_know_vaults() -> None:
    for path in sources("edge"):
        if any(name.split(".")[0] == "vault_backends" for name in imports(path)):
            assert part(path) in {"token", "keyring", "authority", "node", "cli"}, path


def test_vaults_know_nothing_of_the_node() -> None:
    for path in sources("vault_backends"):
        assert not any(name.split(".")[0] == "edge" for name in imports(path)), path


@pytest.mark.parametrize("module", ["prometheus_client", "serial", "systemd"])
def test_a_device_library_has_one_door(module: str) -> None:
    users = [
        path
        for folder in ("edge", "vault_backends")
        for path in sources(folder)
        if any(name.split(".")[0] == module for name in imports(path))
    ]
    assert len(users) <= 1


def test_every_file_says_what_it_is_for() -> None:
    for path in [*sources("edge"), *sources("vault_backends")]:
        assert ast.get_docstring(ast.parse(path.read_text())), path
