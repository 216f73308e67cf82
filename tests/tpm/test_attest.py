"""A TPM (swtpm) that is asked for evidence and answers challenges, straight and through a manager."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.tokens.processes import run
from tests.tpm import forge
from tests.tpm.conftest import Machine
from vault_backends.tpm import attest, evidence
from vault_backends.tpm.attest import Subject
from vault_backends.tpm.bundle import Bundle, Challenge
from vault_backends.tpm.chain import authorities
from vault_backends.tpm.commands import Tpm
from vault_backends.tpm.evidence import Evidence
from vault_backends.tpm.store import StoredKey, find_key
from vault_backends.tpm.structures import SHA1, SHA256, Reader, Selection, sized, u16, u32
from vault_backends.tpm.tcti import Tcti
from vault_backends.vault import DeviceGone, Locked, NotFound, Refused, VaultError

NONCE = b"n" * 32
CHOSEN = [Selection(SHA256, (0, 1, 7, 16))]
TRANSIENT, SESSIONS = 0x80000000, 0x02000000


class Recorded:
    """A way to the TPM that keeps what went over it, and may step in."""

    def __init__(self, tcti: str) -> None:
        self.way = Tcti(tcti)
        self.commands: list[bytes] = []
        self.answers: list[bytes] = []
        self.before: Callable[[bytes], None] = lambda command: None

    def exchange(self, command: bytes) -> bytes:
        self.before(command)
        self.commands.append(command)
        self.answers.append(self.way.exchange(command))
        return self.answers[-1]


@pytest.fixture
def recorded(machine: Machine) -> Iterator[Recorded]:
    one = Recorded(machine.tcti)
    yield one
    one.way.close()


@pytest.fixture
def tpm(recorded: Recorded) -> Iterator[Tpm]:
    """The TPM of the machine; a test leaves nothing in it."""
    device = Tpm(recorded)
    yield device
    assert device.handles(TRANSIENT, TRANSIENT + 0xFFFF) == []
    assert device.handles(SESSIONS, SESSIONS + 0xFFFF) == []


@pytest.fixture(scope="module")
def point(machine: Machine) -> bytes:
    """The public key of the identity."""
    import json  # noqa: PLC0415

    said = machine.edge("identity", "show", "gateway", "--full", "--output", "json").stdout
    return bytes.fromhex(json.loads(said)["changes"][-1]["primary_public_key"].split(": ")[1])


@pytest.fixture
def stored(machine: Machine, point: bytes) -> StoredKey:
    return find_key(machine.token.store, machine.token.label, "gateway", point)


def verified(machine: Machine, data: bytes) -> Evidence:
    ca = authorities(machine.ca.read_bytes())
    return evidence.verify(data, ca, NONCE, now=datetime.now(UTC))


@pytest.mark.parametrize("kind", ["rsa", "ecc"])
def test_evidence_is_good_and_its_challenge_is_answered(
    machine: Machine, tpm: Tpm, point: bytes, stored: StoredKey, kind: str
) -> None:
    subject = Subject(point)
    data = attest.attest(tpm, subject, stored, machine.token.pin, NONCE, CHOSEN, kind=kind)
    found = verified(machine, data)
    assert found.public_key == point
    assert found.ek.words().count("restricted") == 1
    assert set(found.pcrs["sha256"]) == {0, 1, 7, 16}
    challenge, kept = evidence.challenge(found)
    answer = attest.answer(tpm, challenge)
    assert evidence.settled(found, kept, answer)


def test_a_certificate_from_elsewhere_must_be_of_this_tpm(
    machine: Machine, other_machine: Machine, tpm: Tpm, point: bytes, stored: StoredKey
) -> None:
    given = (Subject(point), stored, machine.token.pin, NONCE, CHOSEN)
    mine = attest.trimmed(tpm.nv_read(0x1C00002) or b"")
    verified(machine, attest.attest(tpm, *given, certificates=mine))
    with attest.opened(other_machine.tcti) as other:
        foreign = attest.trimmed(other.nv_read(0x1C00002) or b"")
    for wrong in (foreign, [forge.der(forge.leaf())]):
        with pytest.raises(NotFound, match="does not have the endorsement key"):
            attest.attest(tpm, *given, certificates=wrong)


def test_the_attestation_key_is_the_same_each_time(
    machine: Machine, tpm: Tpm, point: bytes, stored: StoredKey
) -> None:
    given = (Subject(point), stored, machine.token.pin, NONCE, CHOSEN)
    first, second = (Bundle.decode(attest.attest(tpm, *given)) for _ in range(2))
    assert first.ak_public == second.ak_public
    assert first.quote != second.quote


def test_an_endorsement_key_is_made_again_where_none_is_kept(machine: Machine, tpm: Tpm) -> None:
    """Both kinds, from the profile's templates, give the keys of the certificates."""
    for place in attest._PLACES:
        if (found := tpm.nv_read(place.certificate)) is None:
            continue
        certified = attest.certificate(attest.trimmed(found)[0]).public_key()
        with tpm.primary(attest.ENDORSEMENT, place.template.encode()) as made:
            assert made.public.public_key() == certified


def test_the_policies_are_those_of_the_profile() -> None:
    """PolicyA of SHA-256, and PolicyB of each hash: EK Credential Profile 2.5, B.6."""
    assert attest._policy_a(SHA256).hex() == (
        "837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa"
    )
    found = {algorithm: attest._policy_b(algorithm).hex() for algorithm in attest._POLICY_C}
    assert found == {
        0x0B: "ca3d0a99a2b93906f7a3342414efcfb3a385d44cd1fd459089d19b5071c0b7a0",
        0x0C: "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419ca"
        "cb47ba09699646150f9fc000f3f80e12",
        0x0D: "b8221ca69e8550a4914de3faa6a18c072cc01208073a928d5d66d59ef79e49a4"
        "29c41a6b269571d57edb25fbdb1838425608b413cd616a5f6db5b6071af99bea",
    }


# --- secrets


def test_no_secret_goes_over_the_way_to_the_tpm(
    machine: Machine, recorded: Recorded, tpm: Tpm, point: bytes, stored: StoredKey
) -> None:
    pin = machine.token.pin
    auth = stored.authorization(tpm, pin)
    attest.attest(tpm, Subject(point), stored, pin, NONCE, CHOSEN)
    import hashlib  # noqa: PLC0415

    sealed = hashlib.sha256(pin.encode() + stored.salt.encode()).hexdigest()[:32].encode()
    passed = b"\0".join(recorded.commands + recorded.answers)
    assert len(auth) == 32
    for secret in (pin.encode(), sealed, auth):
        assert secret not in passed
    # What the TPM unseals is a key in hex: 64 digits in a row are nowhere in the answers.
    assert not any(
        one[at : at + 64].isalnum() and one[at : at + 64].isascii()
        for one in recorded.answers
        for at in range(len(one) - 63)
    )


def test_a_wrong_pin_is_refused_and_leaves_nothing(
    machine: Machine, tpm: Tpm, point: bytes, stored: StoredKey
) -> None:
    with pytest.raises(Locked, match="refused an authorization"):
        attest.attest(tpm, Subject(point), stored, machine.token.wrong_pin(), NONCE, CHOSEN)


def test_an_answer_that_was_changed_on_its_way_is_refused(
    machine: Machine, recorded: Recorded, tpm: Tpm, stored: StoredKey
) -> None:
    """The unsealed key: a bit of the ciphertext, which the session's HMAC covers."""
    way = recorded.way

    class Changing:
        def exchange(self, command: bytes) -> bytes:
            answer = bytearray(way.exchange(command))
            if command[6:10] == u32(0x15E):
                answer[20] ^= 1
            return bytes(answer)

    with pytest.raises(Refused, match="not the TPM's"):
        stored.authorization(Tpm(Changing()), machine.token.pin)


# --- PCRs


def extend(tpm: Recorded, index: int) -> None:
    """TPM2_PCR_Extend with an empty password."""
    auth = u32(9) + u32(0x40000009) + bytes(5)
    body = u32(index) + auth + u32(1) + u16(SHA256) + os.urandom(32)
    tpm.way.exchange(u16(0x8002) + u32(10 + len(body)) + u32(0x182) + body)


def test_a_pcr_that_changes_between_reading_and_quoting_is_read_again(
    machine: Machine, recorded: Recorded, tpm: Tpm, point: bytes, stored: StoredKey
) -> None:
    quotes = []

    def before(command: bytes) -> None:
        if command[6:10] == u32(0x158):
            quotes.append(command)
            if len(quotes) <= 2:
                extend(recorded, 16)

    recorded.before = before
    data = attest.attest(tpm, Subject(point), stored, machine.token.pin, NONCE, CHOSEN)
    assert len(quotes) == 3
    verified(machine, data)


def test_pcrs_that_never_stand_still_are_given_up(
    machine: Machine, recorded: Recorded, tpm: Tpm, point: bytes, stored: StoredKey
) -> None:
    def before(command: bytes) -> None:
        if command[6:10] == u32(0x158):
            extend(recorded, 16)

    recorded.before = before
    with pytest.raises(Refused, match="change faster"):
        attest.attest(tpm, Subject(point), stored, machine.token.pin, NONCE, CHOSEN)


def test_all_pcrs_of_two_banks(machine: Machine, tpm: Tpm, point: bytes, stored: StoredKey) -> None:
    chosen = [Selection(SHA1, (0, 23)), Selection(SHA256, tuple(range(24)))]
    data = attest.attest(tpm, Subject(point), stored, machine.token.pin, NONCE, chosen)
    found = verified(machine, data)
    assert {bank: len(values) for bank, values in found.pcrs.items()} == {"sha1": 2, "sha256": 24}


def test_a_pcr_that_is_not_kept_is_said(
    machine: Machine, tpm: Tpm, point: bytes, stored: StoredKey
) -> None:
    with pytest.raises(VaultError, match=r"PCR 31|refused command 0x17e"):
        attest.attest(
            tpm, Subject(point), stored, machine.token.pin, NONCE, [Selection(SHA256, (31,))]
        )


# --- other TPMs


def test_another_tpm_cannot_answer(
    machine: Machine, other_machine: Machine, tpm: Tpm, point: bytes, stored: StoredKey
) -> None:
    """Nor use the store; and what it says is not by this TPM's maker."""
    data = attest.attest(tpm, Subject(point), stored, machine.token.pin, NONCE, CHOSEN)
    found = verified(machine, data)
    challenge, _ = evidence.challenge(found)
    with attest.opened(other_machine.tcti) as other:
        with pytest.raises((Refused, NotFound)):
            attest.answer(other, challenge)
        with pytest.raises(VaultError, match=r"does not know the keys|refused"):
            attest.attest(other, Subject(point), stored, machine.token.pin, NONCE, CHOSEN)
    with pytest.raises(Refused, match="ek-chain"):
        verified(other_machine, data)


def test_a_challenge_for_a_key_outside_the_tpm_is_not_answered(
    machine: Machine, tpm: Tpm, point: bytes, stored: StoredKey
) -> None:
    """A credential that names another key than the AK: the TPM refuses, even asked directly."""
    data = attest.attest(tpm, Subject(point), stored, machine.token.pin, NONCE, CHOSEN)
    found = verified(machine, data)
    stranger = replace(found, ak=found.ak._replace(attributes=found.ak.attributes ^ 0x400))
    challenge, _ = evidence.challenge(stranger)
    with pytest.raises(Refused, match="another attestation key"):
        attest.answer(tpm, challenge)
    lying = replace(Challenge.decode(challenge), ak_name=found.ak.name).encode()
    with pytest.raises(Refused, match="cannot read the challenge"):
        attest.answer(tpm, lying)


@pytest.mark.parametrize("kind", ["rsa", "ecc"])
def test_a_credential_of_tpm2_tools_is_answered(
    machine: Machine, tpm: Tpm, point: bytes, stored: StoredKey, kind: str, tmp_path: Path
) -> None:
    subject = Subject(point)
    data = attest.attest(tpm, subject, stored, machine.token.pin, NONCE, CHOSEN, kind=kind)
    found = verified(machine, data)
    public, secret, out = tmp_path / "ek.pub", tmp_path / "secret", tmp_path / "credential"
    public.write_bytes(sized(found.ek.encode()))
    secret.write_bytes(b"the secret of another program...")
    command = ["tpm2_makecredential", "-T", "none", "-u", public, "-s", secret]
    run([*command, "-n", found.ak.name.hex(), "-o", out])
    reader = Reader(out.read_bytes())
    assert reader.take(8).hex() == "badcc0de00000001"
    challenge = Challenge(found.ek.encode(), found.ak.name, reader.sized(), reader.sized())
    assert secret.read_bytes().hex() in attest.answer(tpm, challenge.encode()).decode()


# --- trouble


def test_no_tpm_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(DeviceGone, match="no TPM answers") as caught:
        Tcti(f"swtpm:path={tmp_path}/nothing")
    assert "--tcti" in caught.value.hint


def test_a_full_tpm_is_an_error_with_a_hint(
    machine: Machine, tpm: Tpm, point: bytes, stored: StoredKey
) -> None:
    template = attest.AK_TEMPLATE.encode()
    with (
        tpm.primary(attest.ENDORSEMENT, template),
        tpm.primary(attest.ENDORSEMENT, template),
        pytest.raises(VaultError, match="no room") as caught,
    ):
        attest.attest(tpm, Subject(point), stored, machine.token.pin, NONCE, CHOSEN)
    assert "tpm2_flushcontext" in caught.value.hint


def test_an_answer_cut_short_is_the_devices_fault() -> None:
    class Short:
        def exchange(self, command: bytes) -> bytes:
            return b"\x80\x01\x00\x00\x00\x0c\0\0\0\0"

    with pytest.raises(DeviceGone, match="cut short"):
        Tpm(Short()).read_public(0x81000001)


# --- the store


def test_a_key_is_found_by_its_point_not_only_by_its_name(machine: Machine, point: bytes) -> None:
    for label, public in (("other", point), ("gateway", b"\x04" + bytes(64))):
        with pytest.raises(NotFound, match="has no key"):
            find_key(machine.token.store, machine.token.label, label, public)
    with pytest.raises(NotFound, match="has no key"):
        find_key(machine.token.store, "another token", "gateway", point)
    assert find_key(machine.token.store, None, "gateway", point)


def test_what_is_no_store_is_said(tmp_path: Path, point: bytes) -> None:
    (tmp_path / "tpm2_pkcs11.sqlite3").write_bytes(
        b"no database, but long enough to be read as one"
    )
    with pytest.raises(VaultError, match="no store of tpm2-pkcs11"):
        find_key(tmp_path, None, "gateway", point)


# --- behind the resource manager


def test_behind_the_resource_manager(managed_machine: Machine, tmp_path: Path) -> None:
    out = tmp_path / "evidence"
    nonce = ("--nonce", NONCE.hex())
    managed_machine.edge("hsm", "attest", "gateway", *nonce, "--out", out)
    ca = ("--ca", managed_machine.ca)
    managed_machine.edge("hsm", "verify-attestation", out, *ca, *nonce, "--unchallenged")
    for what in ("handles-transient", "handles-loaded-session"):
        command = ["tpm2_getcap", what]
        left = subprocess.run(
            command,
            env={**os.environ, **managed_machine.token.variables},
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        assert left.stdout == ""
