"""`credential`: what an identity says of another one, without an authority that runs."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.cli import client, fleetwork, local
from edge.cli.arguments import Duration, Identifier, Name
from edge.cli.main import Noun
from edge.cli.output import Result, done, lines, listing, note
from edge.cli.resource import at_option
from edge.errors import ConfigError, DecodeError, EdgeError

if TYPE_CHECKING:
    from edge.identity import history
    from edge.identity.credential import Credential
    from edge.node.store import Store

LONGEST = 1 << 17
WHO = Identifier()
issuer_option = click.option("--issuer", type=WHO, required=True, help="Whose word it must be.")
hex_option = click.option("--credential", "text", metavar="HEX", help="The credential.")
path_option = click.option("--credential-path", "path", metavar="FILE", help="A file that has it.")


@click.group("credential", cls=Noun)
def credential() -> None:
    """Credentials: attributes of an identity, signed by another one that nodes believe."""


@credential.command()
@click.argument("vault", required=False)
@click.option("--as", "issuer", type=Name("identity"), help="Who says it: an identity of ours.")
@click.option(
    "--for", "subject", required=True, metavar="IDENTIFIER|HEX",
    help="Of whom: an identifier, or the history that `identity export` prints there.",
)  # fmt: skip
@click.option(
    "-a", "--attribute", "attributes", multiple=True, metavar="NAME[=VALUE]",
    help="What is said; again for more.",
)  # fmt: skip
@click.option("--ttl", type=Duration(), default="30m", help="For how long it holds.")
@click.option("--encoding", type=click.Choice(["plain", "hex"]), default="plain")
def issue(
    vault: str | None,
    issuer: str | None,
    subject: str,
    attributes: tuple[str, ...],
    ttl: int,
    encoding: str,
) -> Result:
    """Say something of an identity, and sign it with another one. Nobody is asked."""
    from edge.node.clock import Clock  # noqa: PLC0415
    from edge.node.credentials import issue_offline, known_here  # noqa: PLC0415

    given = fleetwork.read_attributes(attributes)
    with local.store() as store:
        who = fleetwork.identity_of(store, issuer)
        if vault is not None and who.record.vault != vault:
            raise ConfigError(
                f"the key of {who.record.name} is in the vault {who.record.vault}, not in {vault}"
            )
        about = _subject(subject)
        about = known_here(store).get(about) or about if isinstance(about, bytes) else about
        now = Clock(floor=store.time_floor()).now()
    made = issue_offline(
        who, local.home(), about, given, now=now, lifetime=max(ttl // 1000, 1), ask=local.ask
    )
    text = made.encoded.hex() if encoding == "hex" else _block(made)
    return Result(text=text, machine=text, json=fleetwork.credential_json(made))


def _subject(text: str) -> "history.Identifier | history.ChangeHistory":
    from edge.identity.history import ChangeHistory, Identifier  # noqa: PLC0415

    if text.startswith("I"):
        return Identifier.parse(text)
    try:
        found = ChangeHistory.decode(bytes.fromhex(text))
        found.verify()
    except (ValueError, EdgeError):
        raise ConfigError(
            "--for is an identifier, or a change history in hexadecimal",
            hint="give what `ockam-edge identity show` prints there",
        ) from None
    return found


@credential.command("store")
@issuer_option
@click.option("--scope", required=True, metavar="TEXT", help="project-member-ID for a project.")
@hex_option
@path_option
@at_option()
def store_(issuer: str, scope: str, text: str | None, path: str | None, at: str | None) -> Result:
    """Put a credential where a node finds its own; it presents it at once."""
    from edge.node.clock import Clock  # noqa: PLC0415
    from edge.node.credentials import keep  # noqa: PLC0415

    given = _given(text, path)
    if str(given.issuer) != issuer:
        raise ConfigError(f"the credential is by {given.issuer}, not by {issuer}")
    node = client.node_name(at)
    with local.store() as store:
        now = Clock(floor=store.time_floor()).now()
        keep(store, store.node(node), given, scope, now)
    if local.home().running(node) is not None:
        used = client.connect(node).post("/credential", {})
        if not used:
            note(f"node {node} does not present it: it has another authority or scope")
    encoded = given.encoded.hex()
    return Result(
        text=done(f"node {node} has a credential by {issuer} for {scope}"),
        machine=encoded,
        json={"issuer": issuer, "credential": encoded},
    )


@credential.command()
@issuer_option
@hex_option
@path_option
def verify(issuer: str, text: str | None, path: str | None) -> Result:
    """Does a credential hold now, by an issuer that is known here?"""
    from edge.identity.history import Identifier  # noqa: PLC0415
    from edge.node.clock import Clock  # noqa: PLC0415
    from edge.node.credentials import check  # noqa: PLC0415

    with local.store() as store:
        now = Clock(floor=store.time_floor()).now()
        try:
            found = _given(text, path)
            check(store, found, Identifier.parse(issuer), now)
        except EdgeError as error:
            if isinstance(error, ConfigError):
                raise
            note(f"it does not hold: {error}")
            return Result(
                text=f"  ✗ the credential does not hold: {error}",
                machine="false",
                json={"is_valid": False},
            )
    return Result(
        text=done(f"the credential holds:\n{_block(found)}"),
        machine="true",
        json={"is_valid": True},
    )


@credential.command("list")
@at_option()
@click.option("--subject", type=WHO, help="Only of this one.")
@click.option("--issuer", type=WHO, help="Only by this one.")
def list_(at: str | None, subject: str | None, issuer: str | None) -> Result:
    """The credentials that nodes of this home have of their own."""
    with local.store() as store:
        items = _cached(store, at, subject, issuer)
    return listing(items, _line, "there is no credential")


def _cached(
    store: "Store", at: str | None, subject: str | None, issuer: str | None
) -> list[dict[str, Any]]:
    from edge.identity.credential import Credential  # noqa: PLC0415
    from edge.node.clock import Clock  # noqa: PLC0415

    now = Clock(floor=store.time_floor()).now()
    if at is not None:
        subject = subject or store.identity(store.node(at).identity).identifier
    return [
        {
            "credential": fleetwork.credential_json(found),
            "scope": record.scope,
            "is_verified": _holds(store, found, now),
        }
        for record in store.credentials()
        if subject in (None, record.subject) and issuer in (None, record.issuer)
        for found in [Credential.decode(record.credential)]
    ]


def _holds(store: "Store", found: "Credential", now: int) -> bool:
    from edge.node.credentials import check  # noqa: PLC0415

    try:
        check(store, found, found.issuer, now)
    except EdgeError:
        return False
    return True


def _given(text: str | None, path: str | None) -> "Credential":
    from edge.identity.credential import Credential  # noqa: PLC0415

    if (text is None) == (path is None):
        raise click.UsageError("give --credential HEX or --credential-path FILE")
    if path is not None:
        try:
            with Path(path).open("rb") as file:
                text = file.read(LONGEST + 1).decode("ascii", "replace")
        except OSError as error:
            raise ConfigError(f"cannot read {path[:80]}: {error.strerror}") from None
    assert text is not None
    try:
        return Credential.decode(bytes.fromhex(text.strip()))
    except ValueError:
        raise DecodeError(
            "a credential is hexadecimal", hint="give what credential issue --encoding hex prints"
        ) from None


def _block(found: "Credential") -> str:
    shown = fleetwork.credential_json(found)
    said = ", ".join(f"{name}={value}" for name, value in sorted(shown["attributes"].items()))
    return lines(
        {
            "Subject": shown["subject"],
            "Issuer": shown["issuer"],
            "Says": said,
            "From": _utc(found.created_at),
            "Until": _utc(found.expires_at),
        }
    )


def _line(item: dict[str, Any]) -> str:
    found = item["credential"]
    state = f"until {_utc(found['expires_at'])}" if item["is_verified"] else "does not hold"
    return f"{found['subject']} by {found['issuer']} for {item['scope']}: {state}"


def _utc(moment: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment))
