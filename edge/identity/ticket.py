"""Enrollment tickets: a one-time code and the project that it opens (05 §2.1).

A ticket is a bearer secret until it is spent or has expired: no error says what is in it, and
`repr` leaves the code out.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from edge.errors import ConfigError, EdgeError
from edge.identity.history import Identifier
from edge.identity.project import Project, checked, id_of_route, parse_json
from edge.wire.multiaddr import Multiaddr

CODE_BYTES = 32
_FIELDS = 7
_HEX = re.compile(r"(?:[0-9a-fA-F]{2})+")
_CODE = re.compile(r"[0-9a-fA-F]{64}")


class Ticket(NamedTuple):
    code: bytes
    project: Project

    def __repr__(self) -> str:
        return f"Ticket(project={self.project.name!r})"

    @property
    def text(self) -> str:
        """Seven fields and commas: what stock 0.150 writes, and every release reads."""
        project = self.project
        return ",".join(
            (
                str(project.access_route),
                str(project.identifier),
                project.name,
                self.code.hex(),
                project.history.encoded.hex(),
                project.authority.encoded.hex(),
                str(project.authority_route),
            )
        )

    @property
    def hex(self) -> str:
        return self.text.encode().hex()

    @property
    def model(self) -> dict[str, Any]:
        """The same fields as a JSON object."""
        project = self.project
        return {
            "one_time_code": self.code.hex(),
            "project_route": {"id": project.id, "route": str(project.access_route)},
            "project_identifier": str(project.identifier),
            "project_name": project.name,
            "project_change_history": project.history.encoded.hex(),
            "authority_change_history": project.authority.encoded.hex(),
            "authority_route": str(project.authority_route),
        }

    @property
    def legacy_model(self) -> dict[str, Any]:
        """What release 0.139 wrote, as a JSON object."""
        return {"one_time_code": self.code.hex(), "project": self.project.model}

    @property
    def legacy_hex(self) -> str:
        return json.dumps(self.legacy_model, separators=(",", ":")).encode().hex()


def read(text: str) -> Ticket:
    """A ticket in any of its five forms; white space around it does not count. ConfigError."""
    text = text.strip()
    if _HEX.fullmatch(text):
        try:
            text = bytes.fromhex(text).decode().strip()
        except UnicodeDecodeError:
            raise _no_ticket() from None
    if text.startswith("{"):
        return _from_model(parse_json(text, "the enrollment ticket"))
    return _from_fields(text.split(","))


def _from_model(model: dict[str, Any]) -> Ticket:
    code = _code(model.get("one_time_code"))
    if "project" in model:
        return Ticket(code, Project.from_model(model["project"]))
    route = model.get("project_route")
    keys = (
        "project_name", "project_change_history", "authority_change_history", "authority_route",
    )  # fmt: skip
    texts = [model.get(key) for key in keys]
    if isinstance(route, dict):
        texts[:0] = [route.get("id"), route.get("route")]
    if len(texts) == len(keys) or not all(isinstance(one, str) for one in texts):
        raise ConfigError("the enrollment ticket lacks fields", hint="get a new one, whole")
    id_, access, name, *rest = (str(one) for one in texts)
    return Ticket(code, checked(id_, name, access, *rest))


def _from_fields(fields: list[str]) -> Ticket:
    if len(fields) < _FIELDS:
        if len(fields) == 1:
            raise _no_ticket()
        raise ConfigError("fields are missing in the enrollment ticket", hint="was it cut off?")
    route, identifier, name, code, history, authority, authority_route = fields[:_FIELDS]
    try:
        Identifier.parse(identifier)
    except EdgeError as error:
        raise ConfigError(f"the project identifier of the ticket: {error}") from None
    id_ = id_of_route(Multiaddr.parse(route))
    return Ticket(_code(code), checked(id_, name, route, history, authority, authority_route))


def _code(value: object) -> bytes:
    if not isinstance(value, str) or not _CODE.fullmatch(value):
        raise ConfigError("the one-time code of the ticket is not 64 hexadecimal digits")
    return bytes.fromhex(value)


def _no_ticket() -> ConfigError:
    return ConfigError(
        "this is no enrollment ticket",
        hint="give its text, or a file that holds it: ockam-edge project ticket > ticket",
    )
