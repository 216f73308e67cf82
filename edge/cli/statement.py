"""`identity attest` and `identity verify-attestation`: what an identity says of its own key."""

import sys
from typing import Any

import click

from edge.cli import local
from edge.cli.arguments import Name
from edge.cli.main import Command
from edge.cli.output import Result, done
from edge.errors import ConfigError, DecodeError, TrustError

LONGEST = 131_072
"""Characters of a statement in hexadecimal."""


class Hex(click.ParamType[Any]):
    name = "hex"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return bytes.fromhex(value) if isinstance(value, str) else value
        except ValueError:
            self.fail(f"{value[:80]!r} is not hexadecimal", param, ctx)


NONCE = click.option(
    "--nonce", type=Hex(), required=True, help="8 to 64 bytes, chosen by the one who asks."
)


@click.command(cls=Command)
@click.argument("name", type=Name("identity"), required=False)
@NONCE
def attest(name: str | None, nonce: bytes) -> Result:
    """Say where the key of an identity is and how it is held, signed by that key. For evidence
    signed by a TPM itself, see `ockam-edge hsm attest`."""
    from edge.node.clock import Clock  # noqa: PLC0415
    from edge.node.identities import attest_key, load  # noqa: PLC0415

    with local.store() as store:
        now = Clock(floor=store.time_floor()).now()
        loaded = load(store, name)
    made = attest_key(loaded, local.home(), nonce=nonce, now=now, ask=local.ask)
    text = made.encoded.hex()
    json = {
        "identifier": str(loaded.history.identifier), "statement": text,
        "description": made.description,
    }  # fmt: skip
    return Result(text=text, machine=text, json=json)


@click.command("verify-attestation", cls=Command)
@click.argument("statement", metavar="HEX|FILE|-")
@NONCE
@click.option("--identifier", metavar="I…", help="Whose it must be.")
def verify_attestation(statement: str, nonce: bytes, identifier: str | None) -> Result:
    """Check a statement, without asking anybody, and show what it says."""
    from edge.identity.history import Identifier  # noqa: PLC0415
    from edge.identity.statement import KeyStatement  # noqa: PLC0415

    read = KeyStatement.decode(_read(statement))
    read.verify(nonce)
    found = read.history.identifier
    if identifier is not None and found != Identifier.parse(identifier):
        raise TrustError(f"the statement is of {found}", hint=f"{identifier} was to make it")
    said = read.description
    lines = [done(f"{found} made this with its key of change {len(read.history.changes) - 1}")]
    lines += [f"    {key}: {value!r}" for key, value in said.items()]
    lines.append(
        "    This is the identity's word, and no proof of hardware; a TPM's is: hsm attest"
    )
    json = {"identifier": str(found), "made_at": read.made_at, "description": said}
    return Result(text="\n".join(lines), machine=str(found), json=json)


def _read(statement: str) -> bytes:
    """Hexadecimal as it is, in a file, or from standard input."""
    text = statement
    if statement == "-":
        text = sys.stdin.read(LONGEST + 1)
    elif not _is_hex(statement):
        try:
            with open(statement, encoding="ascii", errors="replace") as file:
                text = file.read(LONGEST + 1)
        except OSError as error:
            raise ConfigError(f"cannot read {statement[:80]}: {error.strerror}") from None
    if len(text) > LONGEST or not _is_hex(text):
        raise DecodeError("a statement is hexadecimal", hint="give what identity attest prints")
    return bytes.fromhex(text)


def _is_hex(text: str) -> bool:
    try:
        return bool(bytes.fromhex(text))
    except ValueError:
        return False
