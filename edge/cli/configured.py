"""What `node create` does with a configuration: finds its text, has the node become what it says."""

import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from edge.cli import client
from edge.cli.output import note
from edge.config.values import parse_name
from edge.errors import ConfigError, EdgeError, NetworkError

if TYPE_CHECKING:
    from edge.config.file import NodeConfig
    from edge.config.mistakes import Place
    from edge.node.node import Node

LONGEST = 1 << 20
"""Bytes of a configuration; of its characters see edge/config/document.py."""
DOWNLOAD = 20.0
"""Seconds that the download of a configuration may take."""
PATIENCE = 60.0
"""Seconds that a node may take to become what a file says, beyond what any request may take."""


class Source(NamedTuple):
    """The text of a configuration; `label` stands in messages for where it is from."""

    text: str
    label: str


# -- the text


def find(word: str | None, inline: str | None) -> tuple[str | None, Source | None]:
    """The name of the node and its configuration, of which either may be missing. `word` is a name, or
    a configuration: a file, a URL, `-` for standard input, or YAML itself."""
    source = _source(word)
    if inline is not None:
        if source is not None:
            raise click.UsageError("a configuration is given twice: as argument and as option")
        source = Source(inline, "--configuration")
    elif source is not None:
        return None, source
    if word is None:
        return None, source
    try:
        return parse_name(word, "node"), source
    except ValueError as error:
        raise click.UsageError(f"{error}; nor is it a file or a URL") from None


def _source(word: str | None) -> Source | None:
    if word is None:
        return None
    if word == "-":
        return Source(
            _decoded(sys.stdin.buffer.read(LONGEST + 1), "standard input"), "standard input"
        )
    if word.startswith(("http://", "https://")):
        return _download(word)
    if "\n" in word or ": " in word or word.startswith("{") or word.endswith(":"):
        return Source(word, "the argument")
    path = Path(word)
    if not os.path.exists(path) or path.is_dir():  # the former is false also of what is too long
        return None
    try:
        with path.open("rb") as file:
            return Source(_decoded(file.read(LONGEST + 1), word), word)
    except OSError as error:
        raise ConfigError(f"{word} cannot be read: {error.strerror}") from None


def _decoded(data: bytes, label: str) -> str:
    if len(data) > LONGEST:
        raise ConfigError(f"{label} is too long for a configuration")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"{label}:{line}: this is not UTF-8") from None


def _download(url: str) -> Source:
    from urllib.parse import urlsplit  # noqa: PLC0415
    from urllib.request import urlopen  # noqa: PLC0415

    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    label = f"{parts.scheme}://{host}{parts.path}"  # the rest may be a secret
    try:
        with urlopen(url, timeout=DOWNLOAD) as answer:
            return Source(_decoded(answer.read(LONGEST + 1), label), label)
    except (OSError, ValueError) as error:
        raise NetworkError(
            f"{label} cannot be downloaded: {getattr(error, 'reason', None) or error}"
        ) from None


def read_variables(given: tuple[str, ...]) -> dict[str, str]:
    """Of `--variable NAME=VALUE`."""
    from edge.config.variables import is_name  # noqa: PLC0415

    found: dict[str, str] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or not is_name(name) or not value:
            raise click.UsageError(f"--variable {name}: write NAME=VALUE, with a value")
        if name in found:
            raise click.UsageError(f"--variable {name} is given twice")
        found[name] = value
    return found


def read(source: Source | None, variables: tuple[str, ...], name: str | None) -> "NodeConfig":
    """What the text says; of no text, nothing. Raises Mistakes."""
    from edge.config import file  # noqa: PLC0415  (yaml)

    given = read_variables(variables)
    if source is None:
        return file.NodeConfig("the command line")
    config = file.read(source.text, source.label, environment=os.environ, given=given, name=name)
    for warning in config.warnings:
        note(f"warning: {warning}")
    return config


# -- what the node is asked for


@contextmanager
def located(config: "NodeConfig", place: "Place | None", key: str) -> Iterator[None]:
    """An error within says where in the file its cause is, if it is there."""
    try:
        yield
    except EdgeError as error:
        if place is not None:
            error.args = (config.at(place, f"{key}: {error}"), *error.args[1:])
        raise


def wanted(config: "NodeConfig") -> dict[str, Any]:
    """As the node takes it; names of nodes in routes are replaced by their addresses."""
    resources = []
    for one in config.resources:
        body = {key: value for key, value in one.body.items() if value is not None}
        for field in ("at", "to") if one.kind in ("relay", "tcp-inlet") else ():
            if field in body:
                with located(config, one.place, one.key):
                    body[field] = client.resolved(body[field])
        resources.append({"kind": one.kind, "body": body})
    policies = [
        {key: value for key, value in one.body.items() if value is not None}
        for one in config.policies
    ]
    return {"resources": resources, "policies": policies}


def apply(name: str, config: "NodeConfig", asked: dict[str, Any]) -> None:
    """Have a running node become what the file says. Raises Mistakes with all that failed."""
    peer = client.connect(name, timeout=client.TIMEOUT + PATIENCE)
    _report(config, peer.post("/node/configuration", asked))


def preparing(
    config: "NodeConfig", asked: dict[str, Any]
) -> "Callable[[Node], Awaitable[None]] | None":
    """The same for a node of this process, before it says that it is ready."""
    if not asked["resources"] and not asked["policies"]:
        return None

    async def prepare(node: "Node") -> None:
        _report(config, await node.configuration.apply(asked))

    return prepare


def _report(config: "NodeConfig", changes: list[dict[str, Any]]) -> None:
    from edge.config.mistakes import Mistake, Mistakes, Place  # noqa: PLC0415

    places = {("policy", one.resource or one.type): (one.place, one.key) for one in config.policies}
    places |= {("policy", one.name): (one.place, one.key) for one in config.resources}
    places |= {(one.kind, one.name): (one.place, one.key) for one in config.resources}
    failed, hints = [], []
    for change in changes:
        if "error" in change:
            otherwise = Place(1, 1), f"{change['kind']} {change['name']}"
            place, key = places.get((change["kind"], change["name"]), otherwise)
            failed.append(Mistake(place, key, change["error"]))
            hints.append(change.get("hint") or "")
        else:
            note(_said(change))
    if failed:
        mistakes = Mistakes(config.source, failed)
        mistakes.hint = hints[0] if len(hints) == 1 else ""
        raise mistakes


def _said(change: dict[str, Any]) -> str:
    text = f"{change['kind']} {change['name']} was {change['what']}"
    if change.get("state") == "Down":
        reason = change.get("reason")
        text += ", and is not connected yet" + (f": {reason}" if reason else "")
    return text
