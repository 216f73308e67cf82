"""`secure-channel` and `secure-channel-listener`: encrypted channels between identities."""

from typing import Any

import click

from edge.cli import client, resource
from edge.cli.arguments import SERVICE, Duration, Identifier, Route
from edge.cli.main import Noun
from edge.cli.output import Result, done, lines
from edge.cli.resource import at_option, yes_option

CHANNEL = resource.Kind(
    path="/node/secure_channel",
    word="secure-channel",
    key=lambda item: str(item["address"]),
    line=lambda item: f"/service/{item['address']} to {item.get('their_identifier')}",
)
LISTENER = resource.Kind(
    path="/node/secure_channel_listener",
    word="secure-channel-listener",
    key=lambda item: str(item["address"]),
    line=lambda item: f"/service/{item['address']}",
)
authorized_option = click.option(
    "-a",
    "--authorized",
    type=Identifier(),
    multiple=True,
    help="An identity that is accepted; repeat.",
)
timeout_option = click.option(
    "--timeout", type=Duration(), default="10s", help="For the handshake."
)


@click.group("secure-channel", cls=Noun)
def secure_channel() -> None:
    """Secure channels to other nodes."""


@secure_channel.command("create")
@at_option("--from", "--at", text="The node that opens it.")
@click.option("--to", type=Route(), required=True, help="The route to a listener, /…/service/api.")
@authorized_option
@timeout_option
def create_channel(at: str | None, to: str, authorized: tuple[str, ...], timeout: int) -> Result:
    """Open a secure channel and print its address."""
    node = client.node_name(at)
    status = _open(node, to, authorized, timeout)
    address = f"/service/{status['address']}"
    text = done(f"{address} on node {node} leads to {status.get('their_identifier')}")
    return Result(text=text, machine=address, json=[{"address": address}])


def _open(node: str, to: str, authorized: tuple[str, ...], timeout: int) -> Any:
    body = {
        "to": _secured(client.resolved(to)),
        "authorized": list(authorized) or None,
        "timeout": timeout,
    }
    peer = client.connect(node, timeout=client.TIMEOUT + timeout / 1000)
    return peer.post(CHANNEL.path, body)


def _secured(to: str) -> str:
    """Stock names the listener as the last service of the route; here that becomes `secure`."""
    start, protocol, name = to.rsplit("/", 2)
    return f"{start}/secure/{name}" if protocol == "service" else to


@secure_channel.command("list")
@at_option()
def list_channels(at: str | None) -> Result:
    """All secure channels of a node."""
    return resource.everything(CHANNEL, at)


@secure_channel.command("show")
@click.option(
    "--at", "route", type=Route(), required=True, help="/node/NAME/service/ADDRESS, or any route."
)
@timeout_option
def show_channel(route: str, timeout: int) -> Result:
    """A channel of a node; or, for any other route, who answers there."""
    parts = route.split("/")
    if len(parts) == 5 and parts[1] == "node" and parts[3] == "service":
        return resource.show(CHANNEL, parts[4], parts[2])
    node = client.node_name(None)
    status = _open(node, route, (), timeout)
    peer = client.connect(node)
    try:
        shown = next(
            item for item in peer.get(CHANNEL.path) if item["address"] == status["address"]
        )
    finally:
        peer.delete(f"{CHANNEL.path}/{status['address']}")
    return Result(text=lines(shown), json=shown)


@secure_channel.command("delete")
@click.argument("address", type=SERVICE, required=False)
@at_option()
@yes_option
def delete_channel(address: str | None, at: str | None, yes: bool) -> Result | None:
    """Close a secure channel."""
    return resource.delete(CHANNEL, address, at, yes=yes, result=_closed)


def _closed(node: str, name: str) -> Result:
    address = f"/service/{name}"
    text = done(f"node {node} closed {address}")
    return Result(text=text, machine=address, json=[{"address": address}])


@click.group("secure-channel-listener", cls=Noun)
def secure_channel_listener() -> None:
    """Addresses where a node accepts secure channels."""


@secure_channel_listener.command("create")
@click.argument("address", type=SERVICE)
@at_option()
@authorized_option
def create_listener(address: str, at: str | None, authorized: tuple[str, ...]) -> Result:
    """Accept secure channels at a further address."""
    node = client.node_name(at)
    body = {"address": address, "authorized": list(authorized) or None}
    client.connect(node).post(LISTENER.path, body)
    return Result(
        text=done(f"node {node} accepts secure channels at /service/{address}"),
        machine=f"/service/{address}",
        json=[{"address": address}],
    )


@secure_channel_listener.command("list")
@at_option()
def list_listeners(at: str | None) -> Result:
    """All secure channel listeners of a node."""
    result = resource.everything(LISTENER, at)
    result.machine = result.text
    return result


@secure_channel_listener.command("show")
@click.argument("address", type=SERVICE, required=False)
@at_option()
def show_listener(address: str | None, at: str | None) -> Result:
    """One secure channel listener."""
    result = resource.show(LISTENER, address, at)
    if isinstance(result.json, dict):
        result.machine = str(result.json["address"])
    return result


@secure_channel_listener.command("delete")
@click.argument("address", type=SERVICE, required=False)
@at_option()
@yes_option
def delete_listener(address: str | None, at: str | None, yes: bool) -> Result | None:
    """Accept no more channels at an address."""

    def result(node: str, name: str) -> Result:
        text = done(f"node {node} accepts no more channels at /service/{name}")
        return Result(text=text, machine=name)

    return resource.delete(LISTENER, address, at, yes=yes, result=result)
