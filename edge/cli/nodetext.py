"""What `node show` says of a node on a terminal."""

import math
import time
from collections.abc import Callable
from typing import Any

from edge.cli.output import lines

Item = dict[str, Any]


def block(found: Item) -> str:
    """NodeResources, as lines for people."""
    pid = f", process {found['pid']}" if found.get("pid") else ""
    text = lines(
        {
            "Node": found["name"],
            "Status": f"{found['status']}{pid}",
            "Identity": f"{found['identity_name']} {found.get('identifier', '')}".strip(),
            "Route": found["route"]["short"],
            "Address": found["route"].get("verbose"),
            "Fleet": _fleet(found.get("fleet")),
            "Vault": _vault(found.get("vault") or {}),
            "Warning": _warning(found),
        }
    )
    for kind, line in RESOURCES.items():
        items = found.get(kind) or []
        if items:
            text += f"\n    {kind.replace('_', ' ').capitalize()}:"
            text += "".join(f"\n      {line(item)}" for item in items)
    return text


def _fleet(found: Item | None) -> str | None:
    """Of which it is a member and until when, or why not. An authority is not asked what it is."""
    if found is None or "expires_at" not in found:
        return None
    name = found["project"] or f"that of {found['authority']}"
    if found["expires_at"] is not None:
        until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(found["expires_at"]))
        attributes = ", ".join(f"{key}={value}" for key, value in found["attributes"].items())
        name += f", a member until {until}: {attributes}"
    else:
        name += ", without a credential"
    return name + (f"; {found['last_failure']}" if found["last_failure"] else "")


def _vault(found: dict[str, Any]) -> str | None:
    """The state of a token, and what to do about it; a file needs no words."""
    if "module" not in found:
        return None
    token = f"token {found['token']}, serial {found['serial']}" if found["token"] else "the token"
    said = f"{token}, in {found['module']}: {found['state']}"
    if found["state"] != "present":
        said += f" since {found['since']}"
    until = found["attested_until"]
    said += f"; channels until {until}" if until else "; no channels yet"
    said += f"; {found['signatures']} signatures, {found['logins']} logins"
    if found["error"]:
        said += f"; {found['error']}" + (f" ({found['hint']})" if found["hint"] else "")
    return said


def _warning(found: dict[str, Any]) -> str | None:
    name = found["identity_name"]
    if found.get("identity_behind"):
        return f"{name} was rotated, and this node cannot follow: {found['identity_behind']}"
    if time.time() >= found.get("rotation_due", math.inf):
        return f"the key of {name} is old: ockam-edge identity rotate {name}"
    return None


def _address(found: Any) -> str:
    """A service's address, which stock shows as the list of its bytes."""
    return "/service/" + bytes(found["inner"]).decode(errors="replace")


def _transport(item: Item) -> str:
    if item["mode"] == "Listen":
        return f"listens on {item['socket_addr']}"
    return f"{'from' if item['mode'] == 'Incoming' else 'to'} {item['socket_addr']}"


def _channel_listener(item: Item) -> str:
    return _address(item["address"])


def _inlet(item: Item) -> str:
    head = (
        f"{item['alias']}: {item['bind_addr']} ({item['status']}) to {item.get('outlet_addr', '?')}"
    )
    return ", ".join([head, *_peer(item), *_use(item)])


def _outlet(item: Item) -> str:
    head = f"{_address(item['worker_addr'])} to {item['to']}"
    tls = ["by TLS"] if item["tls"] else []
    allow = [f"for {item['allow']}"] if item["allow"] else []
    return ", ".join([head, *tls, *allow, *_use(item)])


def _relay(item: Item) -> str:
    head = f"{item['name']} at {item['destination_address']} ({item['connection_status']})"
    return ", ".join([head, *_peer(item), *_use(item)])


def _service(item: Item) -> str:
    return f"/service/{item['addr']} ({item['type']})"


def _peer(item: Item) -> list[str]:
    return [f"with {item['peer']}"] if item.get("peer") else []


def _use(item: Item) -> list[str]:
    """How often it was used, and why it was not."""
    counted = [
        ("portals", "open now"),
        ("opened", "opened"),
        ("refused", "refused"),
        ("failed", "failed"),
    ]
    said = [f"{item[key]} {word}" for key, word in counted if item.get(key)]
    return said + ([f"last failure: {item['last_failure']}"] if item.get("last_failure") else [])


RESOURCES: dict[str, Callable[[Item], str]] = {
    "transports": _transport,
    "secure_channel_listeners": _channel_listener,
    "inlets": _inlet,
    "outlets": _outlet,
    "relays": _relay,
    "services": _service,
}
"""The kinds of things a node has, as NodeResources calls them, and how one looks."""
