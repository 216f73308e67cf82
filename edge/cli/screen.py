"""The screen of `status`: a picture of nodes as lines for people."""

import calendar
import time
from collections.abc import Iterator
from typing import Any

Picture = dict[str, Any]
MAKE = "    there is no node; make one: ockam-edge node create"
UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
ERRORS = 5
"""Errors that are shown; JSON has all that are remembered."""


def drawn(found: Picture) -> str:
    """All nodes; or what there is instead of one."""
    blocks = ["\n".join(_node(node)) for node in found["nodes"]]
    if not blocks:
        who = [f"    identity {one['name']} {one['identifier']}" for one in found["identities"]]
        fleets = [f"    project {name}" for name in found["projects"]]
        blocks = ["\n".join([*who, *fleets, MAKE])]
    return "\n\n".join(blocks)


def _node(node: Picture) -> Iterator[str]:
    yield _headline(node)
    for label, text in _facts(node):
        yield f"    {label + ':':<11}{text}"
    for title, items, line in (
        ("relays", node["relays"], _relay),
        ("inlets", node["inlets"], _inlet),
        ("outlets", node["outlets"], _outlet),
    ):
        if items:
            yield f"    {title}:"
        for item in items:
            yield f"      {_mark(item)} {line(item)}"
            yield from _trouble(item)
    yield from _errors(node["errors"])


def _headline(node: Picture) -> str:
    state = (
        "ready" if node["ready"] else "not ready" if node["state"] == "running" else node["state"]
    )
    process = f", process {node['pid']}" if node["pid"] else ""
    up = f", for {_ago(node['started'], node['now'])}" if node["started"] else ""
    head = f"  {'✔' if node['ready'] else '✘'} node {node['name']}: {state}{process}{up}"
    return "\n".join([head, *(f"      ! {reason}" for reason in node["obstacles"])])


def _facts(node: Picture) -> Iterator[tuple[str, str]]:
    identity, now = node["identity"], node["now"]
    yield "identity", f"{identity['name']} {identity['identifier']}"
    if identity["behind"]:
        yield "", f"was rotated, and this node cannot follow: {identity['behind']}"
    if identity["rotation_due"] and identity["rotation_due"] <= now:
        yield "", f"its key is old: ockam-edge identity rotate {identity['name']}"
    yield "vault", _vault(node["vault"], now)
    if (fleet := node["fleet"]) is not None:
        yield "fleet", _fleet(fleet, now)
        if fleet["last_failure"]:
            yield "", f"no credential came: {fleet['last_failure']}"
    if node["clock"] and not node["clock"]["set"]:
        yield "clock", f"is not set; at least {node['clock']['floor']} is taken for now"
    if node["listeners"]:
        yield "listens", ", ".join(node["listeners"])
    if node["status_endpoint"]:
        yield "status", f"http://{node['status_endpoint']}/"


def _vault(vault: Picture, now: str) -> str:
    parts = [vault.get("type", "unknown")]
    if "module" in vault:
        token = f"token {vault['token']}" if vault["token"] else "the token"
        since = "" if vault["state"] == "present" else f" for {_ago(vault['since'], now)}"
        parts = [f"{token} is {vault['state']}{since}", f"PIN {vault['pin']}", vault["module"]]
    if "attested_until" in vault:
        until = vault["attested_until"]
        parts.append(f"channels until {_until(until, now)}" if until else "no channels yet")
    text = ", ".join(map(str, parts))
    if vault.get("error"):
        text += f"\n{'':15}{vault['error']}" + (
            f"\n{'':15}→ {vault['hint']}" if vault["hint"] else ""
        )
    return text


def _fleet(fleet: Picture, now: str) -> str:
    until = fleet["credential_until"]
    held = f"credential until {_until(until, now)}" if until else "no credential"
    attributes = " ".join(f"{key}={value}" for key, value in (fleet["attributes"] or {}).items())
    return ", ".join(filter(None, [fleet["project"], held, attributes]))


def _mark(item: Picture) -> str:
    return "│" if "up" not in item else "✔" if item["up"] else "✘"


def _relay(item: Picture) -> str:
    again = f", reconnected {item['reconnected']} times" if item["reconnected"] else ""
    return f"{item['name']} at {item['at']}{_trip(item)}{again}"


def _inlet(item: Picture) -> str:
    return f"{item['name']}: {item['from']} to {item['to']}{_trip(item)}; {_portals(item)}"


def _outlet(item: Picture) -> str:
    who = f" for {item['allow']}" if item["allow"] else ""
    failed = f", {item['failed']} failed" if item["failed"] else ""
    return f"{item['name']} to {item['to']}{who}; {_portals(item)}{failed}"


def _trip(item: Picture) -> str:
    return f", {item['round_trip_ms']:.1f} ms" if item["round_trip_ms"] is not None else ""


def _portals(item: Picture) -> str:
    refused = f", {item['refused']} refused" if item["refused"] else ""
    there, here = size(item["bytes_to_peer"]), size(item["bytes_from_peer"])
    return f"{item['portals']} open of {item['opened']}{refused}, {there} there, {here} back"


def _trouble(item: Picture) -> Iterator[str]:
    if item["last_failure"]:
        yield f"          {item['last_failure']}"
    if item.get("hint"):
        yield f"          → {item['hint']}"


def _errors(errors: list[Picture]) -> Iterator[str]:
    if errors:
        yield "    last errors:"
    for one in errors[:ERRORS]:
        count = f", {one['count']} times" if one["count"] > 1 else ""
        over = ", over" if one["over"] else ""
        mark, what = "·" if one["over"] else "!", one["event"] or one["level"]
        yield f"      {mark} {one['last']} {what}{count}{over}"
        yield f"          {' '.join(one['message'].split())[:300]}"
        if one["hint"] and not one["over"]:
            yield f"          → {one['hint']}"
    if len(errors) > ERRORS:
        yield f"      and {len(errors) - ERRORS} more: --output json"


def size(count: int) -> str:
    """Bytes for people, in steps of 1000."""
    number = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def _seconds(moment: str) -> int:
    return calendar.timegm(time.strptime(moment, "%Y-%m-%dT%H:%M:%SZ"))


def _ago(moment: str, now: str) -> str:
    return _span(_seconds(now) - _seconds(moment))


def _until(moment: str, now: str) -> str:
    left = _seconds(moment) - _seconds(now)
    return f"{moment} (over)" if left < 0 else f"{moment} ({_span(left)})"


def _span(seconds: int) -> str:
    """In the largest unit that fits."""
    most, unit = next((one for one in UNITS if seconds >= one[0]), UNITS[-1])
    return f"{max(seconds, 0) // most} {unit}"
