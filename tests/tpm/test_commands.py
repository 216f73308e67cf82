"""What a TPM answers when something is wrong, played by a transport that answers by rote."""

from __future__ import annotations

import pytest

from tests.tpm import forge
from vault_backends.tpm.commands import Tpm, TpmError
from vault_backends.tpm.credential import make_credential
from vault_backends.tpm.structures import u16, u32
from vault_backends.vault import DeviceGone, Locked, Refused, VaultError


class Rote:
    """Answers with these return codes, then with nothing but success."""

    def __init__(self, *codes: int) -> None:
        self.codes = list(codes)
        self.asked = 0

    def exchange(self, command: bytes) -> bytes:
        assert int.from_bytes(command[2:6], "big") == len(command)
        self.asked += 1
        code = self.codes.pop(0) if self.codes else 0
        return u16(0x8001) + u32(10) + u32(code)


def test_a_busy_tpm_is_asked_again() -> None:
    rote = Rote(0x922, 0x908, 0x90A, 0x18B)
    assert Tpm(rote).read_public(0x81000001) is None
    assert rote.asked == 4


def test_a_tpm_that_stays_busy_is_given_up() -> None:
    rote = Rote(*[0x922] * 9)
    with pytest.raises(TpmError, match="0x922"):
        Tpm(rote).read_public(0x81000001)
    assert rote.asked == 5


@pytest.mark.parametrize(
    ("code", "kind", "why"),
    [
        (0x921, TpmError, "too many wrong"),
        (0x902, TpmError, "no room for another object"),
        (0x903, TpmError, "no room for another session"),
        (0x98E, Locked, "refused an authorization"),
        (0x9A2, Locked, "refused an authorization"),
        (0x101, TpmError, "refused command 0x173: 0x101"),
    ],
)
def test_an_error_of_the_tpm_says_what_to_do(code: int, kind: type[VaultError], why: str) -> None:
    rote = Rote(code)
    with pytest.raises(kind, match=why) as caught:
        Tpm(rote).read_public(0x81000001)
    assert rote.asked == 1  # a refused authorization above all is not tried again
    assert caught.value.hint or code == 0x101


def test_nothing_is_where_nothing_is() -> None:
    assert Tpm(Rote(0x18B)).nv_read(0x1C00002) is None
    assert Tpm(Rote(0x910)).read_public(0x81010001) is None


def test_a_blob_of_another_tpm_is_refused() -> None:
    with pytest.raises(Refused, match="does not know the keys"), _loaded(Rote(0x1DF)):
        pass


def _loaded(rote: Rote):  # type: ignore[no-untyped-def]
    return Tpm(rote).loaded(0x81000001, b"public", b"private", b"")


def test_a_device_that_goes_away_inside_is_the_error_that_is_seen() -> None:
    """What it held went with it: flushing must not hide the first error."""

    class Gone(Rote):
        def exchange(self, command: bytes) -> bytes:
            if command[6:10] == u32(0x165):
                raise DeviceGone("gone")
            return u16(0x8002) + u32(18) + u32(0) + u32(0x80000000) + u32(0)

    with pytest.raises(Refused, match="inside"), _loaded(Gone()):
        raise Refused("inside")


@pytest.mark.parametrize("secret", [b"", b"x" * 33])
def test_a_secret_must_fit_its_challenge(secret: bytes) -> None:
    with pytest.raises(Refused, match="1 to 32 bytes"):
        make_credential(forge.EK, forge.AK.name, secret)


def test_a_key_that_stores_nothing_cannot_be_challenged() -> None:
    with pytest.raises(Refused, match="no storage key"):
        make_credential(forge.AK, forge.AK.name, b"secret")
