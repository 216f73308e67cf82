"""`relay`: be reachable at another node."""

import sys
from typing import Any

import click

from edge.cli import client, resource
from edge.cli.arguments import Identifier, Name, Route
from edge.cli.main import Noun
from edge.cli.node import on_demand
from edge.cli.output import Result, done, note
from edge.cli.resource import at_option, yes_option


def _shown(node: str, item: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": item["name"],
        "destination": item.get("destination_address"),
        "connection_status": item["connection_status"],
        "relay_route": item.get("forwarding_route"),
        "remote_address": _service(item.get("remote_address")),
        "worker_address": _service(item.get("worker_address")),
        "last_failure": item.get("last_failure"),
    }


def _service(address: str | None) -> str | None:
    return address and f"/service/{address}"


RELAY = resource.Kind(
    path="/node/relay",
    word="relay",
    key=lambda item: str(item["name"]),
    line=lambda item: (
        f"{item['name']} at {item.get('destination_address', '?')} ({item['connection_status']})"
    ),
)
NAME = Name("relay")
ON_NODE = ("--to", "--at")


@click.group("relay", cls=Noun)
def relay() -> None:
    """Relays: be reachable at another node, without a port of one's own."""


@relay.command()
@click.argument("name", type=NAME, default="default")
@click.option(
    "--at", "hub", type=Route(), default="/project/default",
    help="The route to the hub; without it, that of the project.",
)  # fmt: skip
@at_option("--to", text="The node to be reached.")
@click.option("--authorized", type=Identifier(), help="The only identity accepted as the hub.")
@click.option("--relay-address", type=NAME, help="The name at the hub, when it is not NAME.")
@click.option("--no-connection-wait", is_flag=True, help="Do not wait for the hub.")
def create(
    name: str,
    hub: str,
    at: str | None,
    authorized: str | None,
    relay_address: str | None,
    no_connection_wait: bool,
) -> Result:
    """Register this node at a hub; others reach it there as forward_to_NAME."""
    node = on_demand(at, hub)
    body = {
        "name": name,
        "at": client.resolved(hub),
        "relay_address": relay_address,
        "authorized": authorized,
        "wait": not no_connection_wait,
    }
    status = client.connect(node, timeout=client.TIMEOUT + 30).post(RELAY.path, body)
    if status["connection_status"] == "Up" and not no_connection_wait:
        where = _service(status["remote_address"])
        text = done(f"relay {name}: {where} at the hub leads to node {node}")
        return Result(text=text, machine=where, json=status)
    reason = status.get("last_failure")
    text = f"  ! relay {name} is not connected yet" + (f": {reason}" if reason else "")
    if not no_connection_wait and not sys.stdout.isatty():
        note(text.strip())
    return Result(text=text, json=status)


@relay.command("list")
@at_option(*ON_NODE)
def list_(at: str | None) -> Result:
    """All relays that a node registered."""
    return resource.everything(RELAY, at)


@relay.command()
@click.argument("name", type=NAME, required=False)
@at_option(*ON_NODE)
def show(name: str | None, at: str | None) -> Result:
    """One relay: where it is registered and whether it is connected."""
    result = resource.show(RELAY, name, at)
    if isinstance(result.json, dict):
        result.machine = str(result.json["name"])
        result.json = _shown("", result.json)
    return result


@relay.command()
@click.argument("name", type=NAME, required=False)
@at_option(*ON_NODE)
@yes_option
def delete(name: str | None, at: str | None, yes: bool) -> Result | None:
    """Give a relay up."""

    def result(node: str, name: str) -> Result:
        return Result(text=done(f"relay {name} was deleted from node {node}"))

    return resource.delete(RELAY, name, at, yes=yes, result=result)
