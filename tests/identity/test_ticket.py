"""Tickets and projects: the five forms of 05 §2.1, vectors, and everything that is none."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import ConfigError, EdgeError
from edge.identity import ticket
from edge.identity.project import MAX_TEXT, Project, id_of_route
from edge.wire.multiaddr import Multiaddr

VECTORS = json.loads(
    (Path(__file__).parents[1] / "vectors/authority-enrollment-policy.json").read_text()
)
COMPACT, LEGACY = VECTORS["ticket_compact_text"], VECTORS["ticket_legacy_json"]
CODE = bytes(range(32))


@pytest.mark.parametrize("end", ["", "\n", "  \r\n"])
@pytest.mark.parametrize(
    ("form", "id_"),
    [
        ("ticket_compact_text", "api"),  # as 0.150 reads that route
        ("ticket_compact_hex", "api"),
        ("ticket_legacy_json", "plant"),
        ("ticket_legacy_hex", "plant"),
    ],
)
def test_vectors(form: str, id_: str, end: str) -> None:
    read = ticket.read(end + VECTORS[form] + end)
    project = VECTORS["identities"]["project"]
    assert read.code == CODE
    assert read.project.id == id_
    assert read.project.name == "factory"
    assert str(read.project.identifier) == project["identifier"]
    assert read.project.history.encoded.hex() == project["change_history"]
    authority = VECTORS["identities"]["authority"]["change_history"]
    assert read.project.authority.encoded.hex() == authority


def test_written_as_in_the_vectors() -> None:
    compact, legacy = ticket.read(COMPACT), ticket.read(LEGACY)
    assert compact.text == COMPACT
    assert compact.hex == VECTORS["ticket_compact_hex"]
    assert legacy.legacy_model == json.loads(LEGACY)
    assert legacy.legacy_hex == VECTORS["ticket_legacy_hex"]


def test_every_form_reads_back() -> None:
    given = ticket.read(LEGACY)
    for text in (json.dumps(given.model), json.dumps(given.model).encode().hex(), given.legacy_hex):
        assert ticket.read(text) == given
    # The text has no place for the id: it is read off the route.
    assert ticket.read(given.text).project == given.project._replace(id="api")


def test_the_code_does_not_show() -> None:
    read = ticket.read(COMPACT)
    assert read.code.hex() not in repr(read)
    assert repr(CODE) not in repr(read)


def changed(**fields: Any) -> str:
    return json.dumps(ticket.read(COMPACT).model | fields)


def project_with(**fields: Any) -> str:
    model = json.loads(LEGACY)
    model["project"] |= fields
    return json.dumps(model)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no enrollment ticket"),
        ("some words", "no enrollment ticket"),
        ("fffe", "no enrollment ticket"),  # hexadecimal, but no text
        (COMPACT.rpartition(",")[0], "missing"),
        (COMPACT.replace("/service/api", "", 1), "no /service/"),
        (COMPACT.replace(CODE.hex(), CODE.hex()[2:]), "one-time code"),
        (COMPACT.replace("factory", ""), "name without a comma"),
        (COMPACT.replace(",Id88", ",Xd88"), "project identifier"),
        (COMPACT.replace("/dnsaddr/plant.hub.example.com/tcp/4000", "/service/x", 1), "route"),
        (COMPACT.replace(",8182583783", ",8182583784", 1), "does not verify"),
        ("{", "not JSON"),
        ('{"a":' * 5000, "not JSON"),
        ("{" + "x" * MAX_TEXT, "longer than"),
        (changed(one_time_code=7), "one-time code"),
        (changed(project_route=None), "lacks fields"),
        (changed(project_route={"id": "x"}), "lacks fields"),
        (changed(authority_route=None), "lacks fields"),
        (changed(project_change_history="zz"), "hexadecimal"),
        (project_with(authority_access_route=None), "authority_access_route"),
        (project_with(id=""), "an id"),
        (json.dumps({"one_time_code": CODE.hex(), "project": []}), "JSON object"),
    ],
)
def test_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        ticket.read(text)
    assert CODE.hex() not in f"{caught.value} {caught.value.hint}"


@given(st.text())
def test_any_text(text: str) -> None:
    with pytest.raises(EdgeError):
        ticket.read(text)


@given(st.integers(0, len(COMPACT) - 1), st.characters(codec="ascii"))
def test_any_change_is_a_ticket_or_an_error(at: int, character: str) -> None:
    try:
        read = ticket.read(COMPACT[:at] + character + COMPACT[at + 1 :])
    except EdgeError:
        return
    assert read.project.authority.identifier == ticket.read(COMPACT).project.authority.identifier


def test_a_project_file() -> None:
    project = ticket.read(LEGACY).project
    assert Project.parse(json.dumps(project.model)) == project
    assert (
        Project.parse(json.dumps(project.model | {"more": 1, "egress_allow_list": []})) == project
    )
    with pytest.raises(ConfigError, match="JSON object"):
        Project.parse("[]")


def test_the_id_of_a_route() -> None:
    route = Multiaddr.parse("/dnsaddr/p7.example.com/tcp/4000/service/p7/service/api")
    assert id_of_route(route) == "p7"
