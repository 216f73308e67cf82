"""The kinds of argument that commands share: durations, hosts and ports, names, routes."""

from typing import Any

import click

from edge.config.values import (
    HostPort,
    parse_duration,
    parse_host_port,
    parse_identifier,
    parse_loopback,
    parse_name,
    parse_route,
    parse_target,
)

__all__ = [
    "NODE", "SERVICE", "Address", "Duration", "HostPort", "Identifier", "Loopback", "Name", "Route",
    "Target",
    "parse_duration", "parse_host_port", "parse_name",
]  # fmt: skip


class _Type(click.ParamType[Any]):
    """A click type around one of those functions: its ValueError becomes a usage error."""

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


class Loopback(_Type):
    """An address of this machine only."""

    name = "host:port"

    def parse(self, text: str) -> HostPort:
        return parse_loopback(text)


class Target(_Type):
    """Where an outlet connects: a host and port, or the path of a unix socket."""

    name = "host:port"

    def parse(self, text: str) -> HostPort | str:
        return parse_target(text)


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
        return parse_identifier(text)


class Route(_Type):
    """A route as a multi-address, such as /ip4/10.0.0.1/tcp/4000/secure/api."""

    name = "route"

    def parse(self, text: str) -> str:
        return parse_route(text)


NODE = Name("node")
SERVICE = Name("service")
