"""The kinds of argument that commands share: durations, hosts and ports, names, routes."""

import re
from typing import Any, NamedTuple

import click

_UNITS = {"ms": 1, "s": 1000, "": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(r"([0-9]{1,12})(ms|s|m|h|d|)")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,200}")
_LABEL = re.compile(r"[A-Za-z0-9_-]{1,63}")
_PORT = re.compile(r"[0-9]{1,5}")


class HostPort(NamedTuple):
    """Where to connect or listen. An IPv6 address is kept without its brackets."""

    host: str
    port: int
    tls: bool = False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_duration(text: str) -> int:
    """Milliseconds. ValueError says what is wrong."""
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
    if not _PORT.fullmatch(port) or int(port) > 65535:
        raise ValueError(f"{text!r} has no port: write PORT or HOST:PORT")
    return HostPort(_host(host) if colon and host else "127.0.0.1", int(port), scheme == "tls")


def _host(text: str) -> str:
    if text.startswith("[") and text.endswith("]"):
        from ipaddress import IPv6Address  # noqa: PLC0415

        return str(IPv6Address(text[1:-1]))
    labels = text.split(".")
    whole = len(text) <= 253 and all(_LABEL.fullmatch(label) for label in labels)
    if not whole or text[0] == "-" or text[-1] == "-":
        raise ValueError(f"{text!r} is no host name (an IPv6 address stands in brackets)")
    return text


def parse_name(text: str, prefix: str) -> str:
    """A bare name, or the same behind `/node/` or `/service/`."""
    name = text.removeprefix(f"/{prefix}/")
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"{text!r} is no name: letters, digits, - and _")
    return name


class _Type(click.ParamType[Any]):
    """A click type around one of the functions above: its ValueError becomes a usage error."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self.parse(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def parse(self, text: str) -> Any:
        raise NotImplementedError


class Duration(_Type):
    name = "duration"

    def parse(self, text: str) -> int:
        return parse_duration(text)


class Address(_Type):
    name = "host:port"

    def parse(self, text: str) -> HostPort:
        return parse_host_port(text)


class Target(_Type):
    """Where an outlet connects: a host and port, or the path of a unix socket."""

    name = "host:port"

    def parse(self, text: str) -> HostPort | str:
        if not text.startswith("unix:"):
            return parse_host_port(text)
        if not text.startswith("unix:/"):
            raise ValueError("the path of a unix socket must be absolute: unix:/path")
        return text


class Name(_Type):
    """A name, alone or behind /node/ or /service/."""

    name = "name"

    def __init__(self, prefix: str = "node") -> None:
        self.prefix = prefix

    def parse(self, text: str) -> str:
        return parse_name(text, self.prefix)


class Identifier(_Type):
    """An identity's identifier: I and 64 hex digits."""

    name = "identifier"

    def parse(self, text: str) -> str:
        if re.fullmatch(r"I[0-9a-fA-F]{64}", text) is None:
            raise ValueError(f"{text[:80]!r} is no identifier: I and 64 hex digits")
        return "I" + text[1:].lower()


class Route(_Type):
    """A route as a multi-address, such as /ip4/10.0.0.1/tcp/4000/secure/api."""

    name = "route"

    def parse(self, text: str) -> str:
        parts = text.removeprefix("/").split("/")
        if text in ("", "/") or len(parts) % 2 or not all(parts):
            raise ValueError(f"{text!r} is no route: write /name/value pairs")
        return "/" + "/".join(parts)


NODE = Name("node")
SERVICE = Name("service")
