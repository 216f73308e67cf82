"""Values that a person writes, on the command line and in a configuration: durations, hosts and ports,
names, routes. Each function takes the text; ValueError says what is wrong with it."""

from __future__ import annotations

import re
from typing import NamedTuple

_UNITS = {"ms": 1, "s": 1000, "": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(r"([0-9]{1,12})(ms|s|m|h|d|)")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,200}")
_LABEL = re.compile(r"[A-Za-z0-9_-]{1,63}")
_PORT = re.compile(r"[0-9]{1,5}")
_IDENTIFIER = re.compile(r"I[0-9a-fA-F]{64}")
LOG_FORMATS = ("text", "json")


class HostPort(NamedTuple):
    """Where to connect or listen. An IPv6 address is kept without its brackets."""

    host: str
    port: int
    tls: bool = False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_loopback(text: str) -> HostPort:
    """`PORT` or `HOST:PORT` of this machine only. Raises ValueError."""
    found = parse_host_port(text)
    if found.tls or found.host not in ("localhost", "127.0.0.1", "::1"):
        raise ValueError(f"{text[:80]!r} is not of this machine only; expected 127.0.0.1:PORT")
    return found


def parse_log_format(text: str) -> str:
    """Raises ValueError."""
    if text not in LOG_FORMATS:
        raise ValueError(f"{text[:20]!r} is no log format; expected one of {', '.join(LOG_FORMATS)}")
    return text


def parse_duration(text: str) -> int:
    """Milliseconds."""
    if (match := _DURATION.fullmatch(text.strip())) is None:
        raise ValueError(f"{text!r} is no duration: digits and ms, s, m, h or d")
    return int(match[1]) * _UNITS[match[2]]


def parse_host_port(text: str) -> HostPort:
    """`5432`, `:5432`, `host:5432`, `1.2.3.4:5432`, `[v6]:5432`, each with tcp:// or tls:// before it.
    A port is mandatory; without a host it is 127.0.0.1."""
    scheme, mark, rest = text.rpartition("://")
    if mark and scheme not in ("tcp", "tls"):
        raise ValueError(f"{scheme}:// is not supported: use tcp:// or tls://")
    host, colon, port = rest.rpartition(":")
    if not _PORT.fullmatch(port):
        raise ValueError(f"{text!r} has no port: write PORT or HOST:PORT")
    if int(port) > 65535:
        raise ValueError(f"{port} is no port: the last one is 65535")
    return HostPort(_host(host) if colon and host else "127.0.0.1", int(port), scheme == "tls")


def _host(text: str) -> str:
    if text.startswith("[") and text.endswith("]"):
        from ipaddress import IPv6Address  # noqa: PLC0415 - seldom needed, and quick commands stay quick

        return str(IPv6Address(text[1:-1]))
    labels = text.split(".")
    whole = len(text) <= 253 and all(_LABEL.fullmatch(label) for label in labels)
    if not whole or text[0] == "-" or text[-1] == "-":
        raise ValueError(f"{text!r} is no host name (an IPv6 address stands in brackets)")
    return text


def parse_target(text: str) -> HostPort | str:
    """Where an outlet connects: a host and port, or `unix:/path`."""
    if not text.startswith("unix:"):
        return parse_host_port(text)
    if not text.startswith("unix:/"):
        raise ValueError("the path of a unix socket must be absolute: unix:/path")
    return text


def parse_name(text: str, prefix: str) -> str:
    """A bare name, or the same behind `/node/` or `/service/`."""
    name = text.removeprefix(f"/{prefix}/")
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"{text!r} is no name: letters, digits, - and _")
    return name


def parse_identifier(text: str) -> str:
    """Of an identity: I and 64 hex digits."""
    if _IDENTIFIER.fullmatch(text) is None:
        raise ValueError(f"{text[:80]!r} is no identifier: I and 64 hex digits")
    return "I" + text[1:].lower()


def parse_route(text: str) -> str:
    """A multi-address, such as /ip4/10.0.0.1/tcp/4000/secure/api."""
    parts = text.removeprefix("/").split("/")
    if text in ("", "/") or len(parts) % 2 or not all(parts):
        raise ValueError(f"{text!r} is no route: write /name/value pairs")
    return "/" + "/".join(parts)


def inlet_route(to: str, via: str | None) -> str:
    """A service by name is behind a relay of the project's hub, as with stock."""
    name = to.removeprefix("/service/")
    if "/" not in name:
        service = parse_name(name, "service")
        relay = f"/project/default/service/forward_to_{via or 'default'}"
        return f"{relay}/secure/api/service/{service}"
    if via is not None:
        raise ValueError("via goes with the name of a service, not with a whole route")
    return parse_route(to)
