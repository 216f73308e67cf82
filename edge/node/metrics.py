"""Metrics: the counters that live on the objects, in the names of docs/metrics.md, read when asked for.

Nothing is counted for this file: between two scrapes it costs nothing. prometheus_client, which it
is written with, takes 2.3 MB, so that a node loads this file with the first scrape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from edge import __version__
from edge.node.health import obstacles
from edge.node.rotation import rotation_due
from edge.routing.link import Link
from edge.routing.secure import SecureChannel
from edge.token import State
from vault_backends.vault import TokenState

if TYPE_CHECKING:
    from edge.node.node import Node

PREFIX = "ockam_edge_"
CONTENT_TYPE = CONTENT_TYPE_LATEST
Sample = tuple[tuple[str, ...], float]
"""Values of the labels, and the number."""
Read = Callable[["Node"], Iterator[Sample]]


class Row(NamedTuple):
    """One metric. A counter's name ends with _total."""

    name: str
    help: str
    labels: tuple[str, ...]
    read: Read


class Metrics(Collector):
    """Of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """In the text format of Prometheus."""
        return generate_latest(self._registry)

    def describe(self) -> Iterator[Metric]:
        """Nothing is collected before somebody asks."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        for row in ROWS:
            family = CounterMetricFamily if row.name.endswith("_total") else GaugeMetricFamily
            metric = family(PREFIX + row.name, row.help, labels=row.labels)
            for labels, value in row.read(self._node):
                metric.add_metric(labels, value)
            yield metric


def one(read: Callable[[Node], float | None]) -> Read:
    """Of a metric without labels; None where it does not apply."""

    def samples(node: Node) -> Iterator[Sample]:
        value = read(node)
        if value is not None:
            yield (), float(value)

    return samples


# -- where they are read


def _links(node: Node) -> list[Link]:
    return [hop for hop in map(node.router.at, node.router.addresses()) if isinstance(hop, Link)]


def _channels(node: Node) -> list[SecureChannel]:
    hops = {id(hop): hop for hop in map(node.router.at, node.router.addresses())}
    return [hop for hop in hops.values() if isinstance(hop, SecureChannel)]


def _of_links(name: str) -> Read:
    """Those that are open, and those that have ended."""
    return one(
        lambda node: node.router.ended[name] + sum(getattr(link, name) for link in _links(node))
    )


def _of_channels(name: str) -> Read:
    return one(
        lambda node: node.router.ended[name] + sum(getattr(one, name) for one in _channels(node))
    )


def _seen(node: Node) -> TokenState | None:
    keyring = node.presence.keyring
    return getattr(keyring.vault, "seen", None) if keyring and keyring.watch else None


def _pin(name: str) -> Read:
    return one(lambda node: None if (seen := _seen(node)) is None else getattr(seen, name))


def _keyring(name: str) -> Read:
    return one(lambda node: _optional(node.presence.keyring, name))


def _optional(thing: object, name: str) -> float | None:
    """An attribute; None where the thing is not there. Of a set its size."""
    found = getattr(thing, name, None)
    return len(found) if isinstance(found, set | dict) else found


def _watch(name: str) -> Read:
    return one(
        lambda node: _optional(node.presence.keyring and node.presence.keyring.watch, name)
    )


def _token_state(node: Node) -> Iterator[Sample]:
    watch = node.presence.keyring.watch if node.presence.keyring else None
    if watch is not None:
        for state in State:
            yield (state.value,), float(watch.state is state)


def _attested(node: Node) -> float | None:
    return node.presence.presenter.valid_until if node.presence.presenter else None


def _credential(node: Node) -> float | None:
    membership = node.fleet.membership
    held = membership.credential if membership is not None else None
    return None if held is None else held.expires_at


def _relays(read: Callable[[object], float | None]) -> Read:
    def samples(node: Node) -> Iterator[Sample]:
        for relay in node.relays.things:
            if (value := read(relay.session)) is not None:
                yield (relay.name,), float(value)

    return samples


def _inlets(read: Callable[[object], float | None]) -> Read:
    def samples(node: Node) -> Iterator[Sample]:
        for inlet in node.inlets.things:
            if (value := read(inlet)) is not None:
                yield (inlet.name,), float(value)

    return samples


def _outlets(read: Callable[[object], float | None]) -> Read:
    def samples(node: Node) -> Iterator[Sample]:
        for outlet in node.outlets.things:
            if (value := read(outlet)) is not None:
                yield (outlet.address.decode(),), float(value)

    return samples


def _path(name: str) -> Callable[[object], float | None]:
    """Down a path of attributes."""
    *way, last = name.split(".")

    def value(thing: object) -> float | None:
        for part in way:
            thing = getattr(thing, part)
        return _optional(thing, last)

    return value


def _failed(node: Node) -> float:
    entries = [entry for shelf in node.shelves for entry in shelf.entries.values()]
    return sum(entry.failure is not None for entry in entries)


def _answers(node: Node) -> Iterator[Sample]:
    if node.fleet.authority is not None:
        for status, count in node.fleet.authority.answered.items():
            yield (status.lower(),), float(count)


def _events(node: Node) -> Iterator[Sample]:
    for name, count in node.recent.events.items():
        yield (name,), float(count)


def _lines(node: Node) -> Iterator[Sample]:
    for level, count in node.recent.lines.items():
        yield (level,), float(count)


R, I, O = ("relay",), ("inlet",), ("outlet",)  # noqa: E741 - the labels of each kind
ROWS = (
    Row("build_info", "Always 1; the version is a label.", ("version",),
        lambda node: iter([((__version__,), 1.0)])),
    Row("start_time_seconds", "When the node was started.", (), one(lambda node: node.started_at)),
    Row("ready", "1 where others can reach what they should; the same as /readyz.", (),
        one(lambda node: not obstacles(node))),
    Row("resources_failed", "Things of the node that could not be made again, and are tried.", (),
        one(_failed)),
    # identity and clock
    Row("identity_changes", "Keys that the identity has had.", (),
        one(lambda node: len(node.identity.history.changes))),
    Row("identity_rotation_due_timestamp_seconds", "When the identity key should be rotated.", (),
        one(lambda node: rotation_due(node.identity.history))),
    Row("identity_behind", "1 while the identity was rotated and the node cannot follow.", (),
        one(lambda node: node.presence.follower.failure is not None)),
    Row("clock_set", "0 while the clock is certainly wrong.", (),
        one(lambda node: not node.clock.unset())),
    Row("clock_above_floor_seconds", "Seconds by which the clock is past the time floor.", (),
        one(lambda node: node.clock.now() - node.clock.floor)),
    # vault and token
    Row("vault_signatures_total", "Signatures that the vault was asked for.", (),
        _keyring("signatures")),
    Row("vault_signature_failures_total", "Signatures that the vault did not make.", (),
        _keyring("signing_failed")),
    Row("vault_signature_seconds_total", "Seconds that signatures took together.", (),
        _keyring("signing_seconds")),
    Row("vault_logins_total", "Times that a PIN was given to the token.", (), _keyring("logins")),
    Row("token_state", "1 for the state that the token is in.", ("state",), _token_state),
    Row("token_state_since_timestamp_seconds", "When the token came into it.", (), _watch("since")),
    Row("token_losses_total", "Times that the token was lost.", (), _watch("falls")),
    Row("token_probe_seconds", "What the token's last answer to a probe took.", (),
        _watch("probe_seconds")),
    Row("token_pin_tried", "1 where a wrong PIN was entered since the last right one.", (),
        _pin("pin_tried")),
    Row("token_pin_final_try", "1 where one more wrong PIN locks the token.", (),
        _pin("pin_final_try")),
    Row("token_pin_locked", "1 where the PIN is locked.", (), _pin("pin_locked")),
    Row("attestation_expiry_timestamp_seconds", "Until when channels can be opened.", (),
        one(_attested)),
    # fleet and policies
    Row("credential_expiry_timestamp_seconds", "When our credential of the fleet expires.", (),
        one(_credential)),
    Row("member_credentials_refused_total", "Credentials of peers that did not hold.", (),
        one(lambda node: node.members.refused)),
    Row("policy_refusals_total", "Times that a policy said no.", (),
        one(lambda node: node.policies.refused)),
    Row("authority_answers_total", "Requests that we as an authority have answered.", ("status",),
        _answers),
    # links, channels, messages
    Row("links", "TCP and unix connections to other nodes and commands, of now.", (),
        one(lambda node: len(_links(node)))),
    Row("links_ended_total", "Those that have ended.", (),
        one(lambda node: node.router.ended["links"])),
    Row("links_refused_total", "Connections above the limit of a listener.", (),
        one(lambda node: sum(listener.refused for listener in node.listeners.things))),
    Row("link_received_bytes_total", "Bytes that came in by all links.", (), _of_links("received")),
    Row("link_sent_bytes_total", "Bytes that went out by all links.", (), _of_links("sent")),
    Row("link_messages_dropped_total", "Messages that were wrong.", (), _of_links("dropped")),
    Row("messages_unknown_total", "Messages to addresses that are not there.", (),
        one(lambda node: node.router.unknown)),
    Row("messages_unreachable_total", "Messages to addresses that their origin may not reach.", (),
        one(lambda node: node.router.unreachable)),
    Row("messages_refused_total", "Messages that the guard of an address refused.", (),
        one(lambda node: node.router.refused)),
    Row("channels", "Secure channels of now, accepted and opened.", (),
        one(lambda node: len(_channels(node)))),
    Row("channels_ended_total", "Those that have ended.", (),
        one(lambda node: node.router.ended["channels"])),
    Row("channel_records_sent_total", "Records that were sealed.", (), _of_channels("sealed")),
    Row("channel_records_received_total", "Records that were opened.", (), _of_channels("opened")),
    Row("channel_records_rejected_total", "Records that were forged, repeated or too old.", (),
        _of_channels("rejected")),
    Row("handshakes_refused_total", "Handshakes beyond the budget, or with nothing to show.", (),
        one(lambda node: sum(one.refused for one in node.channel_listeners.things))),
    # relays
    Row("relay_up", "1 while our name is registered at the hub.", R, _relays(_path("up"))),
    Row("relay_round_trip_seconds", "What the last ping of the hub took.", R,
        _relays(_path("latency"))),
    Row("relay_reconnects_total", "Times that the hub was lost.", R, _relays(_path("replaced"))),
    Row("relays_served", "Names that others have registered here.", (),
        one(lambda node: _optional(node.relay_service, "relays"))),
    Row("relay_registrations_refused_total", "Names that others may not register here.", (),
        one(lambda node: _optional(node.relay_service, "refused"))),
    # inlets
    Row("inlet_up", "1 while the inlet has its tunnel.", I, _inlets(_path("session.up"))),
    Row("inlet_round_trip_seconds", "What the last ping of the far end took.", I,
        _inlets(_path("session.latency"))),
    Row("inlet_reconnects_total", "Times that the tunnel was lost.", I,
        _inlets(_path("session.replaced"))),
    Row("inlet_connections", "Connections of now.", I, _inlets(_path("portals"))),
    Row("inlet_connections_total", "Connections since the start.", I, _inlets(_path("opened"))),
    Row("inlet_connections_refused_total", "Those that were refused.", I,
        _inlets(_path("refused"))),
    Row("inlet_sent_bytes_total", "Bytes from clients to the far end.", I,
        _inlets(_path("traffic.to_peer"))),
    Row("inlet_received_bytes_total", "Bytes from the far end to clients.", I,
        _inlets(_path("traffic.from_peer"))),
    # outlets
    Row("outlet_connections", "Connections of now.", O, _outlets(_path("portals"))),
    Row("outlet_connections_total", "Connections since the start.", O, _outlets(_path("opened"))),
    Row("outlet_connections_refused_total", "Messages of those who may not.", O,
        _outlets(_path("refused"))),
    Row("outlet_connections_failed_total", "Times that the target was not to be reached.", O,
        _outlets(_path("failed"))),
    Row("outlet_sent_bytes_total", "Bytes from the target to peers.", O,
        _outlets(_path("traffic.to_peer"))),
    Row("outlet_received_bytes_total", "Bytes from peers to the target.", O,
        _outlets(_path("traffic.from_peer"))),
    # the log
    Row("events_total", "Events of docs/events.md.", ("event",), _events),
    Row("log_lines_total", "Lines of the log, written and left out.", ("level",), _lines),
    Row("log_lines_left_out_total", "Lines that were left out, so that the disk lasts.", (),
        one(lambda node: _optional(node.ration, "left_out"))),
    Row("log_bytes_total", "Bytes that were written to the log.", (),
        one(lambda node: _optional(node.ration, "written"))),
)  # fmt: skip
