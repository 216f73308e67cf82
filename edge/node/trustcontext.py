"""Whose word counts for a node: its authority, the way there, and its project (05 §2.5)."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from edge.errors import ConfigError, EdgeError
from edge.identity.history import ChangeHistory, Identifier
from edge.identity.project import Project
from edge.node.store import ProjectRecord, Store
from edge.wire.multiaddr import Multiaddr


class TrustContext(NamedTuple):
    """`route`: where credentials come from, None where only stored ones are used. `scope`: under which
    name they are stored, None where none is presented."""

    authority: ChangeHistory
    route: Multiaddr | None = None
    scope: str | None = None
    project: Project | None = None

    @property
    def identifier(self) -> Identifier:
        return self.authority.identifier


def of_project(project: Project) -> TrustContext:
    return TrustContext(project.authority, project.authority_route, scope_of(project), project)


def scope_of(project: Project) -> str:
    """The name that stock gives it."""
    return f"project-member-{project.id}"


def read_project(record: ProjectRecord) -> Project:
    return Project.from_model(json.loads(record.model))


def find_project(store: Store, name: str | None) -> Project:
    """The project of that name, or the default one."""
    record = store.project(name) if name is not None else store.default_project()
    if record is None:
        raise ConfigError(
            "there is no project",
            hint="enroll with a ticket (ockam-edge project enroll), import a project file, or make "
            "one here (ockam-edge project init)",
        )
    return read_project(record)


def keep_project(store: Store, project: Project) -> ProjectRecord:
    """Remember it, or what is newer of it. Raises as check_authority()."""
    check_authority(store, project)
    return store.put_project(project.name, project.id, json.dumps(project.model))


def check_authority(store: Store, project: Project) -> None:
    """Raises ConfigError where a project of that name or id has another authority here: whoever holds
    the authority decides who comes in."""
    for record in store.projects():
        if project.name == record.name or project.id == record.id:
            ours = read_project(record).authority.identifier
            if ours != project.authority.identifier:
                raise ConfigError(
                    f"the project {record.name} is here already, with the authority {ours}; this one's"
                    f" is {project.authority.identifier}",
                    hint=f"if that is right, delete it first: ockam-edge project delete {record.name}",
                )


def of_settings(store: Store, settings: dict[str, Any]) -> TrustContext | None:
    """What `node create` was told: a project by name, or an authority by its history."""
    name, given = settings.get("project"), settings.get("authority")
    if name is not None:
        return of_project(read_project(store.project(name)))
    if given is None:
        return None
    route = given.get("route")
    return TrustContext(
        read_history(given["history"]),
        None if route is None else Multiaddr.parse(route),
        given.get("scope"),
    )


def read_history(text: str) -> ChangeHistory:
    """Of an authority, in hexadecimal, verified. Raises ConfigError."""
    try:
        history = ChangeHistory.decode(bytes.fromhex(text.strip()))
        history.verify()
    except (ValueError, EdgeError) as error:
        said = str(error) if isinstance(error, EdgeError) else "it is not hexadecimal"
        raise ConfigError(
            f"the authority's change history does not verify: {said}",
            hint="give what `identity show --full --encoding hex` prints there",
        ) from None
    return history


def secured(route: Multiaddr) -> Multiaddr:
    """The route of a project or an authority, which ends with the service where channels are asked for,
    as one that opens the channel."""
    *before, (name, value) = route.components
    if name not in ("service", "secure"):
        raise ConfigError(f"{route} does not end with /service/api")
    return Multiaddr((*before, ("secure", value)))
