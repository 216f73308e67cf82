"""`tcp-inlet`: where a tunnel begins."""

import sys
from typing import Any

import click

from edge.cli import client, resource
from edge.cli.arguments import (
    Address,
    Duration,
    HostPort,
    Identifier,
    Name,
)
from edge.cli.main import Noun
from edge.cli.node import on_demand
from edge.cli.output import Result, note
from edge.cli.resource import all_option, at_option, yes_option
from edge.config.values import inlet_route


def _line(item: dict[str, Any]) -> str:
    return (
        f"{item['alias']}: {item['bind_addr']} ({item['status']}) to {item.get('outlet_addr', '?')}"
    )


INLET = resource.Kind(
    path="/node/inlet", word="tcp-inlet", key=lambda item: str(item["alias"]), line=_line
)
ALIAS = Name("inlet")


@click.group("tcp-inlet", cls=Noun)
def tcp_inlet() -> None:
    """Inlets: where a tunnel begins and clients connect."""


@tcp_inlet.command()
@click.argument("name", type=ALIAS, required=False)
@click.option(
    "--from", "bind", type=Address(), default="127.0.0.1:0", help="[HOST:]PORT to listen on."
)
@click.option(
    "--to", required=True, metavar="ROUTE|SERVICE",
    help="The route to the outlet; or the name of one in this project.",
)  # fmt: skip
@click.option("--via", type=Name("relay"), help="The relay that leads there; needs a SERVICE.")
@at_option()
@click.option("--authorized", type=Identifier(), help="The only identity accepted at the far end.")
@click.option("--hub-authorized", type=Identifier(), help="The only identity accepted on the way.")
@click.option("--allow", "--expression", "allow", metavar="EXPR|IDENTIFIER", help="Who may answer.")
@click.option("--alias", type=ALIAS, help="The same as NAME (deprecated).")
@click.option(
    "--connection-wait", type=Duration(), default="5s", help="How long to wait for the tunnel."
)
@click.option("--no-connection-wait", is_flag=True, help="Do not wait for the tunnel.")
def create(
    name: str | None,
    bind: HostPort,
    to: str,
    via: str | None,
    at: str | None,
    authorized: str | None,
    hub_authorized: str | None,
    allow: str | None,
    alias: str | None,
    connection_wait: int,
    no_connection_wait: bool,
) -> Result:
    """Listen on a local port and carry what arrives to an outlet."""
    way = _way(to, via)
    node = on_demand(at, way)
    body = {
        "name": alias or name,
        "from": str(bind),
        "to": client.resolved(way),
        "authorized": authorized,
        "hub_authorized": hub_authorized,
        "allow": allow,
        "connection_wait": connection_wait,
        "wait": not no_connection_wait,
    }
    patience = connection_wait / 1000 + client.TIMEOUT
    status = client.connect(node, timeout=patience).post(INLET.path, body)
    text = _created(node, status)
    if status["status"] != "Up" and not no_connection_wait and not sys.stdout.isatty():
        note(text.strip())
    return Result(text=text, machine=status["bind_addr"], json=status)


def _way(to: str, via: str | None) -> str:
    try:
        return inlet_route(to, via)
    except ValueError as error:
        raise click.UsageError(f"--to: {error}") from None


def _created(node: str, status: dict[str, Any]) -> str:
    where = f"inlet {status['alias']} on node {node} listens on {status['bind_addr']}"
    if status["status"] == "Up":
        return f"  ✔ {where} and is connected"
    reason = status.get("last_failure")
    return f"  ! {where}; the far end is not reached yet" + (f": {reason}" if reason else "")


@tcp_inlet.command("list")
@at_option()
def list_(at: str | None) -> Result:
    """All inlets of a node."""
    return resource.everything(INLET, at)


@tcp_inlet.command()
@click.argument("name", type=ALIAS, required=False)
@at_option()
def show(name: str | None, at: str | None) -> Result:
    """One inlet: where it listens and whether it is connected."""
    return resource.show(INLET, name, at)


@tcp_inlet.command()
@click.argument("name", type=ALIAS, required=False)
@at_option()
@all_option
@yes_option
def delete(name: str | None, at: str | None, all_: bool, yes: bool) -> Result | None:
    """Delete an inlet and close its connections."""
    return resource.delete(INLET, name, at, all_=all_, yes=yes)
