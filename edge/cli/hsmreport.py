"""`hsm test` and `hsm probe`: is this token fit, and what is it like."""

from typing import TYPE_CHECKING, Any

import click

from edge.cli import local
from edge.cli.hsm import pin_option, token_argument
from edge.cli.main import Command
from edge.cli.output import Result, confirm, emit, note
from edge.cli.resource import yes_option

if TYPE_CHECKING:
    from vault_backends.pkcs11.checkup import Finding
    from vault_backends.pkcs11.learn import Learnt

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


@click.command(cls=Command)
@token_argument
@pin_option
@yes_option
def probe(token: str | None, pin_source: str | None, yes: bool) -> Result:
    """Find out what a token can do, as a row of profiles.py. Makes keys, and destroys them again."""
    from edge.cli.token import wanted  # noqa: PLC0415
    from vault_backends.pkcs11.learn import PREFIX, learn  # noqa: PLC0415

    uri = wanted(token, pin_source)
    confirm(f"Make throwaway keys {PREFIX}-… in the token, and destroy them again?", yes=yes)
    return _learnt(learn(uri, local.ask, local.home().root, lambda text: note(f"trying {text}")))


def _learnt(found: "Learnt") -> Result:
    from vault_backends.pkcs11.learn import NOT_TRIED, row_text  # noqa: PLC0415

    row, differences = row_text(found.found), found.differences()
    compared = [
        f"  ! {name}: the row {found.profile.name!r} says {before}, found {after}"
        for name, (before, after) in differences.items()
    ] or [f"  ✔ all as the row {found.profile.name!r} says"]
    facts = [f"    {name}: {value}" for name, value in found.facts.items() if name != "mechanisms"]
    troubles = [f"  ✘ {text}" for text in found.troubles]
    text = "\n".join(
        [row, *compared, *facts, *troubles, "  not tried: " + ", ".join(NOT_TRIED + found.skipped)]
    )
    shown = {
        "profile": found.profile.name,
        "row": row,
        "found": {name: _plain(value) for name, value in found.row.items()},
        "differences": {name: [_plain(one) for one in pair] for name, pair in differences.items()},
        "facts": found.facts,
        "troubles": found.troubles,
        "not_tried": [*NOT_TRIED, *found.skipped],
    }
    return Result(text=text, json=shown)


def _plain(value: Any) -> Any:
    if isinstance(value, frozenset | tuple):
        plain = [_plain(one) for one in value]
        return sorted(plain) if isinstance(value, frozenset) else plain
    return value.hex() if isinstance(value, bytes) else value
