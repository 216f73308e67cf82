"""What the command line reads without asking a node: the home and the store in it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edge.cli.output import settings
from edge.node.home import Home

if TYPE_CHECKING:
    from edge.node.store import Store


def home() -> Home:
    """The home of this environment, its folders made."""
    return Home.of_environment().prepare()


@contextmanager
def store() -> Iterator["Store"]:
    """The store, open for the length of a `with`."""
    from edge.node.store import Store  # noqa: PLC0415  (sqlite)

    opened = Store(home().database)
    try:
        yield opened
    finally:
        opened.close()


def ask(prompt: str) -> str | None:
    """A PIN or passphrase from the person at the terminal; None when nobody is there."""
    wanted = settings()
    if wanted.quiet or wanted.no_input or not sys.stdin.isatty():
        return None
    from getpass import getpass  # noqa: PLC0415

    return getpass(f"{prompt}: ")
