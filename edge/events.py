"""Events: what may happen to a node, by names that stay the same, and what to do about each.

A line of the log that tells of one carries its name: `log.warning("…", extra=event("relay-down", …))`.
The journal and JSON show it beside the text, `status` and the metrics count by it. docs/events.md is
this table for people; a test compares the two, and both with what the code says.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Event(NamedTuple):
    """`advice` is what to do where the error itself does not say; `ends` are the troubles of the same
    subject that are over with it. What an `audit` says is never left out for being frequent."""

    meaning: str
    advice: str = ""
    ends: tuple[str, ...] = ()
    audit: bool = False


LOG = "the lines before this one in the log say more: ockam-edge node logs"
REPORT = "this is a bug: please report it, with what ockam-edge diag collects"
AGAIN = "it is tried again by itself"
ENROLLERS = "whoever manages the fleet may change it: ockam-edge project-member list"
DISK = "look at the disk: df, and the kernel's log"
CLOCK = "set the clock of this machine, by NTP or by hand"

EVENTS: dict[str, Event] = {
    "node-ready": Event("the node works", ends=("node-failed",)),
    "node-failed": Event("the node could not be started", LOG),
    "node-stopped": Event("the node has ended as it was asked to"),
    "node-reloaded": Event("what changed on the disk was taken over", ends=("reload-refused",)),
    "reload-refused": Event("what changed on the disk is not usable; all stays as it was", LOG),
    "relay-up": Event(
        "our name at a hub is registered: this node can be reached",
        ends=("relay-down", "relay-failed"),
    ),
    "relay-down": Event("a hub was lost; nobody reaches this node through it", AGAIN),
    "relay-failed": Event(
        "a hub cannot be reached, or does not take us",
        f"{AGAIN}; look at the network, and at the hub and its address",
    ),
    "inlet-up": Event("an inlet has its tunnel", ends=("inlet-down", "inlet-failed")),
    "inlet-down": Event("an inlet lost its tunnel; clients wait, then are refused", AGAIN),
    "inlet-failed": Event(
        "an inlet gets no tunnel",
        f"{AGAIN}; look at the network, the route, and the node at its end",
    ),
    "outlet-target-away": Event(
        "the service behind an outlet does not accept connections",
        "start the service, or correct the outlet's --to",
    ),
    "portal-refused": Event(
        "a peer is not allowed to use an inlet, an outlet or a relay",
        "if it should be: ockam-edge policy check says which clause refuses",
    ),
    "portal-stalled": Event(
        "a local connection took no bytes and was cut",
        "look at the service or client: it does not read what is sent to it",
    ),
    "descriptors-gone": Event(
        "the process has no descriptors left; new connections wait",
        "raise the limit of open files (LimitNOFILE= of the unit, or ulimit -n)",
    ),
    "relay-registered": Event("somebody registered a name here, as at a hub"),
    "relay-refused": Event(
        "somebody may not register a name here",
        "if it should: its ticket needs --relay NAME, and no other identity may hold the name",
    ),
    "relay-revoked": Event("a name was taken back: its holder may not have it any more"),
    "resource-failed": Event("something of the node's could not be made again", AGAIN),
    "resource-unknown": Event(
        "the store has something of a newer version", "install the version that made it again"
    ),
    "token-gone": Event(
        "the token does not answer",
        "plug it in, or start what serves it (pcscd, tpm2-abrmd, a connector): it is taken up again "
        "by itself",
    ),
    "token-locked": Event(
        "the token refuses the PIN, or is locked",
        "correct the PIN at its source; ockam-edge hsm test says what the token wants",
    ),
    "token-refused": Event(
        "the token is there, and is not the one or does not hold what it should",
        "put the right token back; ockam-edge hsm list shows what is there",
    ),
    "token-back": Event(
        "the token works again",
        ends=("token-gone", "token-locked", "token-refused", "attestation-failed"),
    ),
    "token-waited-for": Event(
        "the node started without its token", "plug it in: it is taken up by itself"
    ),
    "attestation-failed": Event(
        "our channel key could not be attested anew",
        "look at the vault: ockam-edge node show says what it answers",
    ),
    "attestation-kept": Event("the attestation of an earlier run is presented meanwhile"),
    "credential-fetched": Event(
        "the authority gave us a credential", ends=("credential-failed", "credential-expired")
    ),
    "credential-failed": Event(
        "the authority gives us no credential",
        f"{AGAIN}; if it says that we are no member: enroll with a new ticket",
    ),
    "credential-expired": Event(
        "our credential has expired: others refuse us",
        "make the authority reachable from here; the credential is then fetched by itself",
    ),
    "credential-unusable": Event("a credential that was kept is of no use; one is fetched", AGAIN),
    "credential-refused": Event(
        "a credential that a peer showed does not hold",
        f"if the peer should be a member: look at both clocks; {ENROLLERS}",
    ),
    "member-removed": Event("a member was removed, and its channels are cut", audit=True),
    "revocations-failed": Event(
        "nobody tells us now who is no member any more", f"{AGAIN}; what is known stays in force"
    ),
    "identity-rotated": Event("the identity has a new key", ends=("rotation-failed",), audit=True),
    "rotation-failed": Event(
        "the identity was rotated, and this node cannot follow",
        f"{AGAIN}; ockam-edge identity repair",
    ),
    "key-left": Event(
        "a key that is of no use any more could not be deleted",
        "once the vault works: ockam-edge identity repair",
    ),
    "channel-key-unusable": Event("the channel key that was kept is of no use; a new one is made"),
    "sealed-elsewhere": Event(
        "secrets are sealed by another key than they should be",
        "make the token able to seal: ockam-edge hsm test says what it can",
    ),
    "store-failed": Event("something could not be written to the disk", DISK),
    "clock-not-taken": Event("the clock was set, and our key could not be attested anew", CLOCK),
    "status-endpoint-failed": Event(
        "the status endpoint cannot listen",
        "stop what uses its port, or choose another one with --status-endpoint",
    ),
    "status-endpoint-up": Event("the status endpoint listens", ends=("status-endpoint-failed",)),
    "request-invalid": Event("what came over the node's own socket is no request", REPORT),
    "bug": Event("something that must not happen", REPORT),
    "authority-refused": Event("an authority refused a request", ENROLLERS),
    "authority-failed": Event("an authority cannot answer", LOG),
    "authority-busy": Event("one caller asks an authority too much", ENROLLERS),
    "database-away": Event("the authority's database does not answer", AGAIN),
    "database-back": Event("the authority's database answers again", ends=("database-away",)),
    "ticket-made": Event("an authority made a ticket", audit=True),
    "ticket-redeemed": Event("a ticket made a member", audit=True),
    "ticket-refused": Event("a ticket made no member", "make another: ockam-edge project ticket"),
    "member-added": Event("a member was added by hand", audit=True),
}


def event(name: str, error: BaseException | None = None, /, **fields: object) -> dict[str, Any]:
    """For `extra=` of a line of the log. `fields` are who it is about, never a secret; `error` gives
    what to do, where it says so."""
    if name not in EVENTS:
        raise KeyError(name)
    hint = getattr(error, "hint", "") or EVENTS[name].advice
    shown = {key: str(value) for key, value in fields.items() if value is not None}
    return {"event": name, "hint": hint, "fields": shown}
