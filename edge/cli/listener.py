"""`tcp-listener` and `tcp-connection`: where a node accepts TCP connections, and those it made."""

from typing import Any

import click

from edge.cli import client, resource
from edge.cli.arguments import Address, HostPort
from edge.cli.main import Noun
from edge.cli.output import Result, done
from edge.cli.resource import at_option, yes_option

LISTENER = resource.Kind(
    path="/node/tcp/listener",
    word="tcp-listener",
    key=lambda item: str(item["socket_addr"]),
    line=lambda item: f"{item['type']} {item['mode']} {item['socket_addr']}",
)
CONNECTION = resource.Kind(
    path="/node/tcp/connection",
    word="tcp-connection",
    key=lambda item: str(item["worker_addr"]),
    line=lambda item: f"{item['mode']} {item['socket_addr']} /worker/{item['worker_addr']}",
)


@click.group("tcp-listener", cls=Noun)
def tcp_listener() -> None:
    """TCP listeners: addresses where a node accepts connections."""


@tcp_listener.command("create")
@click.argument("address", type=Address())
@at_option()
def create_listener(address: HostPort, at: str | None) -> Result:
    """Accept TCP connections at a further address."""
    node = client.node_name(at)
    status = client.connect(node).post(LISTENER.path, {"address": str(address)})
    host, _, port = str(status["socket_addr"]).rpartition(":")
    route = f"/dnsaddr/{'localhost' if host.startswith('127.') else host.strip('[]')}/tcp/{port}"
    return Result(text=done(f"node {node} listens on {status['socket_addr']}, {route}"))


@tcp_listener.command("list")
@at_option()
def list_listeners(at: str | None) -> Result:
    """All TCP listeners of a node."""
    return _plain(resource.everything(LISTENER, at))


@tcp_listener.command("show")
@click.argument("address", type=Address(), required=False)
@at_option()
def show_listener(address: HostPort | None, at: str | None) -> Result:
    """One TCP listener."""
    return resource.show(LISTENER, str(address) if address else None, at)


@tcp_listener.command("delete")
@click.argument("address", type=Address(), required=False)
@at_option()
@yes_option
def delete_listener(address: HostPort | None, at: str | None, yes: bool) -> Result | None:
    """Stop accepting connections at an address; those that exist stay."""

    def result(node: str, name: str) -> Result:
        text = done(f"node {node} does not listen on {name} any more")
        return Result(text=text, json={"node": node})

    name = str(address) if address else None
    return resource.delete(LISTENER, name, at, yes=yes, result=result)


@click.group("tcp-connection", cls=Noun)
def tcp_connection() -> None:
    """TCP connections between nodes."""


@tcp_connection.command("create")
@click.option("-t", "--to", type=Address(), required=True, help="HOST:PORT of the other node.")
@at_option("--from", "--at", text="The node that connects.")
def create_connection(to: HostPort, at: str | None) -> Result:
    """Connect to another node."""
    node = client.node_name(at)
    status = client.connect(node).post(CONNECTION.path, {"to": str(to)})
    address = f"/worker/{_address(status)}"
    return Result(
        text=done(f"node {node} is connected to {to}: {address}"),
        machine=address,
        json={"from": f"/node/{node}", "to": str(to), "address": address},
    )


def _address(status: dict[str, Any]) -> str:
    return str(status["worker_addr"])


@tcp_connection.command("list")
@at_option()
def list_connections(at: str | None) -> Result:
    """All TCP connections of a node."""
    return _plain(resource.everything(CONNECTION, at))


@tcp_connection.command("show")
@click.argument("address", required=False)
@at_option()
def show_connection(address: str | None, at: str | None) -> Result:
    """One TCP connection."""
    result = resource.show(CONNECTION, _worker(address), at)
    return _plain(result) if isinstance(result.json, dict) else result


@tcp_connection.command("delete")
@click.argument("address", required=False)
@at_option()
@yes_option
def delete_connection(address: str | None, at: str | None, yes: bool) -> Result | None:
    """Close a TCP connection."""

    def result(node: str, name: str) -> Result:
        return Result(text=done(f"node {node} closed {name}"), json={"address": name})

    return resource.delete(CONNECTION, _worker(address), at, yes=yes, result=result)


def _worker(address: str | None) -> str | None:
    return address and address.removeprefix("/worker/").removeprefix("/service/")


def _plain(result: Result) -> Result:
    """Off a terminal too these print text; JSON only when asked for, as with stock."""
    result.machine = result.text
    return result
