"""The page of a node: its status for a browser, read-only; no script, and nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator
from html import escape
from typing import Any

Picture = dict[str, Any]
REFRESH = 10
"""Seconds after which a browser asks again."""
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:64rem;padding:0 1rem;
color:#1a1a1a;background:#fff}
h1{font-size:1.4rem} h2{font-size:1.1rem;margin-top:2rem}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.25rem .75rem .25rem 0;border-bottom:1px solid #ddd;
vertical-align:top;overflow-wrap:anywhere}
.good{color:#08660b} .bad{color:#a40000} .what{color:#555}
@media(prefers-color-scheme:dark){
body{color:#e6e6e6;background:#161616} th,td{border-color:#444}
.good{color:#6fd672} .bad{color:#ff8a80} .what{color:#aaa}
}
"""
_DIGEST = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; style-src 'sha256-{_DIGEST}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""Content-Security-Policy: the style above, and nothing else at all."""
SESSION = ("round_trip_ms", "reconnected", "since", "last_failure", "hint")
TRAFFIC = ("portals", "opened", "refused", "bytes_to_peer", "bytes_from_peer")
TABLES = (
    ("relays", ("name", "up", "at", *SESSION)),
    ("inlets", ("name", "up", "from", "to", *TRAFFIC, *SESSION)),
    ("outlets", ("name", "to", "allow", *TRAFFIC, "failed", "last_failure")),
    ("errors", ("last", "event", "subject", "message", "hint", "count", "over")),
)


def page(found: Picture) -> bytes:
    """The picture of edge/node/status.py as HTML."""
    return "".join(_parts(found)).encode()


def _parts(found: Picture) -> Iterator[str]:
    name, ready = escape(found["name"]), found["ready"]
    yield (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f'<meta name="viewport" content="width=device-width">'
        f'<meta http-equiv="refresh" content="{REFRESH}"><style>{STYLE}</style></head><body>'
    )
    kind, word = ("good", "ready") if ready else ("bad", "not ready")
    yield f'<h1>{name} is <span id="state" class="{kind}">{word}</span></h1>'
    yield "".join(f'<p class="bad">{escape(reason)}</p>' for reason in found["obstacles"])
    yield _pairs(
        "node", {key: found[key] for key in ("version", "pid", "started", "now", "channels")}
    )
    for title in ("identity", "vault", "fleet", "clock"):
        if found[title]:
            yield _pairs(title, found[title])
    for title, columns in TABLES:
        if found[title]:
            yield _table(title, columns, found[title])
    yield "</body></html>\n"


def _pairs(title: str, values: Picture) -> str:
    rows = "".join(
        f'<tr><th class="what">{_word(key)}</th><td>{_cell(value)}</td></tr>'
        for key, value in values.items()
        if value not in (None, "", [])
    )
    return f'<h2>{title}</h2><table id="{title}">{rows}</table>'


def _table(title: str, columns: Iterable[str], items: list[Picture]) -> str:
    columns = [key for key in columns if any(item.get(key) not in (None, "") for item in items)]
    head = "".join(f'<th class="what">{_word(key)}</th>' for key in columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{_cell(item.get(key))}</td>" for key in columns) + "</tr>"
        for item in items
    )
    return f'<h2>{title}</h2><table id="{title}"><tr>{head}</tr>{rows}</table>'


def _word(key: str) -> str:
    return escape(key.replace("_", " "))


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return f'<span class="{"good" if value else "bad"}">{"yes" if value else "no"}</span>'
    if isinstance(value, dict):
        value = ", ".join(f"{key}={one}" for key, one in value.items())
    return "" if value is None else escape(str(value))
