"""Having a TPM say what evidence needs: its endorsement key, an attestation key, the identity key.

The attestation key is a primary key of the endorsement hierarchy, made from a fixed template when it
is needed and flushed afterwards: the seed of that hierarchy gives the same key each time, until the
TPM's maker changes it. Nothing is left in the TPM, and no persistent handle is taken."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from vault_backends.tpm.bundle import Answer, Bundle, Challenge, Pcrs, certify_nonce, pcr_digest
from vault_backends.tpm.chain import certificate, trimmed
from vault_backends.tpm.commands import ENDORSEMENT, Made, Session, Tpm, TpmError
from vault_backends.tpm.store import StoredKey
from vault_backends.tpm.structures import (
    ADMIN_WITH_POLICY,
    CURVES,
    DECRYPT,
    FIXED_PARENT,
    FIXED_TPM,
    HASHES,
    NO_DA,
    P256,
    P384,
    P521,
    RESTRICTED,
    SENSITIVE_DATA_ORIGIN,
    SHA256,
    SHA384,
    SHA512,
    SIGN,
    USER_WITH_AUTH,
    Attestation,
    Ecc,
    EcdsaSignature,
    Malformed,
    Public,
    Quoted,
    Rsa,
    Selection,
    digest,
    u32,
)
from vault_backends.tpm.tcti import Tcti
from vault_backends.vault import NotFound, Refused

__all__ = ["Subject", "answer", "attest", "opened"]

_QUOTE_TRIES = 5  # a PCR may be extended between reading and quoting
_CHAIN_FIRST, _CHAIN_LAST = 0x1C00100, 0x1C001FF  # NV indices of certificates above the EK's

AK_TEMPLATE = Public(
    name_algorithm=SHA256,
    attributes=FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | USER_WITH_AUTH | NO_DA
    | RESTRICTED | SIGN,
    policy=b"",
    symmetric_bits=0,
    signs_with=SHA256,
    # What stands in place of the point makes this key ours: others with the same seed differ.
    key=Ecc(P256, sha256(b"ockam-edge attestation key 1").digest(), bytes(32)),
)  # fmt: skip

_EK_ATTRIBUTES = (
    FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | ADMIN_WITH_POLICY | RESTRICTED | DECRYPT
)
_POLICY_SECRET, _POLICY_OR = u32(0x151), u32(0x171)


def _policy_a(algorithm: int) -> bytes:
    """The policy digest of TPM2_PolicySecret with the endorsement authorization."""
    size = len(digest(algorithm, b""))
    inner = digest(algorithm, bytes(size) + _POLICY_SECRET + ENDORSEMENT.to_bytes(4, "big"))
    return digest(algorithm, inner)  # extended by an empty reference


# PolicyC of the EK Credential Profile 2.5, B.6: TPM2_PolicyAuthorizeNV with the index it reserves.
_POLICY_C = {
    SHA256: "3767e2edd43ff45a3a7e1eaefcef78643dca964632e7aad82c673a30d8633fde",
    SHA384: "d6032ce61f2fb3c240eb3cf6a33237ef2b6a16f4293c22b455e261cffd217ad5"
    "b4947c2d73e63005eed2dc2b3593d165",
    SHA512: "589ee1e146544716e8deafe6db247b01b81e9f9c7dd16b814aa159138749105f"
    "ba5388dd1dea702f35240c184933121e2c61b8f50d3ef91393a49a38c3f73fc8",
}


def _either(algorithm: int) -> tuple[bytes, bytes]:
    return _policy_a(algorithm), bytes.fromhex(_POLICY_C[algorithm])


def _policy_b(algorithm: int) -> bytes:
    start = bytes(len(digest(algorithm, b"")))
    return digest(algorithm, start + _POLICY_OR + b"".join(_either(algorithm)))


class _Place(NamedTuple):
    """A kind of endorsement key: the NV index of its certificate, and its template (EK Credential
    Profile 2.5, §2.2 and annex B)."""

    certificate: int
    template: Public

    @property
    def kind(self) -> str:
        return self.size[0]

    @property
    def size(self) -> tuple[str, int]:
        key = self.template.key
        return ("rsa", key.bits) if isinstance(key, Rsa) else ("ecc", CURVES[key.curve].key_size)


def _high(algorithm: int, bits: int, key: Rsa | Ecc) -> Public:
    attributes = _EK_ATTRIBUTES | USER_WITH_AUTH
    return Public(algorithm, attributes, _policy_b(algorithm), bits, 0, key)


def _low(key: Rsa | Ecc) -> Public:
    return Public(SHA256, _EK_ATTRIBUTES, _policy_a(SHA256), 128, 0, key)


# Elliptic curves first: they are made in a fraction of a second where RSA takes many.
_PLACES = (
    _Place(0x1C0000A, _low(Ecc(P256, bytes(32), bytes(32)))),  # L-2
    _Place(0x1C00014, _high(SHA256, 128, Ecc(P256, b"", b""))),  # H-2
    _Place(0x1C00016, _high(SHA384, 256, Ecc(P384, b"", b""))),  # H-3
    _Place(0x1C00018, _high(SHA512, 256, Ecc(P521, b"", b""))),  # H-4
    _Place(0x1C00002, _low(Rsa(2048, 0, bytes(256)))),  # L-1
    _Place(0x1C00012, _high(SHA256, 128, Rsa(2048, 0, b""))),  # H-1
    _Place(0x1C0001C, _high(SHA384, 256, Rsa(3072, 0, b""))),  # H-6
    _Place(0x1C0001E, _high(SHA384, 256, Rsa(4096, 0, b""))),  # H-7
)
_TEMPLATE_AFTER = 2  # an index so much higher may hold a maker's own template, for the L kinds
_LOW_INDICES = (0x1C00002, 0x1C0000A)
_PERSISTENT = (0x81010000, 0x8101FFFF)  # where endorsement keys are kept


@dataclass(frozen=True)
class Subject:
    """Who the evidence is about. `public_key` is an uncompressed P-256 point."""

    public_key: bytes
    identifier: str = ""
    history: bytes = b""


@contextmanager
def opened(tcti: str) -> Iterator[Tpm]:
    """The TPM at a TCTI such as `device:/dev/tpmrm0`, for the length of a `with`."""
    way = Tcti(tcti)
    try:
        yield Tpm(way)
    finally:
        way.close()


def attest(
    tpm: Tpm,
    subject: Subject,
    key: StoredKey,
    pin: str,
    nonce: bytes,
    chosen: Sequence[Selection],
    *,
    kind: str | None = None,
    certificates: Sequence[bytes] = (),
    endorsement_auth: bytes = b"",
) -> bytes:
    """The file of evidence for `subject`, whose key is `key`. `kind` is "rsa" or "ecc" where the TPM
    has endorsement certificates of both; `certificates` (DER, the endorsement key's first) are for one
    that holds none. The PIN should be known to be right: the TPM counts wrong ones."""
    ek_certificate, chain, ek = _endorsement(tpm, kind, certificates, endorsement_auth)
    public = Public.decode(key.public)
    auth = key.authorization(tpm, pin)
    with tpm.primary(ENDORSEMENT, AK_TEMPLATE.encode(), endorsement_auth) as ak:
        parent = key.parent_key(tpm)
        with tpm.loaded(key.parent, key.public, key.private, key.parent_auth) as handle:
            certified = tpm.certify(handle, public.name, auth, ak, certify_nonce(nonce), parent)
        bundle = Bundle(
            nonce=nonce,
            identifier=subject.identifier,
            history=subject.history,
            public_key=subject.public_key,
            key_public=public.encode(),
            ek_certificate=ek_certificate,
            ek_chain=chain,
            ek_public=ek.encode(),
            ak_public=ak.public.encode(),
            certify=certified[0],
            certify_signature=_plain(certified[1]),
            pcrs={},
        )
        return _quoted(tpm, ak, bundle, chosen).encode()


def answer(tpm: Tpm, challenge: bytes, endorsement_auth: bytes = b"") -> bytes:
    """The file that answers the file of a challenge. Refused if it is for another TPM."""
    asked = Challenge.decode(challenge)
    wanted = Public.decode(asked.ek_public)
    like = [one.template for one in _PLACES if _shape(one.template) == _shape(wanted)]
    with (
        tpm.primary(ENDORSEMENT, AK_TEMPLATE.encode(), endorsement_auth) as ak,
        _ek(tpm, like, wanted.__eq__, endorsement_auth) as ek,
    ):
        if ak.public.name != asked.ak_name:
            raise Refused("the challenge is for another attestation key than this TPM's")
        algorithm = ek.public.name_algorithm
        with tpm.endorsed(endorsement_auth, _branches(ek.public), algorithm) as policy:
            secret = _activated(tpm, ak, ek, policy, asked)
    return Answer(asked.ak_name, secret).encode()


def _activated(tpm: Tpm, ak: Made, ek: Made, policy: Session, asked: Challenge) -> bytes:
    try:
        return tpm.activate(ak, ek, policy, asked.credential, asked.seed)
    except TpmError as error:
        raise Refused(
            f"this TPM cannot read the challenge ({error})",
            hint="it was made for other keys, or damaged on its way",
        ) from None


def _quoted(tpm: Tpm, ak: Made, bundle: Bundle, chosen: Sequence[Selection]) -> Bundle:
    """The bundle with PCR values and the quote over them and all the rest."""
    for _ in range(_QUOTE_TRIES):
        pcrs: Pcrs = {HASHES[one.algorithm]: values for one, values in tpm.pcrs(chosen).items()}
        found = replace(bundle, pcrs=pcrs)
        quote, signature = tpm.quote(ak, found.bound(), found.selections())
        attested = Attestation.decode(quote).attested
        if isinstance(attested, Quoted) and attested.digest == pcr_digest(pcrs):
            return replace(found, quote=quote, quote_signature=_plain(signature))
    raise Refused(
        "the PCRs change faster than they can be quoted",
        hint="choose PCRs that stand still once the machine has started",
    )


def _plain(signature: bytes) -> bytes:
    found = EcdsaSignature.decode(signature)
    return found.r + found.s


# --- endorsement keys


def _endorsement(
    tpm: Tpm, kind: str | None, given: Sequence[bytes], auth: bytes
) -> tuple[bytes, tuple[bytes, ...], Public]:
    """A certificate that the maker put into the TPM or that was given, those above it, and its key."""
    if given:
        like = [one.template for one in _PLACES if one.size == _size(given[0])]
        with _ek(tpm, like, _is(given[0]), auth) as ek:
            return given[0], tuple(given[1:]), ek.public
    for place in _PLACES:
        stored = tpm.nv_read(place.certificate) if kind in (None, place.kind) else None
        if stored is None or not (found := trimmed(stored)):
            continue
        with _ek(tpm, _templates(tpm, place), _is(found[0]), auth) as ek:
            return found[0], (*found[1:], *_above(tpm)), ek.public
    raise NotFound(
        f"the TPM holds no certificate of an {kind or ''} endorsement key".replace("  ", " "),
        hint="its maker may publish it elsewhere: give it with --ek-certificate",
    )


def _size(der: bytes) -> tuple[str, int]:
    key = certificate(der).public_key()
    if isinstance(key, rsa.RSAPublicKey):
        return "rsa", key.key_size
    if isinstance(key, ec.EllipticCurvePublicKey):
        return "ecc", key.key_size
    raise Refused("the certificate is of no kind of key that a TPM has")


def _is(der: bytes) -> Callable[[Public], bool]:
    certified = certificate(der).public_key()
    return lambda public: public.public_key() == certified


def _above(tpm: Tpm) -> list[bytes]:
    """The certificates of the maker's authorities, which may run over several NV indices."""
    indices = tpm.handles(_CHAIN_FIRST, _CHAIN_LAST)
    return trimmed(b"".join(tpm.nv_read(index) or b"" for index in indices))


def _templates(tpm: Tpm, place: _Place) -> list[Public]:
    own = (
        tpm.nv_read(place.certificate + _TEMPLATE_AFTER)
        if place.certificate in _LOW_INDICES
        else None
    )
    with suppress(Malformed):
        return [Public.decode(own), place.template] if own else [place.template]
    return [place.template]


@contextmanager
def _ek(
    tpm: Tpm, templates: Sequence[Public], wanted: Callable[[Public], bool], auth: bytes
) -> Iterator[Made]:
    """The endorsement key that is wanted: where it is kept, or made again from a template."""
    for handle in tpm.handles(*_PERSISTENT):
        public = _readable(tpm, handle)
        if public is not None and wanted(public):
            yield Made(handle, public)
            return
    for template in templates:
        with tpm.primary(ENDORSEMENT, template.encode(), auth) as made:
            if wanted(made.public):
                yield made
                return
    raise NotFound(
        "the TPM does not have the endorsement key that was asked for",
        hint="a certificate or challenge of another TPM, or of one whose seed was changed",
    )


def _readable(tpm: Tpm, handle: int) -> Public | None:
    try:
        return tpm.read_public(handle)
    except Malformed:  # a key of a kind that is not looked for
        return None


def _shape(public: Public) -> tuple[object, ...]:
    """A public area without the key itself."""
    key = public.key
    return (*public[:-1], key.bits if isinstance(key, Rsa) else (key.curve,))


def _branches(ek: Public) -> Sequence[bytes]:
    """What the policy of this endorsement key is made of, beside TPM2_PolicySecret."""
    algorithm = ek.name_algorithm
    if ek.policy == _policy_a(algorithm):
        return ()
    if algorithm in _POLICY_C and ek.policy == _policy_b(algorithm):
        return _either(algorithm)
    raise Refused("the endorsement key has a policy that no credential profile describes")
