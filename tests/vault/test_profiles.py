"""Rows of the table of tokens."""

import pytest

pkcs11 = pytest.importorskip("pkcs11")

from pkcs11 import Attribute  # noqa: E402

from vault_backends.pkcs11 import profiles  # noqa: E402
from vault_backends.pkcs11 import token as token_file  # noqa: E402
from vault_backends.pkcs11 import vault as vault_file  # noqa: E402
from vault_backends.vault import (  # noqa: E402
    Kind,
    Misconfigured,
    Unsupported,
)


def test_rows() -> None:
    assert profiles.profile_for("SoftHSM").name == "softhsm"
    assert profiles.profile_for("tpm2-software.github.io").name == "tpm2-pkcs11"
    assert profiles.profile_for("Yubico (www.yubico.com)").id_length == 2
    assert profiles.profile_for("Mozilla Foundation").kinds == {Kind.P256}
    assert profiles.profile_for("Somebody") is profiles.GENERIC


def test_two_families_of_one_maker_are_told_apart() -> None:
    maker = "Yubico (www.yubico.com)"
    assert profiles.profile_for(maker, "YubiHSM PKCS#11 Library").name == "yubihsm"
    assert profiles.profile_for(maker, "PKCS#11 PIV Library (SP-800-73)").name == "ykcs11"


def test_rows_say_where_modules_are() -> None:
    for row in profiles.ROWS:
        assert row.modules
        assert all(path.startswith("/usr/lib") for path in row.modules)
        assert row.tried or row.name in {"opensc", "ykcs11"}


def test_rows_name_real_attributes() -> None:
    for row in (*profiles.ROWS, profiles.GENERIC):
        for name in row.omit_public + row.omit_private:
            assert Attribute[name]


@pytest.mark.parametrize("row", [row.name for row in profiles.ROWS])
def test_ways_of_other_rows_work_here_too(soft_token, opened, monkeypatch, row) -> None:
    profile = next(one for one in profiles.ROWS if one.name == row)
    monkeypatch.setattr(token_file, "profile_for", lambda *said: profile)
    vault = opened(soft_token.uri())
    assert vault.kinds == profile.kinds
    for kind in vault.kinds:
        key = vault.generate(kind, f"key-{kind}")
        vault.sign(key, b"x")
        assert len(vault.describe(key)["id"]) == 2 * profile.id_length
    for kind in set(Kind) - vault.kinds:
        with pytest.raises(Unsupported):
            vault.generate(kind, "no")
    with pytest.raises(Misconfigured):
        vault.generate(Kind.P256, "x" * (profile.longest_label + 1))


def test_second_name_of_the_curve_is_tried(soft_token, opened, monkeypatch) -> None:
    profile = profiles.Profile(
        name="odd", makers=(), ed25519_curves=(b"\x13\x03odd", profiles.ED25519_OID)
    )
    monkeypatch.setattr(token_file, "profile_for", lambda *said: profile)
    monkeypatch.setattr(vault_file, "_is_about_curve", lambda error: True)
    vault = opened(soft_token.uri())
    vault.sign(vault.generate(Kind.ED25519, "a"), b"x")


def test_curve_errors() -> None:
    assert vault_file._is_about_curve(pkcs11.PKCS11Error("Unmapped error code 0x140"))
    assert vault_file._is_about_curve(pkcs11.DomainParamsInvalid())
    assert not vault_file._is_about_curve(pkcs11.GeneralError())
