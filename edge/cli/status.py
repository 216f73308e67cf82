"""`status`: what the nodes of this machine do now, on one screen; what is wrong, and what to do."""

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from edge import __version__
from edge.cli import client, local, screen
from edge.cli.arguments import NODE
from edge.cli.main import Command
from edge.cli.output import Result, settings
from edge.errors import EdgeError

if TYPE_CHECKING:
    from edge.node.store import NodeRecord, ResourceRecord, Store

Picture = dict[str, Any]
PATIENCE = 3.0
"""Seconds that a node has to answer; one that is silent is shown as that."""
CLEAR = "\x1b[H\x1b[2J\x1b[3J"


@click.command("status", cls=Command)
@click.argument("name", type=NODE, required=False)
@click.option("--watch", is_flag=True, help="Again and again, until it is interrupted.")
@click.option(
    "--every", type=click.FloatRange(0.2, 3600.0), default=2.0, show_default=True,
    metavar="SECONDS", help="With --watch: how often.",
)  # fmt: skip
def status(name: str | None, watch: bool, every: float) -> Result | None:
    """What runs here and how it is: NAME, or all nodes. The keys of --output json are described in
    docs/status.md; with --watch each picture is a line."""
    if not watch:
        found = everything(name)
        return Result(text=screen.drawn(found), json=found)
    _watch(name, every)
    return None


def _watch(name: str | None, every: float) -> None:
    as_json = settings().json or settings().compact or not sys.stdout.isatty()
    try:
        while True:
            found = everything(name)
            text = json.dumps(found, sort_keys=True) if as_json else screen.drawn(found)
            click.echo(text if as_json else f"{CLEAR}{text}")
            time.sleep(every)
    except KeyboardInterrupt:
        return


def everything(name: str | None) -> Picture:
    """The picture of docs/status.md: of one node, or of all."""
    with local.store() as store:
        records = [store.node(name)] if name else store.nodes()
        return {
            "version": __version__,
            "nodes": [_node(store, record) for record in records],
            "identities": [
                {"name": one.name, "identifier": one.identifier} for one in store.identities()
            ],
            "projects": [one.name for one in store.projects()],
        }


def _node(store: "Store", record: "NodeRecord") -> Picture:
    running = local.home().running(record.name)
    if running is None:
        return _stored(store, record, "stopped", "it does not run")
    asked = client.Client(record.name, running.socket, timeout=PATIENCE)
    try:
        said: Picture = asked.get("/node/status")
        return said
    except EdgeError as error:
        return _stored(store, record, "silent", str(error)) | {"pid": running.pid or None}
    finally:
        asked.close()


def _stored(store: "Store", record: "NodeRecord", state: str, why: str) -> Picture:
    """The same picture of a node that says nothing: what the store knows of it."""
    resources = store.resources(record.name)
    allow = {name: text for name, _, text in store.policies(record.name) if name}
    identity = store.identity(record.identity)
    return {
        "name": record.name,
        "state": state,
        "ready": False,
        "obstacles": [why],
        "version": __version__,
        "pid": None,
        "started": None,
        "now": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "clock": None,
        "identity": {
            "name": identity.name,
            "identifier": identity.identifier,
            "changes": None,
            "rotation_due": None,
            "behind": None,
        },
        "vault": {"type": store.vault(identity.vault).uri.partition(":")[0]},
        "fleet": None,
        "listeners": [record.listener] if record.listener else [],
        "relays": [_relay(one) for one in resources if one.kind == "relay"],
        "inlets": [_inlet(one) for one in resources if one.kind == "tcp-inlet"],
        "outlets": [_outlet(one, allow) for one in resources if one.kind == "tcp-outlet"],
        "channels": 0,
        "status_endpoint": None,
        "errors": [],
    }


SESSION: Picture = {
    "since": None, "round_trip_ms": None, "reconnected": 0, "last_failure": None, "hint": None,
}  # fmt: skip
TRAFFIC: Picture = dict.fromkeys(
    ("portals", "opened", "refused", "bytes_to_peer", "bytes_from_peer"), 0
)


def _relay(one: "ResourceRecord") -> Picture:
    return {"name": one.name, "up": False, "at": one.spec["at"], "address": None, **SESSION}


def _inlet(one: "ResourceRecord") -> Picture:
    where = {"from": one.spec["from"], "to": one.spec["to"], "peer": None}
    return {"name": one.name, "up": False, **where, **TRAFFIC, **SESSION}


def _outlet(one: "ResourceRecord", allow: dict[str, str]) -> Picture:
    where = {"to": one.spec["to"], "allow": allow.get(one.name), "failed": 0}
    return {"name": one.name, **where, **TRAFFIC, "last_failure": None}
