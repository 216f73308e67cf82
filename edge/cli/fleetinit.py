"""Makes a fleet on this machine: what `project init` and `authority create` do; twice is harmless."""

from typing import TYPE_CHECKING, Any, NamedTuple

from edge.cli import local, spawn
from edge.cli.arguments import HostPort
from edge.cli.output import note
from edge.errors import ConfigError, EdgeError

if TYPE_CHECKING:
    from edge.identity.project import Project
    from edge.node.keys import Identity
    from edge.node.store import Store


class Plan(NamedTuple):
    """What `project init` was told."""

    name: str
    address: HostPort
    listen: HostPort | None
    vault: str | None
    credential_key: str
    database: str | None
    enroller: str | None
    authority: str | None = None
    """The history of an authority elsewhere, in hexadecimal; then this machine is only the hub."""
    authority_route: str | None = None


def make_project(plan: Plan) -> "Project":
    """The identities, the node, the project; and the node runs."""
    from edge.node.trustcontext import check_authority, keep_project  # noqa: PLC0415

    check_database(plan.database)
    with local.store() as store:
        _check_name(store, plan.name)
        serve = _authority_and_hub if plan.authority is None else _hub
        project, settings = serve(store, plan)
        check_authority(store, project)
        listen = plan.listen or HostPort("0.0.0.0", plan.address.port)
        add_node(store, plan.name, plan.name, str(listen), settings)
        keep_project(store, project)
    start(plan.name)
    return project


def _check_name(store: "Store", name: str) -> None:
    """A project that this machine enrolled in is not made here: before anything is written."""
    ours = {record.name for record in store.identities()}
    if name not in ours and name in {record.name for record in store.projects()}:
        raise ConfigError(
            f"the project {name} is here already, and its hub is not this machine",
            hint=f"choose another name; or forget that one: ockam-edge project delete {name}",
        )


def _authority_and_hub(store: "Store", plan: Plan) -> tuple["Project", dict[str, Any]]:
    enroller = identity(store, plan.enroller or _default_name(store), None)
    owner = identity(store, plan.name, plan.vault)
    if enroller.history.identifier == owner.history.identifier:
        raise ConfigError(
            f"the identity {plan.name} cannot be authority and enroller at once",
            hint="name another one with --enroller",
        )
    project = described(plan, owner)
    authority = authority_settings(
        project.id,
        trusted={str(enroller.history.identifier): {"ockam-role": "enroller"}},
        key=plan.credential_key,
        database=plan.database,
    )
    return project, {
        "authority": {"history": owner.history.encoded.hex()},
        "serves": {"hub": project.id, "authority": authority},
    }


def _hub(store: "Store", plan: Plan) -> tuple["Project", dict[str, Any]]:
    """The authority is elsewhere: that of another machine, or a stock one."""
    from edge.node.trustcontext import read_history  # noqa: PLC0415
    from edge.wire.multiaddr import Multiaddr  # noqa: PLC0415

    assert plan.authority is not None
    assert plan.authority_route is not None
    history, route = read_history(plan.authority), Multiaddr.parse(plan.authority_route)
    owner = identity(store, plan.name, plan.vault)
    project = described(plan, owner)._replace(authority=history, authority_route=route)
    return project, {"project": plan.name, "serves": {"hub": project.id}}


def described(plan: Plan, owner: "Identity") -> "Project":
    """The project that members know. Its id is one that every release of stock reads off the route: the
    first label of the host's name (05 §2.1); of a bare address, where only 0.150 can, the name."""
    from edge.identity.project import Project  # noqa: PLC0415
    from edge.wire.multiaddr import Multiaddr  # noqa: PLC0415

    host, port = plan.address.host, str(plan.address.port)
    kind = "ip6" if ":" in host else "ip4" if host.replace(".", "").isdigit() else "dnsaddr"
    id_ = host.split(".")[0] if kind == "dnsaddr" else plan.name
    way = ((kind, host), ("tcp", port))
    return Project(
        id_,
        plan.name,
        Multiaddr.of(*way, ("service", id_), ("service", "api")),
        owner.history,
        owner.history,
        Multiaddr.of(*way, ("service", "api")),
    )


def authority_settings(project_id: str, **given: Any) -> dict[str, Any]:
    """What the node keeps of its being an authority; what is not given is left to its default."""
    return {"project_id": project_id} | {
        name: value for name, value in given.items() if value is not None
    }


def add_node(store: "Store", name: str, owner: str, listen: str, settings: dict[str, Any]) -> None:
    """A node that is there already stays what it is."""
    from edge.node.store import Taken  # noqa: PLC0415

    try:
        store.add_node(name, identity=owner, listener=listen, settings=settings)
    except Taken:
        there = store.node(name)
        same = {key: there.settings.get(key) for key in settings} == settings
        if not same or (there.identity, there.listener) != (owner, listen):
            raise ConfigError(
                f"a node named {name} exists already, and is another one",
                hint=f"choose another name, or delete it: ockam-edge node delete {name}",
            ) from None
        note(f"node {name} is there already")


def start(name: str) -> None:
    if local.home().running(name) is not None:
        note(f"node {name} runs already")
        return
    try:
        spawn.background(local.home(), name)
    except EdgeError as error:
        start_it = f"ockam-edge node start {name}"
        error.hint = f"{error.hint}; then: {start_it}" if error.hint else f"then: {start_it}"
        raise


def check_database(source: str | None) -> None:
    """A password on a command line is everybody's, and in our database in clear."""
    if source is not None:
        from edge.authority import database  # noqa: PLC0415

        database.check(source)


def _default_name(store: "Store") -> str:
    default = store.default_identity()
    return default.name if default is not None else "default"


def identity(store: "Store", name: str, vault: str | None) -> "Identity":
    """Of that name; made where it is missing."""
    from edge.node.clock import Clock  # noqa: PLC0415
    from edge.node.identities import create_identity, load  # noqa: PLC0415

    if name not in {record.name for record in store.identities()}:
        now = Clock(floor=store.time_floor()).now()
        made = create_identity(store, local.home(), name, vault=vault, now=now, ask=local.ask)
        note(f"identity {made.name} was made: {made.identifier}")
        return load(store, name)
    found = load(store, name)
    if vault is not None and vault not in (found.record.vault, found.uri):
        raise ConfigError(
            f"the identity {name} is here already, and its key is in the vault {found.record.vault}",
            hint="leave --vault out, or give the new project another name or identity",
        )
    return found
