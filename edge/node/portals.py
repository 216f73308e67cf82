"""Outlets, inlets and relays of a node: what of them is asked for, kept, shown, and waited for."""

from __future__ import annotations

import secrets
from collections.abc import Container
from typing import Any

from edge.errors import ConfigError
from edge.identity.history import Identifier
from edge.node.fields import Fields, host_port
from edge.node.home import check_name
from edge.node.policies import read
from edge.node.shelf import Entry, Shelf, Spec
from edge.node.store import Store
from edge.node.way import Way
from edge.portal.inlet import Inlet
from edge.portal.outlet import Outlet, Target
from edge.relay.client import RelayClient
from edge.routing.reach import OUTLETS, Origin

CONNECTION_WAIT = 5.0
"""Seconds that the creation of an inlet waits for the tunnel."""
RELAY_WAIT = 10.0


class Outlets(Shelf[Outlet]):
    """Where tunnels end."""

    kind = "tcp-outlet"

    def checked(self, body: object) -> tuple[str, Spec]:
        fields = Fields(body, ("name", "to", "tls", "allow"))
        name = fields.optional_text("name") or self._free()
        check_name("an outlet", name)
        spec: Spec = {
            "to": fields.text("to"),
            "tls": fields.flag("tls", False),
            "allow": fields.optional_text("allow"),
        }
        _target(spec)
        check_policy(spec["allow"])
        return name, spec

    async def make(self, name: str, spec: Spec) -> Outlet:
        node, address = self.node, name.encode()
        if not node.policies.guarded(self.kind, name):
            node.refuse_open_outlet(name)
        if node.router.at(address) is not None:
            raise ConfigError(
                f"the address {name} of node {node.name} is taken", hint="choose another"
            )
        allows = node.policies.allows(self.kind, name)
        outlet = Outlet(node.router, address, _target(spec), allows=allows)
        node.wiring.open(address, *OUTLETS)
        return outlet

    async def unmake(self, thing: Outlet) -> None:
        self.node.wiring.shut(thing.address)
        thing.close()

    def changed(self) -> None:
        """On plain TCP outlets are open only where nobody comes from elsewhere, as with stock."""
        local = not self.node.listens_beyond()
        for outlet in self.things:
            if local:
                self.node.wiring.open(outlet.address, Origin.PLAIN)
            else:
                self.node.wiring.plain.discard(outlet.address)

    def open_to_all(self) -> list[str]:
        """Those without a policy."""
        guarded = self.node.policies.guarded
        return [name for name in self.entries if not guarded(self.kind, name)]

    def recheck(self, among: Container[Identifier | None] | None) -> None:
        """Cut what is no longer allowed; `among` these peers only."""
        for outlet in self.things:
            outlet.recheck(among)

    def status(self, name: str, entry: Entry[Outlet]) -> Spec:
        shown: Spec = {
            "to": str(_target(entry.spec)),
            "worker_addr": name,
            "payload": None,
            "privileged": False,
            "allow": self.node.policy_text(name),
            "tls": entry.spec["tls"],
            "last_failure": entry.failure,
        }
        return shown | (entry.thing.status() if entry.thing is not None else {})

    def _free(self) -> str:
        """`outlet`, or a random name where that is taken."""
        return "outlet" if "outlet" not in self.entries else secrets.token_hex(4)


def check_policy(text: str | None) -> None:
    """Raises ConfigError."""
    if text is not None:
        read(text)


def _target(spec: Spec) -> Target:
    """Raises ConfigError."""
    to = spec["to"]
    if to.startswith("unix:"):
        path = to.removeprefix("unix:")
        if not path.startswith("/") or spec["tls"]:
            raise ConfigError(f"{to[:80]!r} is no target", hint="write unix:/path, without TLS")
        return Target("", 0, path=path)
    host, port = host_port(to)
    if not port:
        raise ConfigError(f"{to[:80]!r} is no target: port 0")
    return Target(host, port, tls=spec["tls"])


class Inlets(Shelf[Inlet]):
    """Where tunnels begin."""

    kind = "tcp-inlet"

    def __init__(self, node: Any) -> None:
        super().__init__(node)
        self._ways: dict[str, Way] = {}

    def checked(self, body: object) -> tuple[str, Spec]:
        fields = Fields(body, (
            "name", "from", "to", "authorized", "hub_authorized", "allow", "connection_wait", "wait",
        ))  # fmt: skip
        name = fields.optional_text("name") or secrets.token_hex(4)
        check_name("an inlet", name)
        spec: Spec = {
            "from": str(host_port(fields.optional_text("from") or "127.0.0.1:0")),
            "to": fields.route("to"),
            "authorized": fields.identifier("authorized"),
            "hub_authorized": fields.identifier("hub_authorized"),
            "allow": fields.optional_text("allow"),
        }
        check_policy(spec["allow"])
        fields.seconds("connection_wait", 0.0)
        fields.flag("wait", True)
        return name, spec

    def same(self, there: Spec, wanted: Spec) -> bool:
        """Port 0 is whatever port it has."""
        bound, asked = host_port(there["from"]), host_port(wanted["from"])
        port = asked.port or bound.port
        return there | {"from": bound} == wanted | {"from": asked._replace(port=port)}

    async def make(self, name: str, spec: Spec) -> Inlet:
        node = self.node
        node.refuse_open_outlets_beside(spec["to"])
        resource = f"{self.kind}/{name}"
        way = Way(
            node,
            resource,
            spec["to"],
            authorized=spec["authorized"],
            hub_authorized=spec["hub_authorized"],
            pins=await node.store.call(Store.pins, node.name, resource),
        )
        host, port = host_port(spec["from"])
        inlet = Inlet(
            node.router,
            name,
            opening=way,
            host=host,
            port=port,
            allows=node.policies.allows(self.kind, name),
        )
        await inlet.start()
        spec["from"] = str(host_port(":".join(map(str, inlet.bound))))
        self._ways[name] = way
        return inlet

    async def settle(self, name: str, entry: Entry[Inlet], body: object) -> None:
        fields = Fields(body, tuple(body) if isinstance(body, dict) else ())
        if fields.flag("wait", True) and entry.thing is not None:
            patience = fields.seconds("connection_wait", CONNECTION_WAIT)
            await self._ways[name].first(entry.thing.session, patience)

    def recheck(self, among: Container[Identifier | None] | None) -> None:
        """Cut what is no longer allowed; `among` these peers only."""
        for inlet in self.things:
            inlet.recheck(among)

    async def unmake(self, thing: Inlet) -> None:
        self._ways.pop(thing.name, None)
        await thing.close()

    def status(self, name: str, entry: Entry[Inlet]) -> Spec:
        shown: Spec = {
            "alias": name,
            "bind_addr": entry.spec["from"],
            "status": "Down",
            "worker_addr": None,
            "payload": None,
            "outlet_route": None,
            "outlet_addr": entry.spec["to"],
            "privileged": False,
            "authorized": entry.spec["authorized"],
            "last_failure": entry.failure,
        }
        if entry.thing is not None:
            shown |= entry.thing.status()
            shown["bind_addr"] = entry.spec["from"]
        return shown


class Relays(Shelf[RelayClient]):
    """Where this node can be reached at other nodes."""

    kind = "relay"

    def __init__(self, node: Any) -> None:
        super().__init__(node)
        self._ways: dict[str, Way] = {}

    def checked(self, body: object) -> tuple[str, Spec]:
        fields = Fields(body, (
            "name", "at", "relay_address", "authorized", "hub_authorized", "wait", "connection_wait",
        ))  # fmt: skip
        name = fields.optional_text("name") or "default"
        check_name("a relay", name)
        spec: Spec = {
            "at": fields.route("at"),
            "relay_address": fields.optional_text("relay_address") or name,
            "authorized": fields.identifier("authorized"),
            "hub_authorized": fields.identifier("hub_authorized"),
        }
        check_name("a relay", spec["relay_address"])
        fields.flag("wait", True)
        return name, spec

    async def make(self, name: str, spec: Spec) -> RelayClient:
        node = self.node
        node.refuse_open_outlets_beside(spec["at"])
        resource = f"{self.kind}/{name}"
        way = Way(
            node,
            resource,
            spec["at"],
            authorized=spec["authorized"],
            hub_authorized=spec["hub_authorized"],
            pins=await node.store.call(Store.pins, node.name, resource),
        )
        relay = RelayClient(node.router, name, opening=way, relay_address=spec["relay_address"])
        relay.start()
        self._ways[name] = way
        return relay

    async def settle(self, name: str, entry: Entry[RelayClient], body: object) -> None:
        fields = Fields(body, tuple(body) if isinstance(body, dict) else ())
        if fields.flag("wait", True) and entry.thing is not None:
            patience = fields.seconds("connection_wait", RELAY_WAIT)
            await self._ways[name].first(entry.thing.session, patience)

    async def unmake(self, thing: RelayClient) -> None:
        self._ways.pop(thing.name, None)
        await thing.close()

    def status(self, name: str, entry: Entry[RelayClient]) -> Spec:
        shown: Spec = {
            "name": name,
            "connection_status": "Down",
            "forwarding_route": None,
            "remote_address": None,
            "worker_address": None,
            "flow_control_id": None,
            "destination_address": entry.spec["at"],
            "last_failure": entry.failure,
        }
        return shown | (entry.thing.status() if entry.thing is not None else {})
