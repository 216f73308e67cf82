"""What else a node has: TCP listeners and connections, channels and their listeners, services."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from edge.channel.trust import everyone, only
from edge.errors import ConfigError
from edge.node.fields import Fields, host_port, identifier, is_loopback
from edge.node.home import check_name
from edge.node.shelf import Entry, Shelf, Spec
from edge.node.store import Store
from edge.routing import link as links
from edge.routing.answering import ChannelListener
from edge.routing.connection import Connection
from edge.routing.hop import Hop
from edge.routing.link import Link, LinkListener
from edge.routing.reach import DEFAULT, EVERYWHERE
from edge.routing.router import Router
from edge.routing.services import Echo, HopService, Uppercase

CONNECT = 10.0
"""Seconds that a connection or channel may take, where the request does not say."""


def transport(mode: str, socket: str, worker: str) -> Spec:
    """A `Transport`, as stock shows it."""
    return {
        "type": "Tcp",
        "mode": mode,
        "socket_addr": socket,
        "worker_addr": worker,
        "processor_address": worker,
        "flow_control_id": worker,
    }


class Listeners(Shelf[LinkListener]):
    """Where the node accepts TCP connections; named by their address."""

    kind = "tcp-listener"

    def checked(self, body: object) -> tuple[str, Spec]:
        address = host_port(Fields(body, ("address",)).text("address"))
        return str(address), {"address": str(address)}

    async def make(self, name: str, spec: Spec) -> LinkListener:
        host, port = host_port(spec["address"])
        if not is_loopback(host):
            self.node.refuse_open_outlets(spec["address"])
        listener = await links.listen(
            self.node.router,
            host,
            port,
            reach=self.node.wiring.plain,
            returning=self.node.returning,
        )
        spec["address"] = str(host_port(":".join(map(str, listener.address))))
        return listener

    def named(self, name: str, thing: LinkListener) -> str:
        return str(host_port(":".join(map(str, thing.address))))

    async def unmake(self, thing: LinkListener) -> None:
        thing.close()

    async def delete(self, name: str) -> Spec:
        shown = await super().delete(name)
        if name == self.node.own_listener:
            self.node.own_listener = None
            await self.node.store.call(Store.set_listener, self.node.name, None)
        return shown

    def changed(self) -> None:
        self.node.outlets.changed()

    def status(self, name: str, entry: Entry[LinkListener]) -> Spec:
        return transport("Listen", name, "<none>") | {
            "address": name,
            "last_failure": entry.failure,
        }

    def beyond(self) -> list[str]:
        """Those that other machines can reach."""
        addresses = [entry.spec["address"] for entry in self.entries.values()]
        return [address for address in addresses if not host_port(address).loopback]

    def links(self) -> list[Link]:
        """What they accepted."""
        return [link for listener in self.things for link in listener.links]


class Connections(Shelf[Link]):
    """TCP connections made by command, and seen from outside those that were accepted."""

    kind = "tcp-connection"
    persistent = False

    def checked(self, body: object) -> tuple[str, Spec]:
        address = host_port(Fields(body, ("to",)).text("to"))
        return "", {"to": str(address)}

    async def make(self, name: str, spec: Spec) -> Link:
        host, port = host_port(spec["to"])
        if not is_loopback(host):
            self.node.refuse_open_outlets(spec["to"])
        return await links.connect(
            self.node.router, host, port, reach=self.node.wiring.outgoing, timeout=CONNECT
        )

    def named(self, name: str, thing: Link) -> str:
        address = thing.address.decode()
        thing.gate.join(_Forget(self, address))
        return address

    async def unmake(self, thing: Link) -> None:
        thing.close("deleted")

    def status(self, name: str, entry: Entry[Link]) -> Spec:
        to = entry.spec["to"]
        return transport("Outgoing", to, name) | {"address": name, "to": to, "from": self.node.name}

    def list(self) -> list[Spec]:
        accepted = [
            transport("Incoming", link.remote, link.address.decode())
            | {"address": link.address.decode(), "to": link.remote, "from": self.node.name}
            for link in self.node.listeners.links()
        ]
        return super().list() + accepted


class Channels(Shelf[Connection]):
    """Secure channels made by command."""

    kind = "secure-channel"
    persistent = False

    def checked(self, body: object) -> tuple[str, Spec]:
        fields = Fields(body, ("to", "authorized", "timeout"))
        spec: Spec = {
            "to": fields.route("to"),
            "authorized": fields.identifiers("authorized"),
            "timeout": fields.seconds("timeout", CONNECT),
        }
        if "/secure/" not in spec["to"]:
            raise ConfigError(f"{spec['to']} opens no channel", hint="end it with /secure/api")
        return "", spec

    async def make(self, name: str, spec: Spec) -> Connection:
        self.node.refuse_open_outlets_beside(spec["to"])
        return await self.node.reach(spec["to"], spec["authorized"], spec["timeout"])

    def named(self, name: str, thing: Connection) -> str:
        address = thing.channels[-1].address.decode()
        thing.watch(lambda reason: _drop(self, address))
        return address

    async def unmake(self, thing: Connection) -> None:
        thing.close("deleted")

    def status(self, name: str, entry: Entry[Connection]) -> Spec:
        shown: Spec = {
            "address": name,
            "route": entry.spec["to"],
            "authorized_identifiers": entry.spec["authorized"] or None,
            "flow_control_id": name,
        }
        if entry.thing is not None:
            channel = entry.thing.channels[-1]
            shown["their_identifier"] = str(channel.peer)
            shown["their_change_history"] = channel.history.encoded.hex()
        return shown


class ChannelListeners(Shelf[ChannelListener]):
    """Addresses where channels are asked for: `api`, and those made by command."""

    kind = "secure-channel-listener"
    key = "address"

    def checked(self, body: object) -> tuple[str, Spec]:
        fields = Fields(body, ("address", "authorized"))
        name = check_name("a secure channel listener", fields.text("address"))
        return name, {"authorized": fields.identifiers("authorized")}

    async def make(self, name: str, spec: Spec) -> ChannelListener:
        node, address = self.node, name.encode()
        if node.router.at(address) is not None:
            raise ConfigError(
                f"the address {name} of node {node.name} is taken", hint="choose another"
            )
        named = [identifier(text) for text in spec["authorized"]]
        node.pin(*named)
        listener = ChannelListener(
            node.router,
            address,
            node.present,
            trust=only(*named) if named else everyone,
            known=node.known,
            wiring=node.wiring,
            learned=node.learned,
            now=node.clock.now,
        )
        node.wiring.open(address, *EVERYWHERE)
        return listener

    async def unmake(self, thing: ChannelListener) -> None:
        thing.close()

    def status(self, name: str, entry: Entry[ChannelListener]) -> Spec:
        return {
            "address": name,
            "authorized": entry.spec["authorized"],
            "last_failure": entry.failure,
        }


class Services(Shelf[bytes]):
    """Small workers made by command."""

    kind = "service"
    key = "address"
    TYPES: ClassVar[dict[str, Callable[[Router, bytes], Hop]]] = {
        "hop": HopService,
        "echo": Echo,
        "uppercase": Uppercase,
    }

    def checked(self, body: object) -> tuple[str, Spec]:
        fields = Fields(body, ("type", "address"))
        kind = fields.text("type")
        if kind not in self.TYPES:
            raise ConfigError(f"the service {kind[:40]!r} is not known", hint=", ".join(self.TYPES))
        return check_name("a service", fields.optional_text("address") or kind), {"type": kind}

    async def make(self, name: str, spec: Spec) -> bytes:
        node, address = self.node, name.encode()
        if node.router.at(address) is not None:
            raise ConfigError(
                f"the address {name} of node {node.name} is taken", hint="choose another"
            )
        node.router.add(address, self.TYPES[spec["type"]](node.router, address))
        node.wiring.open(address, *DEFAULT[spec["type"].encode()])
        return address

    async def unmake(self, thing: bytes) -> None:
        self.node.router.remove(thing)
        self.node.wiring.shut(thing)

    def status(self, name: str, entry: Entry[bytes]) -> Spec:
        return {"addr": name, "type": entry.spec["type"]}


class _Forget:
    """Takes a connection off its shelf when it is lost."""

    def __init__(self, shelf: Connections, name: str) -> None:
        self._shelf, self._name = shelf, name

    def pause(self) -> None:
        """Nothing is sent from here."""

    def resume(self) -> None:
        """See pause."""

    def lost(self, reason: str) -> None:
        _drop(self._shelf, self._name)


def _drop(shelf: Connections | Channels, name: str) -> None:
    shelf.entries.pop(name, None)
