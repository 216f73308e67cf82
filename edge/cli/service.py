"""`worker` and `service`: what has an address inside a node."""

import click

from edge.cli import client
from edge.cli.arguments import SERVICE
from edge.cli.main import Noun
from edge.cli.output import Result, listing, note
from edge.cli.resource import at_option


@click.group("worker", cls=Noun)
def worker() -> None:
    """Workers: every address inside a node."""


@worker.command("list")
@at_option()
def list_workers(at: str | None) -> Result:
    """All addresses inside a node."""
    items = client.connect(client.node_name(at)).get("/worker")
    text = "\n".join(f"  │ {item['addr']}" for item in items) or "    there is no worker"
    return Result(text=text, machine=text, json=items)


@click.group("service", cls=Noun)
def service() -> None:
    """Services: what a node offers to those who reach it."""


@service.command("list")
@at_option()
def list_services(at: str | None) -> Result:
    """All services of a node."""
    items = client.connect(client.node_name(at)).get("/service")
    return listing(
        items, lambda item: f"{item['type']} at /service/{item['addr']}", "there is no service"
    )


@service.command("start")
@click.argument("kind", metavar="hop", type=click.Choice(["hop"]))
@click.option("--addr", type=SERVICE, help="Its address; without it, that of its kind.")
@at_option()
def start(kind: str, addr: str | None, at: str | None) -> None:
    """Start a service."""
    node = client.node_name(at)
    client.connect(node).post("/service", {"type": kind, "address": addr or kind})
    note(f"service {kind} is at /service/{addr or kind} on node {node}")
