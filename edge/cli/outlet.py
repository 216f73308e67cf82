"""`tcp-outlet`: where a tunnel ends."""

from typing import Any

import click

from edge.cli import client, resource
from edge.cli.arguments import SERVICE, HostPort, Target
from edge.cli.main import Noun
from edge.cli.node import on_demand
from edge.cli.output import Result, done
from edge.cli.resource import all_option, at_option, yes_option


def _shown(node: str, item: dict[str, Any]) -> dict[str, Any]:
    return {**item, "node_name": node, "worker_address": f"/service/{item['worker_addr']}"}


OUTLET = resource.Kind(
    path="/node/outlet",
    word="tcp-outlet",
    key=lambda item: str(item["worker_addr"]),
    line=lambda item: f"/service/{item['worker_addr']} to {item['to']}",
    as_json=_shown,
)


@click.group("tcp-outlet", cls=Noun)
def tcp_outlet() -> None:
    """Outlets: where a tunnel ends and a connection to a service is made."""


@tcp_outlet.command()
@click.argument("name", type=SERVICE, required=False)
@click.option("--to", type=Target(), required=True, help="HOST:PORT, PORT, or unix:/path.")
@click.option("--tls", is_flag=True, help="Speak TLS to the service.")
@click.option("--from", "address", type=SERVICE, help="The same as NAME.")
@at_option()
@click.option("--allow", "--expression", "allow", metavar="EXPR|IDENTIFIER", help="Who may use it.")
def create(
    name: str | None,
    to: HostPort | str,
    tls: bool,
    address: str | None,
    at: str | None,
    allow: str | None,
) -> Result:
    """Offer a TCP service to those who reach this node."""
    node = on_demand(at)
    body = {
        "name": address or name,
        "to": str(to),
        "tls": tls or (isinstance(to, HostPort) and to.tls),
        "allow": allow,
    }
    status = client.connect(node).post(OUTLET.path, body)
    made = str(status["worker_addr"])
    return Result(
        text=done(f"outlet /service/{made} on node {node} sends to {status['to']}"),
        machine=f"/service/{made}",
        json=_stock(made, status["to"]),
    )


def _stock(name: str, to: str) -> dict[str, Any]:
    """OutletStatus in the raw form that stock prints."""
    address = {"tt": 0, "inner": list(name.encode())}
    return {"to": to, "worker_addr": address, "payload": None, "privileged": False}


@tcp_outlet.command("list")
@at_option()
def list_(at: str | None) -> Result:
    """All outlets of a node."""
    result = resource.everything(OUTLET, at)
    result.json = [{"from": item["worker_address"], "to": item["to"]} for item in result.json]
    return result


@tcp_outlet.command()
@click.argument("name", type=SERVICE, required=False)
@at_option()
def show(name: str | None, at: str | None) -> Result:
    """One outlet: its target, and how often it was used."""
    return resource.show(OUTLET, name, at)


@tcp_outlet.command()
@click.argument("name", type=SERVICE, required=False)
@at_option()
@all_option
@yes_option
def delete(name: str | None, at: str | None, all_: bool, yes: bool) -> Result | None:
    """Delete an outlet and close its connections."""

    def result(node: str, name: str) -> Result:
        text = done(f"outlet /service/{name} was deleted from node {node}")
        return Result(text=text, machine=name, json={"alias": name, "node": node})

    return resource.delete(OUTLET, name, at, all_=all_, yes=yes, result=result)
