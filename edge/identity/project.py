"""A project: an authority, the way to it, and the hub that its members meet at.

Source: 05 §2.1 and §2.6. A project is "ready" when both routes and both histories are there; stock
0.150 then needs no cloud. Nothing here is secret.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from edge.errors import ConfigError, EdgeError
from edge.identity.history import ChangeHistory, Identifier
from edge.wire.multiaddr import Multiaddr

MAX_TEXT = 1 << 16
"""Characters of a project in any form; histories are the long part of it."""
_FIRST = ("ip4", "ip6", "dnsaddr")
_AFTER = ("service", "worker", "secure")


class Project(NamedTuple):
    """What a member needs to know of its project."""

    id: str
    name: str
    access_route: Multiaddr
    history: ChangeHistory
    """Of the project's own identity: that of the hub."""
    authority: ChangeHistory
    authority_route: Multiaddr

    @property
    def identifier(self) -> Identifier:
        return self.history.identifier

    @property
    def model(self) -> dict[str, Any]:
        """The JSON object that stock imports, exports, and puts into legacy tickets (05 §2.6)."""
        return {
            "id": self.id,
            "name": self.name,
            "space_name": "",
            "access_route": str(self.access_route),
            "users": [],
            "space_id": "",
            "identity": str(self.identifier),
            "authority_access_route": str(self.authority_route),
            "authority_identity": self.authority.encoded.hex(),
            "version": None,
            "running": None,
            "operation_id": None,
            "user_roles": [],
            "project_change_history": self.history.encoded.hex(),
        }

    @classmethod
    def from_model(cls, model: object) -> Project:
        """The project in a JSON object. The identifier in it is only for people: it is computed
        from the history (05 §2.1). Raises ConfigError where something is missing or wrong."""
        if not isinstance(model, dict):
            raise ConfigError("a project is a JSON object")
        return checked(
            _text(model, "id"),
            _text(model, "name"),
            _text(model, "access_route"),
            _text(model, "project_change_history"),
            _text(model, "authority_identity"),
            _text(model, "authority_access_route"),
        )

    @classmethod
    def parse(cls, text: str) -> Project:
        """The JSON text of a project file."""
        return cls.from_model(parse_json(text, "the project file"))


def checked(
    id_: str, name: str, access_route: str, history: str, authority: str, authority_route: str
) -> Project:
    """A project of texts: routes that stock takes, histories (hex) that verify. ConfigError."""
    if not id_ or not name or "," in name:
        raise ConfigError("a project has an id, and a name without a comma")
    return Project(
        id_,
        name,
        _route("the project's access route", access_route),
        _history("the project's change history", history),
        _history("the authority's change history", authority),
        _route("the authority's route", authority_route),
    )


def id_of_route(route: Multiaddr) -> str:
    """The project id that stock 0.150 reads off an access route: its first service (05 §2.1)."""
    for name, value in route.components:
        if name == "service":
            return value
    raise ConfigError(
        f"the project route {route} has no /service/ in it",
        hint="write it as /dnsaddr/<id>.example.com/tcp/4000/service/<id>/service/api",
    )


def parse_json(text: str, what: str) -> Any:
    """JSON of bounded length and depth, as somebody else wrote it."""
    if len(text) > MAX_TEXT:
        raise ConfigError(f"{what} is longer than {MAX_TEXT} characters")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ConfigError(f"{what} is not JSON") from None


def _text(model: dict[Any, Any], key: str) -> str:
    value = model.get(key)
    if not isinstance(value, str):
        raise ConfigError(
            f"the project has no {key}",
            hint="without a cloud it needs both routes and both change histories",
        )
    return value


def _route(what: str, text: str) -> Multiaddr:
    """One address, a TCP port, then services (05 §2.1, what stock takes)."""
    route = Multiaddr.parse(text)
    names = [name for name, _ in route.components]
    if names[:1] and names[0] in _FIRST and names[1:2] == ["tcp"] and set(names[2:]) <= set(_AFTER):
        return route
    raise ConfigError(
        f"{what} is {str(route)[:200]!r}",
        hint="it starts with ip4, ip6 or dnsaddr and tcp; service, worker and secure may follow",
    )


def _history(what: str, text: str) -> ChangeHistory:
    try:
        history = ChangeHistory.decode(bytes.fromhex(text))
        history.verify()
    except (ValueError, EdgeError) as error:
        said = f": {error}" if isinstance(error, EdgeError) else ", which is hexadecimal"
        raise ConfigError(
            f"{what} does not verify{said}",
            hint="was the ticket or the project file changed or cut off on its way? Get it once more",
        ) from None
    return history
