"""What the commands of a fleet share: identity, project, attributes, tickets, asking the authority."""

import errno
import os
import sys
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edge.cli import local
from edge.cli.output import note
from edge.errors import ConfigError

if TYPE_CHECKING:
    from edge.authority.client import Client
    from edge.identity.credential import Credential
    from edge.identity.history import ChangeHistory
    from edge.identity.project import Project
    from edge.node.keys import Identity
    from edge.node.store import Store
    from edge.node.trustcontext import TrustContext

T = TypeVar("T")
LONGEST_TICKET = 1 << 17
DOWNLOAD = 20.0
"""Seconds that the download of a ticket may take."""


def identity_of(store: "Store", name: str | None, *, make: bool = False) -> "Identity":
    """The identity of that name, or the default one, made where it is missing and may be."""
    from edge.node.clock import Clock  # noqa: PLC0415
    from edge.node.identities import create_identity, load  # noqa: PLC0415

    known = {record.name for record in store.identities()}
    if make and (name not in known if name is not None else not known):
        now = Clock(floor=store.time_floor()).now()
        made = create_identity(store, local.home(), name or "default", now=now, ask=local.ask)
        note(f"identity {made.name} was made: {made.identifier}")
        return load(store, made.name)
    return load(store, name)


def converse(
    store: "Store",
    context: "TrustContext",
    identity: "Identity",
    work: "Callable[[Client], Awaitable[T]]",
    *,
    timeout: float,
) -> T:
    """Ask the authority of `context` as `identity`."""
    from edge.cli.temporary import ask_authority  # noqa: PLC0415  (asyncio)

    return ask_authority(
        context,
        identity,
        work,
        home=local.home(),
        timeout=timeout,
        floor=store.time_floor(),
        ask=local.ask,
    )


def followed(project: "Project", authority: "ChangeHistory") -> "Project":
    """The project with what its authority has just proved: it may have been rotated, and the hub with
    it. A device that hears it from us need not hear it from the hub first."""
    hub = authority if project.identifier == authority.identifier else project.history
    return project._replace(authority=authority, history=hub)


def context_of(store: "Store", project: str | None) -> "TrustContext":
    from edge.node.trustcontext import find_project, of_project  # noqa: PLC0415

    return of_project(find_project(store, project))


def read_attributes(
    given: Iterable[str], *, relay: str | None = None, enroller: bool = False, tls: bool = False
) -> dict[str, str]:
    """`name=value`, or `name` alone for `true`; and those that options stand for."""
    from edge.authority.rights import ENROLLER, RELAY, ROLE, unfit  # noqa: PLC0415

    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        found[name] = value if equals else "true"
    if relay is not None:
        found[RELAY] = relay
    if enroller:
        found[ROLE] = ENROLLER
    if tls:
        found["ockam-tls-certificate"] = "true"
    reason = unfit(found)
    if reason is not None:
        raise ConfigError(reason)
    return found


def read_ticket(argument: str | None) -> str | None:
    """The text of a ticket: from the argument (a URL, a file, `-` for standard input, or the ticket
    itself), $ENROLLMENT_TICKET, or a systemd credential named `ticket`. None where there is none."""
    if argument is None:
        argument = os.environ.pop("ENROLLMENT_TICKET", None)
    if argument is None:
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        if not folder or not (Path(folder) / "ticket").exists():
            return None
        argument = str(Path(folder) / "ticket")
    text = argument.strip()
    if text == "-":
        return _bounded(sys.stdin.buffer.read(LONGEST_TICKET + 1))
    if text.startswith(("http://", "https://")):
        return _download(text)
    path = Path(text)
    try:
        if not path.is_file():
            return _not_a_file(text)
        with path.open("rb") as file:
            return _bounded(file.read(LONGEST_TICKET + 1))
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # a ticket is, and it is not to be shown
            return text
        raise ConfigError(
            f"cannot read the file with the ticket: {error.strerror}",
            hint="is it another user's?",
        ) from None


def _not_a_file(text: str) -> str:
    """A ticket, unless it looks like the name of a file; a ticket has not that form, and no place
    in an error."""
    if ("/" in text or "." in text) and not set(text) & set(",{[") and not text.isspace():
        raise ConfigError(
            f"there is no file {text}",
            hint="give a ticket's text, or a file that holds it: ockam-edge project ticket > ticket",
        )
    return text


def _bounded(data: bytes) -> str:
    if len(data) > LONGEST_TICKET:
        raise ConfigError("that is too long for an enrollment ticket")
    return data.decode("utf-8", "replace")


def _download(url: str) -> str:
    from urllib.request import urlopen  # noqa: PLC0415

    try:
        with urlopen(url, timeout=DOWNLOAD) as answer:
            return _bounded(answer.read(LONGEST_TICKET + 1))
    except OSError as error:
        raise ConfigError(
            f"the ticket cannot be downloaded: {type(error).__name__}",
            hint="check the address; or give the ticket itself, or a file",
        ) from None


def credential_json(credential: "Credential") -> dict[str, Any]:
    return {
        "credential": credential.encoded.hex(),
        "subject": str(credential.subject),
        "issuer": str(credential.issuer),
        "created_at": credential.created_at,
        "expires_at": credential.expires_at,
        "attributes": {_text(name): _text(value) for name, value in credential.attributes.items()},
    }


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return "**binary**"


attribute_option = click.option(
    "-a", "--attribute", "attributes", multiple=True, metavar="NAME[=VALUE]",
    help="What the authority will say of the member; again for more.",
)  # fmt: skip
relay_option = click.option("--relay", help="The relay name that the member may register, or *.")
enroller_option = click.option("--enroller", is_flag=True, help="It may enroll others.")
project_option = click.option(
    "--project", help="The project; without it, the default one.", metavar="NAME"
)
identity_option = click.option(
    "--identity", help="Who asks; without it, the default identity.", metavar="NAME"
)
