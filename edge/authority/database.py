"""Where the PostgreSQL database of an authority is: a URL, or the file or credential that holds it.

A URL given directly has no password: it stands on command lines and in our settings. What messages
show of a URL is `shown()` of it.
"""

from __future__ import annotations

from urllib.parse import SplitResult, parse_qs, urlsplit

from edge.errors import ConfigError
from vault_backends.uri import check_source, read_secret
from vault_backends.vault import VaultError

SCHEMES = ("postgresql", "postgres")
HINT = "such as postgresql://USER@HOST/DATABASE, file:/path or credential:NAME"
_SECRETS = ("password", "sslpassword")


def check(source: str) -> None:
    """Raises ConfigError where `source` is none, or shows a password."""
    if _is_place(source):
        return
    split = _split(source)
    if split.password is not None or any(name in parse_qs(split.query) for name in _SECRETS):
        raise ConfigError(
            "the URL of the database has a password in it, which others can see",
            hint="put the URL into a file with mode 0600 and give file:/path, or use ~/.pgpass",
        )


def read(source: str) -> str:
    """The URL, with its password if it stands in a file. Raises ConfigError as check() does, and where
    the file is not there or not private."""
    check(source)
    if not _is_place(source):
        return source
    try:
        url = read_secret(source).strip()
    except VaultError as error:
        raise ConfigError(f"the URL of the database: {error}", hint=error.hint) from None
    _split(url)
    return url


def shown(url: str) -> str:
    """The server and the database."""
    split = _split(url)
    given = parse_qs(split.query)
    host = split.netloc.rpartition("@")[2] or given.get("host", ["this machine"])[0]
    return f"{split.path.lstrip('/') or given.get('dbname', ['the database'])[0]} at {host}"


def hosts(url: str) -> list[str]:
    """Names or addresses, or folders of unix sockets; none where the URL leaves it open."""
    split = _split(url)
    given = parse_qs(split.query).get("host", [])
    places = [
        place for text in (split.netloc.rpartition("@")[2], *given) for place in text.split(",")
    ]
    return [_without_port(place) for place in places if place]


def says(url: str, name: str) -> bool:
    """Whether the URL has this parameter."""
    return name in parse_qs(_split(url).query)


def secrets(url: str) -> list[str]:
    """What no message may show."""
    split = _split(url)
    found = [split.password or "", *split.netloc.rpartition("@")[0].partition(":")[2:]]
    for name in _SECRETS:
        found += parse_qs(split.query).get(name, [])
    return [secret for secret in found if secret]


def _is_place(source: str) -> bool:
    if not source.startswith(("file:", "credential:")):
        return False
    try:
        check_source("the database", source, ask=False)
    except VaultError as error:
        raise ConfigError(str(error), hint=HINT) from None
    return True


def _split(url: str) -> SplitResult:
    """Its parts; a URL that does not parse may be a password in the wrong place, and is not shown."""
    try:
        split = urlsplit(url)
    except ValueError:
        raise ConfigError("the URL of the database cannot be read", hint=HINT) from None
    if split.scheme not in SCHEMES:
        raise ConfigError("the database is given by a URL that is none of PostgreSQL", hint=HINT)
    if split.fragment or "@" in split.path + split.query or not split.netloc.isprintable():
        raise ConfigError(
            "the URL of the database cannot be read",
            hint="characters such as / ? # @ in a password are written %2F %3F %23 %40",
        )
    return split


def _without_port(place: str) -> str:
    if place.startswith("["):
        return place[1:].partition("]")[0]
    return place if place.startswith("/") else place.partition(":")[0]
