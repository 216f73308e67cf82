"""`node`: the process that everything runs in."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.cli import client, configured, local, making
from edge.cli.arguments import NODE, Address, HostPort, Loopback, Name, Route
from edge.cli.main import Noun
from edge.cli.nodetext import RESOURCES, block
from edge.cli.output import ABSENT, Result, confirm, done, listing, note, settings
from edge.cli.resource import all_option, unnamed, yes_option
from edge.errors import ConfigError, NetworkError

if TYPE_CHECKING:
    from edge.node.store import NodeRecord

NONE = "there is no node"


@click.group("node", cls=Noun)
def node() -> None:
    """Nodes: the processes that everything runs in."""


@node.command()
@click.argument("name", metavar="[NAME|FILE|URL|YAML]", required=False)
@click.option(
    "--configuration", "--node-config", "inline", metavar="YAML", help="The configuration itself."
)
@click.option(
    "--variable", "variables", multiple=True, metavar="NAME=VALUE",
    help="A variable of the configuration; again for more.",
)  # fmt: skip
@click.option(
    "--enrollment-ticket", "ticket", metavar="TICKET",
    help="Enroll first: a ticket, a file or a URL; or in $ENROLLMENT_TICKET.",
)  # fmt: skip
@click.option("--identity", type=Name("identity"), help="Who the node is; made if it is missing.")
@click.option(
    "-t", "--tcp-listener-address", "listener", type=Address(), default="127.0.0.1:0",
    help="Where it accepts TCP connections.",
)  # fmt: skip
@click.option("--no-tcp-listener", is_flag=True, help="It accepts TCP connections nowhere.")
@click.option(
    "--keep-channel-key",
    is_flag=True,
    help="Present the same channel key after a restart: it is kept, sealed, on the disk.",
)
@click.option(
    "--status-endpoint", "endpoint", type=Loopback(),
    help="Where it shows its status, health and metrics by HTTP, to this machine only.",
)  # fmt: skip
@click.option(
    "--log-format", type=click.Choice(["text", "json"]), help="How lines of its log look."
)
@click.option("--project", metavar="NAME", help="Its fleet; without it, the default project.")
@click.option("--no-project", is_flag=True, help="It belongs to no fleet.")
@click.option("--authority-identity", metavar="HEX", help="Whose credentials count: its history.")
@click.option("--authority-route", type=Route(), help="Where our own credential comes from.")
@click.option("--credential-scope", metavar="TEXT", help="Under which our own one is stored.")
@click.option("--no-start", is_flag=True, help="Do not start it: a service of the system will.")
@click.option("-f", "--foreground", is_flag=True, help="Stay attached until the node ends.")
@click.option(
    "-e", "--exit-on-eof", is_flag=True, help="End with standard input; needs --foreground."
)
@click.pass_context
def create(
    context: click.Context,
    name: str | None,
    inline: str | None,
    variables: tuple[str, ...],
    ticket: str | None,
    identity: str | None,
    listener: HostPort,
    no_tcp_listener: bool,
    keep_channel_key: bool,
    endpoint: HostPort | None,
    log_format: str | None,
    project: str | None,
    no_project: bool,
    authority_identity: str | None,
    authority_route: str | None,
    credential_scope: str | None,
    no_start: bool,
    foreground: bool,
    exit_on_eof: bool,
) -> Result:
    """Make a node and start it: by its NAME, or with a configuration from a FILE, a URL, standard input
    (-) or the argument itself. A second time, it becomes what the configuration says then."""
    if no_start and foreground:
        raise click.UsageError("--no-start and --foreground exclude each other")
    name, source = configured.find(name, inline)
    config = configured.read(source, variables, name)
    environment = os.environ.pop("ENROLLMENT_TICKET", None)  # whatever comes of it, no node gets it
    ticket = ticket or environment
    if (exit_on_eof or config.exit_on_eof) and not (foreground or config.foreground):
        raise click.UsageError("--exit-on-eof needs --foreground")
    if no_start and (config.resources or config.policies):
        raise click.UsageError("--no-start: what a node has can only be made while it runs")
    plan = making.Plan(
        name or config.name or f"node-{os.urandom(4).hex()}",
        config,
        identity or config.identity,
        making.listener_of(context, config, None if no_tcp_listener else str(listener)),
        making.kept(config, keep_channel_key, endpoint, log_format),
        foreground or config.foreground,
        exit_on_eof or config.exit_on_eof,
    )
    if making.is_there(plan.name):
        if source is None or no_start:
            making.taken(plan.name)
        making.again(plan, project)
        return _running(plan.name, machine=plan.name)
    fleet = not (authority_identity or no_project)
    project = project or (config.project if fleet else None)
    if (text := making.ticket_of(ticket, config)) is not None:
        joined = making.enrolled(text, project, plan)
        project = joined if fleet else project
    trusted = _trust(project, no_project, authority_identity, authority_route, credential_scope)
    plan = plan._replace(kept=plan.kept | trusted)
    if no_start:
        making.recorded(plan)
        text = done(f"node {plan.name} is made, and does not run")
        return Result(text=text, machine=plan.name)
    making.make(plan)
    return _running(plan.name, machine=plan.name)


def _trust(
    project: str | None,
    no_project: bool,
    authority: str | None,
    route: str | None,
    scope: str | None,
) -> dict[str, Any]:
    """Whose word counts for the node: what is kept of it (05 §2.5)."""
    if sum((project is not None, no_project, authority is not None)) > 1:
        raise click.UsageError(
            "--project, --no-project and --authority-identity exclude each other"
        )
    if authority is None:
        if route or scope:
            raise click.UsageError("--authority-route and --credential-scope need the authority")
        return {} if no_project else _project(project)
    if route and not scope:
        raise click.UsageError("--authority-route needs --credential-scope")
    from edge.node.trustcontext import read_history  # noqa: PLC0415

    history = read_history(authority).encoded.hex()
    given = {"history": history, "route": route, "scope": scope}
    return {"authority": {key: value for key, value in given.items() if value is not None}}


def _project(wanted: str | None) -> dict[str, Any]:
    with local.store() as store:
        found = store.project(wanted) if wanted else store.default_project()
    return {} if found is None else {"project": found.name}


def on_demand(at: str | None, route: str = "") -> str:
    """The name of the node to make something on: the one that is named, the default one, or, where
    there is none at all, one that is made now. It listens nowhere. Raises ConfigError, and makes none,
    where `route` is wrong, or goes through a project and there is none: the node would never join."""
    if route:
        from edge.wire.multiaddr import Multiaddr  # noqa: PLC0415

        Multiaddr.parse(route)
    with local.store() as store:
        if at is not None or store.default_node() is not None:
            return client.node_name(at)
    kept = _project(None)
    if route.startswith("/project/") and not kept:
        raise ConfigError(
            "this machine belongs to no project",
            hint="enroll first: ockam-edge project enroll TICKET; or give the whole route",
        )
    from edge.config.file import NodeConfig  # noqa: PLC0415  (yaml)

    making.make(making.Plan("default", NodeConfig("the command line"), kept=kept))
    note("node default was made")
    return "default"


def _running(name: str, machine: str | None) -> Result:
    """The result of a start. Without a machine form JSON is printed, else only when asked for."""
    wanted = settings()
    asked = machine is None or wanted.json or wanted.compact
    text = done(f"node {name} runs") + f"\n    see it: ockam-edge node show {name}"
    return Result(text=text, machine=machine, json=_resources(name) if asked else ABSENT)


@node.command()
@click.argument("name", type=NODE, required=False)
@click.option("-f", "--foreground", is_flag=True, help="Stay attached until the node ends.")
def start(name: str | None, foreground: bool) -> Result:
    """Start a node again, with everything it had."""
    name = client.node_name(name)
    found = local.home().running(name)
    if found is not None:
        raise ConfigError(
            f"node {name} runs already, as process {found.pid}",
            hint=f"see it: ockam-edge node show {name}",
        )
    making.start(name, foreground)
    return _running(name, machine=None)


FILE = click.option(
    "--file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Its configuration, if it exists.",
)


@node.command()
@click.argument("name", type=NODE, required=False)
@FILE
def run(name: str | None, file: Path | None) -> None:
    """Be a node, as a service of the system: for units, which want this process to be the node.

    Where the file is there and the node is not, the node is made first, and enrolled.
    """
    from edge.cli import spawn  # noqa: PLC0415

    made = None if file is None else _made_by(file, name)
    spawn.become(local.home(), made or client.node_name(name))


def _made_by(file: Path, name: str | None) -> str | None:
    """The name of the node that a file is about. What it is to have it gets when it runs: apply().
    A file with mistakes keeps no node from running that is there."""
    try:
        plan = making.of_file(file, name)
    except ConfigError as error:
        try:
            found = client.node_name(name)
        except ConfigError:
            raise error from None
        note(f"warning: node {found} runs as it was: {error}")
        return found
    if plan is None or making.is_there(plan.name):
        return None if plan is None else plan.name
    project = plan.config.project
    if (text := making.ticket_of(None, plan.config)) is not None:
        project = making.enrolled(text, project, plan)
    making.recorded(plan._replace(kept=plan.kept | _project(project)))
    return plan.name


@node.command()
@click.argument("name", type=NODE, required=False)
@FILE
def apply(name: str | None, file: Path | None) -> Result:
    """Have a node that runs become what its file says; for units, when they start and reload."""
    plan = None if file is None else making.of_file(file, name)
    if plan is None:
        return Result(text="    there is no file: the node keeps what it has")
    client.connect(plan.name)  # raises where it does not run
    making.again(plan, None)
    return Result(text=done(f"node {plan.name} is what {file} says"))


@node.command()
@click.argument("name", type=NODE, required=False)
@click.option("-f", "--force", is_flag=True, help="Kill it.")
@all_option
def stop(name: str | None, force: bool, all_: bool) -> Result:
    """Stop a node; it keeps what it has."""
    from edge.cli import spawn  # noqa: PLC0415

    names = _all() if all_ else [client.node_name(name)]
    said = []
    for one in names:
        stopped = spawn.stop(local.home(), one, force=force)
        with local.store() as store:
            store.set_wanted(one, "stopped")
        said.append(done(f"node {one} " + ("was stopped" if stopped else "did not run")))
    return Result(text="\n".join(said))


def _all() -> list[str]:
    with local.store() as store:
        return [record.name for record in store.nodes()]


@node.command()
@click.argument("name", type=NODE, required=False)
@all_option
@yes_option
@click.option("-f", "--force", is_flag=True, help="Kill it.")
def delete(name: str | None, all_: bool, yes: bool, force: bool) -> Result | None:
    """Stop a node and forget it, with everything it has."""
    from edge.cli import spawn  # noqa: PLC0415

    known = _all()
    if not known:
        return Result(json=[])
    names = known if all_ else [client.node_name(name)] if name else []
    if not names:
        unnamed("a node")
        return None
    confirm(f"Delete node {', '.join(names)} and everything it has?", yes=yes)
    for one in names:
        spawn.stop(local.home(), one, force=force)
        making.forget(one)
    text = "\n".join(done(f"node {one} is deleted") for one in names)
    items = [{"name": one} for one in names]
    return Result(text=text, machine="\n".join(names), json=items[0] if len(items) == 1 else items)


@node.command()
@click.argument("name", type=NODE, required=False)
def default(name: str | None) -> Result:
    """Show the default node, or make NAME the default."""
    if name:
        with local.store() as store:
            store.make_default_node(name)
        return Result(text=done(f"{name} is the default node"), machine=name)
    return Result(text=client.node_name(None))


@node.command()
@click.argument("name", type=NODE, required=False)
def logs(name: str | None) -> Result:
    """The path of a node's log."""
    path = str(local.home().log(client.node_name(name)))
    return Result(text=path, machine=path, json={"path": path})


@node.command("list")
def list_() -> Result:
    """All nodes."""
    with local.store() as store:
        items = [_item(record) for record in store.nodes()]
    return listing(items, _line, NONE)


def _item(record: "NodeRecord") -> dict[str, Any]:
    found = local.home().running(record.name)
    status: dict[str, Any] = {"status": "stopped"} if found is None else {
        "status": "running", "pid": found.pid,
    }  # fmt: skip
    return {
        "node_name": record.name,
        "status": status,
        "pid": found and found.pid,
        "is_default": record.is_default,
    }


def _line(item: dict[str, Any]) -> str:
    state = f"UP, process {item['pid']}" if item["pid"] else "DOWN"
    return f"{item['node_name']}: {state}{' (default)' if item['is_default'] else ''}"


@node.command()
@click.argument("name", type=NODE, required=False)
def show(name: str | None) -> Result:
    """One node: whether it runs, and what it has."""
    if not _all():
        return Result(text=f"    {NONE}", json=[])
    found = _resources(client.node_name(name))
    return Result(text=block(found), json=found)


def _resources(name: str) -> dict[str, Any]:
    """What a node says of itself; for one that is stopped or silent, what the store says of it."""
    running = local.home().running(name)
    if running is None:
        return _stored(name, {"status": "stopped"})
    try:
        said: dict[str, Any] = client.Client(name, running.socket, timeout=5.0).get("/node")
    except NetworkError:
        return _stored(name, {"status": "zombie", "pid": running.pid})
    return said


def _stored(name: str, state: dict[str, Any]) -> dict[str, Any]:
    with local.store() as store:
        record = store.node(name)
    return {
        "name": name,
        "identity_name": record.identity,
        "is_default": record.is_default,
        **state,
        "route": {"short": f"/node/{name}"},
        "status_endpoint_address": None,
        **{kind: [] for kind in RESOURCES},
    }
