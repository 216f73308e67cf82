"""`hsm test` and `hsm probe`: is this token fit, and what is it like."""

from typing import TYPE_CHECKING, Any

import click

from edge.cli import local
from edge.cli.hsm import pin_option, token_argument
from edge.cli.main import Command
from edge.cli.output import Result, emit

if TYPE_CHECKING:
    from vault_backends.pkcs11.checkup import Finding

_MARKS = {"ok": "✔", "warning": "!", "fail": "✘"}


@click.command(cls=Command)
@token_argument
@click.option("--count", type=click.IntRange(1, 10_000), default=20, help="Signatures per key.")
@pin_option
@click.pass_context
def test(context: click.Context, token: str | None, count: int, pin_source: str | None) -> None:
    """Try a token: PIN flags, sessions, random, every key, sealing. Exit code 1 if something fails."""
    from edge.cli.token import wanted  # noqa: PLC0415
    from vault_backends.pkcs11.checkup import FAIL, checkup  # noqa: PLC0415
    from vault_backends.pkcs11.vault import Pkcs11Vault  # noqa: PLC0415

    vault = Pkcs11Vault(wanted(token, pin_source), local.ask, local.home().root)
    try:
        found = list(checkup(vault, count=count))
    finally:
        vault.close()
    emit(Result(text="\n".join(map(_line, found)), json=[_json(one) for one in found]))
    if any(one.result == FAIL for one in found):
        context.exit(1)


def _line(found: "Finding") -> str:
    text = f"  {_MARKS[found.result]} {found.check}: {found.said}"
    return text + (f"\n      {found.hint}" if found.hint else "")


def _json(found: "Finding") -> dict[str, Any]:
    from dataclasses import asdict  # noqa: PLC0415

    return asdict(found)
