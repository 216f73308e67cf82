"""Whose word counts for a node: by project, by history, or nobody's."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.errors import ConfigError
from edge.identity.project import Project
from edge.node.store import Store
from edge.node.trustcontext import (
    check_authority,
    find_project,
    keep_project,
    of_project,
    of_settings,
    read_history,
    secured,
)
from edge.wire.multiaddr import Multiaddr
from tests.people import Person, person

HUB, AUTHORITY, OTHER = person("hub"), person("authority"), person("other")
ROUTE = "/ip4/127.0.0.1/tcp/4000/service/api"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "edge.db")
    yield made
    made.close()


def project(name: str = "plant", id_: str = "p", authority: Person = AUTHORITY) -> Project:
    return Project(
        id_, name, Multiaddr.parse(f"/dnsaddr/{id_}.example.com/tcp/4000/service/{id_}/service/api"),
        HUB.history, authority.history, Multiaddr.parse(ROUTE),
    )  # fmt: skip


def test_of_a_project(store: Store) -> None:
    keep_project(store, project())
    context = of_settings(store, {"project": "plant"})
    assert context is not None
    assert context == of_project(project())
    assert (context.identifier, context.scope) == (AUTHORITY.identifier, "project-member-p")
    assert str(context.route) == ROUTE
    assert find_project(store, None) == find_project(store, "plant") == project()
    with pytest.raises(ConfigError, match="not found"):
        of_settings(store, {"project": "other"})


def test_of_an_authority(store: Store) -> None:
    history = AUTHORITY.history.encoded.hex()
    given = {"history": history, "route": ROUTE, "scope": "s"}
    context = of_settings(store, {"authority": given})
    assert context is not None
    assert (str(context.route), context.scope, context.project) == (ROUTE, "s", None)
    alone = of_settings(store, {"authority": {"history": history}})
    assert alone is not None
    assert (alone.route, alone.scope) == (None, None)
    assert of_settings(store, {}) is None


def test_no_project(store: Store) -> None:
    with pytest.raises(ConfigError, match="there is no project") as caught:
        find_project(store, None)
    assert "project enroll" in caught.value.hint


def test_the_authority_of_a_project_is_not_exchanged(store: Store) -> None:
    """Neither under its name nor under its id; what else is new of it is kept."""
    keep_project(store, project())
    for other in (project(authority=OTHER), project(name="b", authority=OTHER)):
        with pytest.raises(ConfigError, match="with the authority") as caught:
            keep_project(store, other)
        assert "project delete plant" in caught.value.hint
    moved = project()._replace(authority_route=Multiaddr.parse("/ip4/1.2.3.4/tcp/1/service/api"))
    keep_project(store, moved)
    assert find_project(store, "plant") == moved
    check_authority(store, project(name="c", id_="c", authority=OTHER))


@pytest.mark.parametrize("text", ["", "xyz", "00ff", "ff" * 100])
def test_a_history_that_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match="does not verify") as caught:
        read_history(text)
    assert "identity show" in caught.value.hint


def test_a_history_is_read_stripped() -> None:
    assert read_history(f" {AUTHORITY.history.encoded.hex()}\n") == AUTHORITY.history


def test_the_way_that_opens_a_channel() -> None:
    opened = "/ip4/127.0.0.1/tcp/4000/secure/api"
    assert str(secured(Multiaddr.parse(ROUTE))) == opened
    assert str(secured(Multiaddr.parse(opened))) == opened
    with pytest.raises(ConfigError, match="does not end"):
        secured(Multiaddr.parse("/ip4/127.0.0.1/tcp/4000"))
