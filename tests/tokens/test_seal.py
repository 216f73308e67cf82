"""Secrets sealed by the token, and a copied disk without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tokens.cells import Cell, scenario
from tests.tokens.conftest import Hold
from tests.tokens.environments import Environment
from tests.tokens.holder import Holder
from vault_backends.vault import NotFound, Unsupported, VaultError

SECRET = b"a credential, or a ticket" * 20


def _prepared(hold: Hold, cell: Cell) -> Holder:
    vault = hold()
    try:
        vault.ask("make seal key")
    except Unsupported as error:
        pytest.skip(f"cannot: {error}")
    return vault


@scenario("seals and unseals, also in another process", quick=("softhsm-ed25519",))
def test_seal(hold: Hold, cell: Cell, token: Environment, figure: Callable[..., None]) -> None:
    with _prepared(hold, cell) as vault:
        blob = vault.ask("seal", data=SECRET.hex(), aad="identity")
        assert SECRET not in bytes.fromhex(blob)
        assert bytes.fromhex(vault.ask("unseal", data=blob, aad="identity")) == SECRET
    token.clean()
    with hold() as other:
        assert bytes.fromhex(other.ask("unseal", data=blob, aad="identity")) == SECRET


@scenario("sealed for something else: refused")
def test_wrong_aad(hold: Hold, cell: Cell) -> None:
    with _prepared(hold, cell) as vault:
        blob = vault.ask("seal", data=SECRET.hex(), aad="identity")
        with pytest.raises(VaultError):
            vault.ask("unseal", data=blob, aad="other")
        for place in (0, len(blob) // 4 * 2, len(blob) - 2):
            bad = (
                blob[:place]
                + format(int(blob[place : place + 2], 16) ^ 1, "02x")
                + blob[place + 2 :]
            )
            with pytest.raises(VaultError):
                vault.ask("unseal", data=bad, aad="identity")
        assert bytes.fromhex(vault.ask("unseal", data=blob, aad="identity")) == SECRET


@scenario(
    "a copied disk does not open with another token of the same kind and PIN",
    quick=("softhsm-ed25519",),
)
def test_copied_disk(hold: Hold, cell: Cell, token: Environment, tmp_path: Path) -> None:
    with _prepared(hold, cell) as vault:
        blob = vault.ask("seal", data=SECRET.hex(), aad="identity")
    with (
        cell.environment(tmp_path / "thief") as thief,
        Holder(thief.uri(), thief.variables, prefix=thief.prefix) as vault,
    ):
        with pytest.raises(NotFound):
            vault.ask("unseal", data=blob, aad="identity")
        vault.ask("make seal key")
        with pytest.raises(VaultError):
            vault.ask("unseal", data=blob, aad="identity")
