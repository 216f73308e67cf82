"""`policy`: who may use what on a node, by the name of a resource or by its type."""

from typing import Any

import click

from edge.cli import client
from edge.cli.arguments import Identifier
from edge.cli.main import Noun
from edge.cli.output import Result, confirm, done, listing, note
from edge.cli.resource import at_option, yes_option
from edge.errors import ConfigError

PATH = "/policy"


@click.group("policy", cls=Noun)
def policy() -> None:
    """Policies: who may use a resource, said of attributes that the authority vouches for."""


def _target(name: str | None, kind: str | None) -> dict[str, str]:
    """What a policy is about. A type's name given as a resource is taken for the type, as by stock."""
    from edge.policy.values import TYPES  # noqa: PLC0415

    if (name is None) == (kind is None):
        raise click.UsageError("give --resource NAME or --resource-type TYPE")
    if name in TYPES:
        note(f"warning: {name} is a type of resource; use --resource-type")
        return {"type": str(name)}
    return {"type": kind} if kind is not None else {"resource": str(name)}


@policy.command()
@click.option("--resource", metavar="NAME", help="The name of a resource.")
@click.option("--resource-type", "kind", metavar="TYPE", help="tcp-outlet, tcp-inlet, relay, …")
@click.option("--allow", "--expression", "allow", required=True, metavar="EXPR|IDENTIFIER")
@at_option()
def create(resource: str | None, kind: str | None, allow: str, at: str | None) -> Result:
    """Set a policy. It holds at once: connections that it refuses are cut."""
    target = _target(resource, kind)
    node = client.node_name(at)
    made = client.connect(node).post(PATH, {**target, "expression": allow})
    return Result(text=done(f"policy of {made['resource']} on node {node}: {made['expression']}"))


@policy.command()
@click.argument("resource")
@at_option()
def show(resource: str, at: str | None) -> Result:
    """The policy of a resource, or of a type."""
    found = [one for one in _all(at) if one["resource"] == resource]
    if not found:
        raise ConfigError(f"there is no policy of {resource}")
    return Result(text=f"    {found[0]['expression']}", json=found[0])


@policy.command("list")
@at_option()
@click.option("--resource", metavar="NAME", help="Of this resource only.")
def list_(at: str | None, resource: str | None) -> Result:
    """All policies, those of named resources first."""
    found = [one for one in _all(at) if resource in (None, one["resource"])]
    if not found:  # without JSON, as with stock
        return Result(text="    there is no policy")
    return listing(found, lambda item: f"{item['resource']}: {item['expression']}", "")


@policy.command()
@click.argument("resource")
@at_option()
@yes_option
def delete(resource: str, at: str | None, yes: bool) -> Result:
    """Take a policy back: that of the type holds then, or the one that every type has."""
    from edge.policy.values import TYPES  # noqa: PLC0415

    node = client.node_name(at)
    confirm(f"Delete the policy of {resource} on node {node}?", yes=yes)
    part = "type" if resource in TYPES else "resource"
    gone = client.connect(node).delete(f"{PATH}/{part}/{resource}")
    if not gone:
        raise ConfigError(f"there is no policy of {resource} that was set on node {node}")
    return Result(text=done(f"the policy of {resource} on node {node} is gone"))


@policy.command()
@click.argument("peer", type=Identifier())
@click.option("--resource", metavar="NAME", required=True, help="The name of the resource.")
@click.option("--resource-type", "kind", default="tcp-outlet", metavar="TYPE")
@click.option(
    "-a", "--attribute", "attributes", multiple=True, metavar="NAME[=VALUE]",
    help="Suppose that the authority says this, instead of what it says now.",
)  # fmt: skip
@at_option()
def check(
    peer: str, resource: str, kind: str, attributes: tuple[str, ...], at: str | None
) -> Result:
    """Would PEER pass here, and if not, which clause says no?"""
    from edge.cli.fleetwork import read_attributes  # noqa: PLC0415

    body: dict[str, Any] = {"peer": peer, "resource": resource, "type": kind}
    if attributes:
        body["attributes"] = read_attributes(attributes)
    found = client.connect(client.node_name(at)).post(f"{PATH}/check", body)
    if found["allowed"]:
        return Result(text=done(f"{peer} would pass"), json=found)
    return Result(text=f"  ✗ {peer} would not pass: {found['reason']}", json=found)


def _all(at: str | None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.connect(client.node_name(at)).get(PATH)
    return found
