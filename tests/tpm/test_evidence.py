"""Verifying evidence without a TPM: what is right is accepted, and each wrong thing has its name."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tpm import forge
from tests.tpm.forge import NONCE, NOW, ROOT, Forge
from vault_backends.tpm import evidence
from vault_backends.tpm.bundle import Bundle
from vault_backends.tpm.evidence import Verdict
from vault_backends.tpm.structures import (
    DECRYPT,
    FIXED_PARENT,
    FIXED_TPM,
    RESTRICTED,
    SENSITIVE_DATA_ORIGIN,
    SHA1,
    SHA384,
    USER_WITH_AUTH,
    Certified,
    Malformed,
    Quoted,
    Selection,
)
from vault_backends.vault import Refused

GOOD = Forge().file()


def examined(data: bytes, **given: object) -> Verdict:
    asked = {"ca": [ROOT], "nonce": NONCE, "now": NOW, **given}
    return evidence.examine(data, **asked)  # type: ignore[arg-type]


def failed(data: bytes, **given: object) -> list[str]:
    verdict = examined(data, **given)
    assert (verdict.evidence is None) == bool(verdict.failed)
    return [check.name for check in verdict.failed]


def test_good_evidence_is_accepted() -> None:
    found = evidence.verify(GOOD, [ROOT], NONCE, now=NOW)
    assert found.public_key == forge.ID.point()
    assert found.clock == (1000, 2, 3, True)
    assert found.pcrs == forge.PCRS


def test_a_refusal_names_what_failed() -> None:
    with pytest.raises(Refused, match="nonce: made for another nonce; certify: made for another"):
        evidence.verify(GOOD, [ROOT], b"x" * 32, now=NOW)


# --- no byte can be changed


@pytest.mark.timeout(240)
def test_no_byte_can_be_changed_added_or_removed() -> None:
    """Every position: one bit flipped, another digit, a byte less, a byte more."""
    assert not failed(GOOD)
    for at in range(len(GOOD)):
        before, byte, after = GOOD[:at], GOOD[at], GOOD[at + 1 :]
        flipped, digit = bytes([byte ^ 1 << at % 8]), b"1" if byte != ord("1") else b"2"
        for put in (flipped, digit, b"", bytes([byte, byte])):
            assert failed(before + put + after), f"position {at}: {put!r}"
    assert failed(GOOD + b"\n")


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_any_value_at_any_position_is_refused(at: int, value: int) -> None:
    wrong = GOOD[:at] + bytes([value]) + GOOD[at + 1 :]
    assert wrong == GOOD or failed(wrong)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_no_two_parts_can_be_exchanged(data: st.DataObject) -> None:
    """Whole values of another good file, made for the same nonce by the same keys."""
    other = json.loads(Forge(pcrs={"sha256": {0: b"\x01" * 32}}, chain=()).file())
    mine = json.loads(GOOD)
    different = sorted(name for name in mine if mine[name] != other[name])
    taken = data.draw(st.sets(st.sampled_from(different), min_size=1, max_size=len(different) - 1))
    mixed = {name: (other if name in taken else mine)[name] for name in mine}
    written = json.dumps(mixed, indent=1, sort_keys=True).encode() + b"\n"
    if mixed not in (mine, other):
        assert failed(written)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(b"\n ", b"\n  ", 1),
        lambda text: text.replace(b'"nonce": "6e', b'"nonce": "6E'),
        lambda text: text.replace(b"{", b'{\n "more": "",', 1),
        lambda text: text.replace(b'"quote"', b'"quote": "", "quote"'),
        lambda text: json.dumps(json.loads(text)).encode(),
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.replace(b'"7"', b'"07"'),
        lambda text: text.replace(b'"7"', b'"32"'),
        lambda text: text.replace(b'"sha256"', b'"sha3"'),
        lambda text: b"[" * 100_000,
        lambda text: b'{"format": ' + b"1" * 10_000 + b"}",
        lambda text: b" " * 300_000,
    ],
)
def test_only_the_canonical_form_is_read(change: object) -> None:
    wrong = change(GOOD)  # type: ignore[operator]
    assert wrong != GOOD
    with pytest.raises(Malformed):
        Bundle.decode(wrong)
    assert failed(wrong) == ["encoding"]


# --- the keys


@pytest.mark.parametrize(
    ("attributes", "word"),
    [
        (forge.ID.attributes & ~FIXED_TPM, "fixedtpm"),
        (forge.ID.attributes & ~FIXED_PARENT, "fixedparent"),
        (forge.ID.attributes & ~SENSITIVE_DATA_ORIGIN, "sensitivedataorigin"),
        (forge.ID.attributes & ~USER_WITH_AUTH, "userwithauth"),
        (forge.ID.attributes | RESTRICTED, "restricted"),
    ],
)
def test_a_key_that_could_leave_is_refused(attributes: int, word: str) -> None:
    verdict = examined(Forge(key=forge.ID._replace(attributes=attributes)).file())
    assert [check.name for check in verdict.failed] == ["key-attributes"]
    assert word in verdict.failed[0].said


@pytest.mark.parametrize(
    "ak",
    [
        forge.AK._replace(attributes=forge.AK.attributes & ~RESTRICTED),
        forge.AK._replace(attributes=forge.AK.attributes & ~FIXED_TPM),
        forge.AK._replace(attributes=forge.AK.attributes & ~FIXED_PARENT),
        forge.AK._replace(attributes=forge.AK.attributes & ~SENSITIVE_DATA_ORIGIN),
        forge.AK._replace(attributes=forge.AK.attributes | DECRYPT),
        forge.AK._replace(signs_with=0),
    ],
)
def test_an_attestation_key_that_signs_anything_is_refused(ak: object) -> None:
    assert failed(Forge(ak=ak).file()) == ["ak-attributes"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "ek",
    [
        forge.area(forge.private(9), forge.EK.attributes, symmetric_bits=128),
        forge.EK._replace(attributes=forge.EK.attributes & ~RESTRICTED),
        forge.EK._replace(attributes=forge.EK.attributes & ~DECRYPT),
        forge.EK._replace(attributes=forge.EK.attributes & ~FIXED_TPM),
        forge.EK._replace(symmetric_bits=0),
        forge.EK._replace(name_algorithm=SHA1),
    ],
)
def test_an_endorsement_key_that_is_none_is_refused(ek: object) -> None:
    assert failed(Forge(ek=ek).file()) == ["ek-public"]  # type: ignore[arg-type]


def test_an_attestation_key_of_another_name_is_refused() -> None:
    """The hierarchy's name of it would be another, too."""
    names = failed(Forge(ak=forge.AK._replace(name_algorithm=SHA384)).file())
    assert names == ["ak-attributes"]


def test_another_public_key_is_refused() -> None:
    assert failed(Forge(public_key=forge.AK.point()).file()) == ["key-public"]


# --- the statements


def test_statements_of_another_key_are_refused() -> None:
    names = failed(Forge(signer=forge.private(9)).file())
    assert names == ["certify-signature", "quote-signature"]


def test_the_other_signature_that_verifies_is_refused() -> None:
    assert failed(Forge(high=True).file()) == ["certify-signature", "quote-signature"]


@pytest.mark.parametrize(
    "change",
    [
        lambda said: said._replace(extra_data=b"x" * 32),
        lambda said: said._replace(attested=Certified(forge.AK.name, b"")),
        lambda said: said._replace(attested=Quoted((), b"")),
        lambda said: said._replace(qualified_signer=forge.AK.name),
    ],
)
def test_a_certificate_of_something_else_is_refused(change: object) -> None:
    assert failed(Forge(change_certify=change).file()) == ["certify"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda said: said._replace(extra_data=b"x" * 32), ["quote"]),
        (lambda said: said._replace(qualified_signer=b""), ["quote"]),
        (lambda said: said._replace(attested=Certified(b"", b"")), ["quote", "pcr-digest"]),
        (
            lambda said: said._replace(attested=said.attested._replace(digest=bytes(32))),
            ["pcr-digest"],
        ),
        (
            lambda said: said._replace(
                attested=said.attested._replace(selections=(Selection(SHA384, (0,)),))
            ),
            ["pcr-digest"],
        ),
    ],
)
def test_a_quote_of_something_else_is_refused(change: object, names: list[str]) -> None:
    assert failed(Forge(change_quote=change).file()) == names  # type: ignore[arg-type]


def test_pcrs_must_have_the_demanded_values() -> None:
    good = {("sha256", 7): b"\x07" * 32}
    assert not failed(GOOD, pcrs=good)
    assert failed(GOOD, pcrs={("sha256", 7): bytes(32)}) == ["pcr-values"]
    assert failed(GOOD, pcrs={**good, ("sha256", 1): bytes(32)}) == ["pcr-values"]
    assert failed(GOOD, pcrs={("sha1", 7): bytes(20)}) == ["pcr-values"]


def test_the_identifier_must_be_the_expected() -> None:
    mine = "I" + "ab" * 32
    assert not failed(Forge(identifier=mine).file(), identifier=mine)
    assert failed(GOOD, identifier=mine) == ["identifier"]


def test_the_history_is_verified_by_whoever_knows_it() -> None:
    seen: list[object] = []

    def history(*given: object) -> str:
        seen.append(given)
        raise Refused("no")

    assert failed(Forge(history=b"abc").file(), history=history) == ["history"]
    assert seen == [("", b"abc", forge.ID.point())]


# --- the certificate


def test_a_certificate_directly_under_the_root_is_accepted() -> None:
    direct = forge.issue(
        "", forge.EK_KEY, "root", forge.ROOT_KEY, forge.leaf_extensions(forge.ROOT_KEY)
    )
    assert not failed(Forge(certificate=direct, chain=()).file())


def test_an_authority_between_may_be_trusted_itself() -> None:
    assert not failed(Forge(chain=()).file(), ca=[forge.MIDDLE])


def without(kind: type[x509.ExtensionType]) -> forge.Extensions:
    return [one for one in forge.leaf_extensions(forge.MIDDLE_KEY) if not isinstance(one[0], kind)]


SIGNING = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
NAMES = x509.NameConstraints([x509.DNSName("example.org")], None)
CLIENT = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])


@pytest.mark.parametrize(
    "extensions",
    [
        [*without(x509.BasicConstraints), (x509.BasicConstraints(True, None), True)],
        [*without(x509.KeyUsage), (SIGNING, True)],
        [*without(x509.ExtendedKeyUsage), (CLIENT, False)],
        [*without(x509.NameConstraints), (UNKNOWN, True)],
    ],
    ids=["authority", "signing", "client", "unknown-critical"],
)
def test_a_certificate_for_something_else_is_refused(extensions: forge.Extensions) -> None:
    assert failed(Forge(certificate=forge.leaf(extensions)).file()) == ["ek-chain"]


def test_a_certificate_may_say_little() -> None:
    extensions = [
        one for one in without(x509.ExtendedKeyUsage) if not isinstance(one[0], x509.KeyUsage)
    ]
    assert not failed(Forge(certificate=forge.leaf(extensions)).file())


def test_an_expired_certificate_is_refused() -> None:
    old = forge.leaf(until=NOW - timedelta(days=1))
    assert failed(Forge(certificate=old).file()) == ["ek-chain"]


def test_a_certificate_that_its_issuer_did_not_sign_is_refused() -> None:
    extensions = forge.leaf_extensions(forge.MIDDLE_KEY)
    forged = forge.issue("", forge.EK_KEY, "middle", forge.private(9), extensions)
    assert failed(Forge(certificate=forged).file()) == ["ek-chain"]


def test_a_certificate_over_another_hash_is_refused() -> None:
    """It says SHA-224 in both places, which is not worth a look at the signature."""
    weak = forge.der(forge.leaf()).replace(bytes.fromhex("ce3d040302"), bytes.fromhex("ce3d040301"))
    certificate = x509.load_der_x509_certificate(weak)
    verdict = examined(Forge(certificate=certificate).file())
    assert [check.name for check in verdict.failed] == ["ek-chain"]
    assert "hash" in verdict.failed[0].said


def test_a_missing_or_foreign_authority_is_refused() -> None:
    assert failed(Forge(chain=()).file()) == ["ek-chain"]
    other = forge.private(9)
    stranger = forge.issue("root", other, "root", other, forge.authority_extensions(other))
    assert failed(GOOD, ca=[stranger]) == ["ek-chain"]
    assert failed(GOOD, ca=[]) == ["ek-chain"]


@pytest.mark.parametrize(
    "extensions",
    [
        [one for one in forge.MIDDLE_EXTENSIONS if not isinstance(one[0], x509.BasicConstraints)],
        [*forge.MIDDLE_EXTENSIONS[:-1], (CLIENT, False)],
        [(x509.BasicConstraints(False, None), True), *forge.MIDDLE_EXTENSIONS[1:]],
        [forge.MIDDLE_EXTENSIONS[0], (SIGNING, True), *forge.MIDDLE_EXTENSIONS[2:]],
        [*forge.MIDDLE_EXTENSIONS, (NAMES, True)],
    ],
    ids=["no-constraints", "client", "leaf", "not-signing", "names"],
)
def test_what_is_between_must_be_an_authority_for_this(extensions: forge.Extensions) -> None:
    middle = forge.issue("middle", forge.MIDDLE_KEY, "root", forge.ROOT_KEY, extensions)
    assert failed(Forge(chain=(forge.der(middle),)).file()) == ["ek-chain"]


@pytest.mark.parametrize(("most", "names"), [(0, ["ek-chain"]), (1, [])])
def test_an_authority_limits_those_below_it(most: int, names: list[str]) -> None:
    constraints = (x509.BasicConstraints(True, most), True)
    extensions = [constraints, *forge.authority_extensions(forge.ROOT_KEY)[1:]]
    root = forge.issue("root", forge.ROOT_KEY, "root", forge.ROOT_KEY, extensions)
    assert failed(GOOD, ca=[root]) == names


@pytest.mark.parametrize("chain", [(b"\x30\x82\x00\x01\x00",), (b"",)])
def test_garbage_between_is_refused(chain: tuple[bytes, ...]) -> None:
    assert failed(Forge(chain=chain).file()) == ["ek-chain"]


# --- challenges


def test_an_answer_settles_only_its_own_challenge() -> None:
    found = evidence.verify(GOOD, [ROOT], NONCE, now=NOW)
    _, kept = evidence.challenge(found)
    _, other = evidence.challenge(found)
    assert evidence.settled(found, kept, kept)
    assert not evidence.settled(found, kept, other)
    assert not evidence.settled(found, kept, kept[:-1])
    stranger = forge.area(forge.private(9), forge.AK.attributes, signs_with=forge.AK.signs_with)
    fields = {**found.__dict__, "ak": stranger}
    assert not evidence.settled(evidence.Evidence(**fields), kept, kept)


def test_two_challenges_share_nothing() -> None:
    found = evidence.verify(GOOD, [ROOT], NONCE, now=NOW)
    first, second = (json.loads(evidence.challenge(found)[0]) for _ in range(2))
    assert first["credential"] != second["credential"]
    assert first["seed"] != second["seed"]
    assert first["ak_name"] == second["ak_name"] == found.ak.name.hex()
