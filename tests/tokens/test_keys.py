"""A key's life: made in the token, used, checked by others, gone; and the conformance suite."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tokens.cells import Cell, scenario
from tests.tokens.checks import check, openssl_verifies
from tests.tokens.conftest import Hold
from tests.tokens.environments import Environment
from tests.tokens.processes import run
from vault_backends.vault import Exists, Key, Kind, Misconfigured, NotFound, Refused, VaultError

SUITE = "tests/vault/test_conformance.py"


@pytest.mark.timeout(300)
@scenario("the conformance suite of vaults")
def test_conformance(token: Environment, kind: Kind, figure: Callable[..., None]) -> None:
    pytest_on = [*token.prefix, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    pytest_on += ["--vault-uri", token.uri(), "-k", f"given0 and {kind}"]
    for part in _names(pytest_on) if token.crowded else [SUITE]:
        done = run([*pytest_on, part], token.variables, check=False, seconds=280)
        token.clean()
        assert done.returncode == 0, done.stdout[-4000:]
        passed = re.search(r"(\d+) passed", done.stdout)
        if passed is not None:
            figure("tests", int(passed[1]))


def _names(pytest_on: list[str]) -> list[str]:
    """The tests of the suite, one by one."""
    listed = run([*pytest_on, "--collect-only", SUITE]).stdout
    names = {line.partition("[")[0] for line in listed.splitlines() if "::" in line}
    assert len(names) >= 15, listed
    return sorted(names)


@scenario("signs; cryptography and openssl verify", quick=("softhsm", "swtpm", "nss"))
def test_sign(hold: Hold, kind: Kind, label: str, tmp_path: Path) -> None:
    with hold() as vault:
        key = vault.generate(kind, label)
        public = vault.public(key)
        for data in (b"", b"x" * 1000):
            signature = vault.sign(key, data)
            check(kind, public, signature, data)
        assert openssl_verifies(tmp_path, kind, public, signature, data)
        assert not openssl_verifies(tmp_path, kind, public, signature, b"other")
        vault.delete(key)


@scenario(
    "pkcs11-tool sees the key and signs with it",
    cannot={"nss": "pkcs11-tool cannot give this module its parameters"},
)
def test_the_same_key_for_others(
    token: Environment, hold: Hold, kind: Kind, label: str, tmp_path: Path
) -> None:
    with hold() as vault:
        key = vault.generate(kind, label)
        public = vault.public(key)
    token.clean()
    assert label in token.tool("--list-objects", "--type", "privkey")
    if kind is Kind.P256:
        from hashlib import sha256  # noqa: PLC0415

        (tmp_path / "in").write_bytes(sha256(b"data").digest())
        files = ["--input-file", f"{tmp_path}/in", "--output-file", f"{tmp_path}/out"]
        token.clean()
        token.tool("--sign", "--mechanism", "ECDSA", "--label", label, *files)
        check(kind, public, (tmp_path / "out").read_bytes(), b"data")
    token.clean()
    with hold() as vault:
        vault.delete(key)


@scenario("the private value cannot be read, and the attributes say so", quick=("softhsm",))
def test_never_leaves(hold: Hold, kind: Kind, label: str) -> None:
    with hold() as vault:
        key = vault.generate(kind, label)
        said = vault.ask("describe", kind=kind, label=label)
        assert (said["extractable"], said["sensitive"]) == (False, True)
        assert said["never_extractable"] is True
        assert vault.ask("read private", kind=kind, label=label) != "READ"
        vault.delete(key)


@scenario("a key that is not the pinned one is refused")
def test_pinned(hold: Hold, kind: Kind, label: str) -> None:
    with hold() as vault:
        key = vault.generate(kind, label)
        wrong = bytes([vault.public(key)[0], *reversed(vault.public(key)[1:])])
    with hold() as vault:
        vault.ask("pin", kind=kind, label=label, data=wrong.hex())
        with pytest.raises(Refused, match="another key"):
            vault.sign(key, b"x")
    with hold() as vault:
        vault.delete(key)


@scenario("a label that is taken makes nothing")
def test_label_taken(hold: Hold, kind: Kind, label: str) -> None:
    with hold() as vault:
        key = vault.generate(kind, label)
        public = vault.public(key)
        with pytest.raises(Exists, match=label):
            vault.generate(kind, label)
        assert (vault.keys().count(key), vault.public(key)) == (1, public)
        vault.delete(key)


@scenario(
    "two keys with one label are refused, with their ids",
    cannot={"nss": "pkcs11-tool cannot give this module its parameters"},
    quick=("softhsm",),
)
def test_duplicate_labels(token: Environment, hold: Hold, kind: Kind, label: str) -> None:
    curve = "EC:edwards25519" if kind is Kind.ED25519 else "EC:prime256v1"
    for key_id in ("0a01", "0a02"):
        named = ("--label", label, "--id", key_id)
        token.tool("--keypairgen", "--key-type", curve, *named, *token.tool_usage)
        token.clean()
    key = Key(kind, label)
    with hold() as vault, pytest.raises(Misconfigured, match=r"0a01.*0a02|0a02.*0a01"):
        vault.sign(key, b"x")
    with hold(token.uri(id="%0a%01").replace("%25", "%")) as vault:
        check(kind, vault.public(key), vault.sign(key, b"x"), b"x")
    for key_id in ("0a01", "0a02"):
        for what in token.parts:
            token.clean()
            token.tool("--delete-object", "--type", what, "--id", key_id)


@scenario("a key made by another process is found")
def test_key_of_another_process(hold: Hold, kind: Kind, label: str) -> None:
    with hold() as first, hold() as second:
        key = first.generate(kind, label)
        public = first.public(key)
        first.sign(key, b"x")
        assert second.public(key) == public
        check(kind, public, second.sign(key, b"y"), b"y")
        second.delete(key)


@scenario(
    "a key deleted behind the back is missed, and nothing takes its place", quick=("softhsm",)
)
def test_deleted_behind_the_back(token: Environment, hold: Hold, kind: Kind, label: str) -> None:
    with hold() as vault:
        key = vault.generate(kind, label)
        vault.sign(key, b"x")
        if token.has_tool:
            for what in token.parts:
                token.tool("--delete-object", "--type", what, "--label", label)
        else:
            with hold() as other:
                other.delete(key)
        if token.keeps_loaded_keys:
            vault.sign(key, b"x")
            vault.ask("reopen")
        with pytest.raises(VaultError) as caught:
            vault.sign(key, b"x")
        if caught.value.retry:  # one answer may be that the device has to be started anew
            with pytest.raises(NotFound):
                vault.sign(key, b"x")
        assert key not in vault.keys()  # noqa: SIM118 - not a map


@scenario("an unknown token is named, and those that are there are listed")
def test_unknown_token(token: Environment, hold: Hold, kind: Kind) -> None:
    with hold(token.uri("token=elsewhere")) as vault:
        with pytest.raises(NotFound, match="elsewhere") as caught:
            vault.ask("keys")
        assert token.label in str(caught.value)


@scenario(
    "several tokens match: all are listed, none is used",
    cannot={"nss": "one token per database"},
    quick=("softhsm",),
)
def test_several_tokens(fresh: Environment, cell: Cell) -> None:
    from tests.tokens.holder import Holder  # noqa: PLC0415

    try:
        fresh.add_token("second")
    except NotImplementedError:
        pytest.skip("cannot: one token per device")
    with Holder(fresh.uri(""), fresh.variables, prefix=fresh.prefix) as vault:
        with pytest.raises(Misconfigured, match="second") as caught:
            vault.ask("keys")
        assert fresh.label in str(caught.value)


@scenario("50 tasks at once", quick=("softhsm",))
def test_many_tasks(hold: Hold, kind: Kind, label: str) -> None:
    with hold() as vault:
        key = vault.generate(kind, label)
        public = vault.public(key)
        signatures = vault.ask("many", kind=kind, label=label, tasks=50)
        for number, signature in enumerate(signatures):
            check(kind, public, bytes.fromhex(signature), str(number).encode())
        vault.delete(key)


@scenario("cancelled tasks disturb nobody")
def test_cancelled(hold: Hold, kind: Kind, label: str) -> None:
    with hold() as vault:
        key = vault.generate(kind, label)
        signature = vault.ask("cancelled", kind=kind, label=label)
        check(kind, vault.public(key), bytes.fromhex(signature), b"after")
        vault.delete(key)


@scenario(
    "a fork in the middle: the child is refused, the parent goes on", quick=("softhsm", "swtpm")
)
def test_fork(hold: Hold, kind: Kind, label: str) -> None:
    with hold() as vault:
        key = vault.generate(kind, label)
        vault.sign(key, b"before")
        assert "fork" in vault.ask("fork", kind=kind, label=label)
        check(kind, vault.public(key), vault.sign(key, b"after"), b"after")
        vault.delete(key)
