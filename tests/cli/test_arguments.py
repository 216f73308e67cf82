"""Durations, hosts and ports, names, identifiers and routes, as typed."""

import click
import pytest

from edge.cli import arguments
from edge.cli.arguments import HostPort, parse_duration, parse_host_port, parse_name


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("0", 0), ("5", 5_000), ("250ms", 250), ("5s", 5_000), ("2m", 120_000), ("1h", 3_600_000),
        ("1d", 86_400_000), (" 5s ", 5_000),
    ],
)  # fmt: skip
def test_durations(text: str, milliseconds: int) -> None:
    assert parse_duration(text) == milliseconds


@pytest.mark.parametrize("text", ["", "s", "-1", "1.5s", "1h30m", "5 s", "5S", "\u0665", "1" * 13])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "expected", "shown"),
    [
        ("5432", HostPort("127.0.0.1", 5432), "127.0.0.1:5432"),
        (":5432", HostPort("127.0.0.1", 5432), "127.0.0.1:5432"),
        ("0", HostPort("127.0.0.1", 0), "127.0.0.1:0"),
        ("db.example:5432", HostPort("db.example", 5432), "db.example:5432"),
        ("my_db:1", HostPort("my_db", 1), "my_db:1"),
        ("10.0.0.1:80", HostPort("10.0.0.1", 80), "10.0.0.1:80"),
        ("[::1]:80", HostPort("::1", 80), "[::1]:80"),
        ("tcp://db:1", HostPort("db", 1), "db:1"),
        ("tls://db:1", HostPort("db", 1, tls=True), "db:1"),
        ("tls://443", HostPort("127.0.0.1", 443, tls=True), "127.0.0.1:443"),
    ],
)
def test_hosts_and_ports(text: str, expected: HostPort, shown: str) -> None:
    assert parse_host_port(text) == expected
    assert str(parse_host_port(text)) == shown


@pytest.mark.parametrize(
    "text",
    [
        "", "host", "host:", "host:x", "host:65536", "99999", "-5", "udp://h:1", "http://h:1", "h:1/p",
        "::1:80", "[::1]", "[x]:1", "a..b:1", "-a:1", "a-:1", ".:1", "a b:1", "ü:1", "\u0665",
        "a" * 64 + ":1", ".".join(["a" * 50] * 6) + ":1",
    ],
)  # fmt: skip
def test_what_is_no_host_and_port(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_host_port(text)


def test_a_port_that_is_too_high_is_named() -> None:
    with pytest.raises(ValueError, match="65536 is no port"):
        parse_host_port("host:65536")


def test_names() -> None:
    assert parse_name("n-1_x", "node") == "n-1_x"
    assert parse_name("/node/n1", "node") == "n1"
    for text in ("", "a b", "/service/n1", "a:b", "/node/", "../x"):
        with pytest.raises(ValueError, match="name"):
            parse_name(text, "node")


def test_targets_of_outlets() -> None:
    target = arguments.Target()
    assert target.convert("unix:/run/x.sock", None, None) == "unix:/run/x.sock"
    assert target.convert("80", None, None) == HostPort("127.0.0.1", 80)
    with pytest.raises(click.BadParameter):
        target.convert("unix:x", None, None)


def test_identifiers() -> None:
    kind = arguments.Identifier()
    assert kind.convert("I" + "AB" * 32, None, None) == "I" + "ab" * 32
    for text in ("", "I00", "ab" * 32, "I" + "zz" * 32):
        with pytest.raises(click.BadParameter):
            kind.convert(text, None, None)


def test_routes() -> None:
    kind = arguments.Route()
    assert kind.convert("service/echo", None, None) == "/service/echo"
    assert kind.convert("/node/a/secure/api", None, None) == "/node/a/secure/api"
    for text in ("", "/", "bad", "/service", "/service/", "/service/a/", "//a"):
        with pytest.raises(click.BadParameter):
            kind.convert(text, None, None)
