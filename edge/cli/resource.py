"""What all things of a running node have in common: to be listed, shown and deleted by name."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from edge.cli import client
from edge.cli.output import Result, confirm, done, lines, listing
from edge.errors import ApiError

Item = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """One kind of thing: its path in the control API, its key, and how it looks."""

    path: str
    word: str
    key: Callable[[Item], str]
    line: Callable[[Item], str]
    as_json: Callable[[str, Item], Any] = lambda _, item: item


def everything(kind: Kind, at: str | None) -> Result:
    name = client.node_name(at)
    items = client.connect(name).get(kind.path)
    result = listing(items, kind.line, f"there is no {kind.word} on node {name}")
    result.json = [kind.as_json(name, item) for item in items]
    return result


def one(kind: Kind, wanted: str | None, at: str | None) -> tuple[str, Item | None]:
    """The node's name, and the item; None when the node has none of this kind at all."""
    node = client.node_name(at)
    items = client.connect(node).get(kind.path)
    if not items:
        return node, None
    if wanted is None and len(items) == 1 and sys.stdin.isatty():
        return node, items[0]
    if wanted is None:
        raise ApiError(
            f"which {kind.word}?", hint="name one of: " + ", ".join(map(kind.key, items))
        )
    for item in items:
        if kind.key(item) == wanted:
            return node, item
    raise ApiError(f"{kind.word} {wanted} on node {node} was not found", status=404)


def show(kind: Kind, wanted: str | None, at: str | None) -> Result:
    node, item = one(kind, wanted, at)
    if item is None:
        return Result(text=f"    there is no {kind.word} on node {node}", json=[])
    return Result(text=lines(item), json=kind.as_json(node, item))


def delete(
    kind: Kind,
    wanted: str | None,
    at: str | None,
    *,
    yes: bool,
    all_: bool = False,
    result: Callable[[str, str], Result] | None = None,
) -> Result | None:
    """Delete one, or all. Without a name off a terminal nothing happens, as with stock."""
    node = client.node_name(at)
    names = _chosen(kind, wanted, node, all_=all_)
    if not names:
        return Result(json=[]) if wanted or all_ else None
    confirm(f"Delete {kind.word} {', '.join(names)} of node {node}?", yes=yes)
    peer = client.connect(node)
    for name in names:
        peer.delete(f"{kind.path}/{name}")
    made = (result or _deleted)(node, names[0])
    if len(names) == 1:
        return made
    text = "\n".join(done(f"{kind.word} {name} was deleted from node {node}") for name in names)
    return Result(text=text, json=[{"alias": name, "node": node} for name in names])


def unnamed(what: str) -> None:
    """Nothing was named: on a terminal a usage error, elsewhere nothing happens, as with stock."""
    if sys.stdin.isatty():
        raise click.UsageError(f"name {what}, or give --all")


def _chosen(kind: Kind, wanted: str | None, node: str, *, all_: bool) -> list[str]:
    if wanted is None and not all_ and not sys.stdin.isatty():
        return []
    if all_:
        return [kind.key(item) for item in client.connect(node).get(kind.path)]
    _, item = one(kind, wanted, node)
    return [] if item is None else [kind.key(item)]


def _deleted(node: str, name: str) -> Result:
    return Result(
        text=done(f"{name} was deleted from node {node}"), json={"alias": name, "node": node}
    )


def at_option(*names: str, text: str = "The node.") -> Callable[[Any], Any]:
    from edge.cli.arguments import NODE  # noqa: PLC0415

    return click.option(*(names or ("--at",)), "at", type=NODE, metavar="NODE", help=text)


yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask.")
all_option = click.option("--all", "all_", is_flag=True, help="All of them.")
