"""Makes a node: written down, started, and what a configuration says of it; or nothing is left."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import click

from edge.cli import configured, local
from edge.cli.output import note
from edge.errors import ConfigError, EdgeError

if TYPE_CHECKING:
    from edge.config.file import NodeConfig
    from edge.node.service import Prepare
    from edge.node.store import Store

ENROLL = 240_000
"""Milliseconds that the enrollment may take."""


class Plan(NamedTuple):
    """A node to be: what the command line and the configuration say of it together."""

    name: str
    config: "NodeConfig"
    identity: str | None = None
    listener: str | None = None
    kept: dict[str, Any] = {}  # noqa: RUF012 - nobody writes to it
    foreground: bool = False
    exit_on_eof: bool = False


def of_file(file: Path, name: str | None) -> Plan | None:
    """What a file says of a node that a unit runs; None where there is no file. Without a name, the
    node has that of the file. Raises Mistakes and ConfigError."""
    if not file.exists():
        return None
    _, source = configured.find(str(file), None)
    config = configured.read(source, (), name)
    at = None if config.no_listener else str(config.listener or "127.0.0.1:0")
    kept = {"keep_channel_key": True} if config.keep_channel_key else {}
    return Plan(name or config.name or file.stem, config, config.identity, at, kept)


def listener_of(context: click.Context, config: "NodeConfig", given: str | None) -> str | None:
    """What is said on the command line goes before what the file says."""
    said = click.core.ParameterSource.COMMANDLINE
    if given is None or context.get_parameter_source("listener") is said:
        return given
    if config.no_listener:
        return None
    return given if config.listener is None else str(config.listener)


def kept(
    config: "NodeConfig", keep_channel_key: bool, endpoint: Any, log_format: str | None
) -> dict[str, Any]:
    """The settings of the node that are not of its fleet."""
    endpoint = endpoint or config.status_endpoint
    found = {
        "keep_channel_key": keep_channel_key or config.keep_channel_key or None,
        "status_endpoint": None if endpoint is None else str(endpoint),
        "log_format": log_format or config.log_format,
    }
    return {key: value for key, value in found.items() if value is not None}


def ticket_of(given: str | None, config: "NodeConfig") -> str | None:
    """Its text: what was given, or what the file says, or a systemd credential."""
    from edge.cli import fleetwork  # noqa: PLC0415

    with configured.located(config, None if given else config.places.get("ticket"), "ticket"):
        return fleetwork.read_ticket(given or config.ticket)


def enrolled(ticket: str, project: str | None, plan: Plan) -> str:
    """The name of the project that the ticket is of."""
    from edge.cli.project import join  # noqa: PLC0415

    config = plan.config
    with configured.located(config, config.places.get("ticket"), "ticket"):
        who, joined, _ = join(ticket, None, plan.identity, ENROLL)
        note(f"{who.record.identifier} is a member of project {joined.name}")
        if project not in (None, joined.name, joined.id):
            raise ConfigError(f"the ticket is of project {joined.name}, not of {project}")
    return joined.name


def is_there(name: str) -> bool:
    with local.store() as store:
        return any(record.name == name for record in store.nodes())


def again(plan: Plan, project: str | None) -> None:
    """The node exists: it becomes what the file says. What it is made of does not change, and it has
    enrolled already."""
    config = plan.config
    with local.store() as store:
        record = store.node(plan.name)
    asks = {
        "identity": (plan.identity, record.identity),
        "project": (project or config.project, record.settings.get("project")),
        "tcp-listener-address": (config.listener and str(config.listener), record.listener),
        "status-endpoint": (
            config.status_endpoint and str(config.status_endpoint),
            record.settings.get("status_endpoint"),
        ),
        "log-format": (config.log_format, record.settings.get("log_format")),
        "no-tcp-listener": ("none" if config.no_listener else None, record.listener or "none"),
    }
    for key, (wanted, there) in asks.items():
        if wanted is not None and wanted != there:
            with configured.located(config, config.places.get(key), key):
                raise ConfigError(
                    f"node {plan.name} exists already, with {there or 'none'}",
                    hint=f"delete it first: ockam-edge node delete {plan.name}",
                )
    asked = configured.wanted(config)
    if local.home().running(plan.name) is None:
        started(plan, configured.preparing(config, asked))
    elif plan.foreground:
        raise ConfigError(f"node {plan.name} runs already")
    configured.apply(plan.name, config, asked)


def make(plan: Plan) -> None:
    """Nothing of it is left where it fails, but an enrollment."""
    from edge.cli import spawn  # noqa: PLC0415  (subprocess, select)

    config = plan.config
    asked = configured.wanted(config)
    prepare = configured.preparing(config, asked)
    made = recorded(plan)
    try:
        started(plan, prepare)
        if prepare is not None:
            configured.apply(plan.name, config, asked)
    except (EdgeError, OSError, KeyboardInterrupt):
        spawn.stop(local.home(), plan.name)
        forget(plan.name, made)
        raise


def recorded(plan: Plan) -> str | None:
    """Write the node down, and an identity where it is missing; the name of one made here."""
    with local.store() as store:
        if any(record.name == plan.name for record in store.nodes()):
            taken(plan.name)
        wanted, made = _identity(store, plan.identity)
        try:
            store.add_node(plan.name, identity=wanted, listener=plan.listener, settings=plan.kept)
        except ConfigError:
            _drop_identity(store, made)
            raise
    return made


def taken(name: str) -> NoReturn:
    raise ConfigError(
        f"a node named {name} exists already",
        hint=f"start it: ockam-edge node start {name}; or delete it: ockam-edge node delete {name}",
    )


def _identity(store: "Store", wanted: str | None) -> tuple[str, str | None]:
    """The name of the node's identity, and again if it was made here."""
    known = [record.name for record in store.identities()]
    default = store.default_identity()
    if wanted is None and default is not None:
        return default.name, None
    name = wanted or "default"
    if name in known:
        return name, None
    from edge.node.clock import Clock  # noqa: PLC0415
    from edge.node.identities import create_identity  # noqa: PLC0415

    now = Clock(floor=store.time_floor()).now()
    made = create_identity(store, local.home(), name, now=now, ask=local.ask)
    note(f"identity {made.name} was made: {made.identifier}")
    return made.name, made.name


def _drop_identity(store: "Store", name: str | None) -> None:
    if name is not None:
        from edge.node.identities import delete_identity  # noqa: PLC0415

        delete_identity(store, local.home(), name, ask=local.ask)


def forget(name: str, identity: str | None = None) -> None:
    """Remove a node, its files, and an identity that was made for it."""
    home = local.home()
    with local.store() as store:
        store.remove_node(name)
        _drop_identity(store, identity)
    for path in (home.log(name), home.lock(name), home.socket(name)):
        with suppress(FileNotFoundError):
            path.unlink()


def started(plan: Plan, prepare: "Prepare | None") -> None:
    """Start it in the background; or be it, prepared, and leave with its exit code."""
    start(plan.name, plan.foreground, exit_on_eof=plan.exit_on_eof, prepare=prepare)


def start(
    name: str, foreground: bool, *, exit_on_eof: bool = False, prepare: "Prepare | None" = None
) -> None:
    """See started()."""
    from edge.cli import spawn  # noqa: PLC0415  (subprocess, select)

    if not foreground:
        if (warning := spawn.background(local.home(), name)) is not None:
            note(f"warning: {warning}")
        return
    status = spawn.foreground(
        local.home(), name, ask=local.ask, exit_on_eof=exit_on_eof, prepare=prepare
    )
    raise click.exceptions.Exit(status)
