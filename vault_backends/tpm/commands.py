"""The commands of a TPM that evidence needs, over any transport (TPM 2.0 Library, part 3).

Secrets travel inside this process and, to the TPM, never in the clear: an object's auth value goes
into the key of an HMAC session and what the TPM unseals comes back encrypted (part 1, §17 to §21)."""

import hmac
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple, Protocol

from vault_backends.tpm.kdf import aes_cfb, kdfa, share
from vault_backends.tpm.structures import (
    AES,
    CFB,
    ECDSA,
    NULL,
    SHA256,
    Public,
    Reader,
    Selection,
    digest,
    encode_selections,
    read_selections,
    sized,
    u16,
    u32,
)
from vault_backends.vault import DeviceGone, Locked, Refused, VaultError

OWNER, NO_HANDLE, PASSWORD, ENDORSEMENT = 0x40000001, 0x40000007, 0x40000009, 0x4000000B
_NO_SESSIONS, _SESSIONS = 0x8001, 0x8002  # TPM_ST
_HMAC, _POLICY = 0, 1  # TPM_SE
_CONTINUE, _ENCRYPT = 0x01, 0x40  # TPMA_SESSION; encrypt: the TPM's answer
_NV_CHUNK = 512  # what every TPM reads at once

# TPM_CC
(
    _CREATE_PRIMARY, _ACTIVATE, _CERTIFY, _NV_READ, _POLICY_SECRET, _LOAD, _QUOTE, _UNSEAL, _FLUSH,
    _NV_READ_PUBLIC, _POLICY_OR, _READ_PUBLIC, _START_SESSION, _CAPABILITY, _PCR_READ,
) = (
    0x131, 0x147, 0x148, 0x14E, 0x151, 0x157, 0x158, 0x15E, 0x165, 0x169, 0x171, 0x173, 0x176,
    0x17A, 0x17E,
)  # fmt: skip
_GIVES_HANDLE = {_CREATE_PRIMARY, _LOAD, _START_SESSION}

# TPM_RC, without the bits that say which handle, parameter or session it is about
_RETRY = {0x908, 0x90A, 0x922}  # yielded, testing, retry
_ABSENT = {0x84, 0x8B, 0x910}  # value, handle, reference H0: nothing is at that handle
_WRONG_AUTH = {0x8E, 0xA2}  # the first kind counts towards the lockout
_INTEGRITY = 0x9F  # a blob that another TPM, or another seed, wrapped
_LOCKOUT, _OBJECT_MEMORY, _SESSION_MEMORY = 0x921, 0x902, 0x903
_PAUSES = (0.0, 0.02, 0.1, 0.5, 2.0)  # seconds before each try, while the TPM asks for another


class Transport(Protocol):
    def exchange(self, command: bytes) -> bytes: ...


class TpmError(VaultError):
    """The TPM answered with an error; `code` is its TPM_RC without the number of the parameter."""

    def __init__(self, message: str, code: int, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class Session(NamedTuple):
    """A session open in the TPM; `nonce` is its latest."""

    handle: int
    key: bytes
    nonce: bytes


class Made(NamedTuple):
    """An object loaded in the TPM."""

    handle: int
    public: Public


class _Answer(NamedTuple):
    """A response, taken apart. `raw` is all of the parameters; `proofs` what authenticates them."""

    handle: int
    raw: bytes
    proofs: bytes

    @property
    def parameters(self) -> Reader:
        return Reader(self.raw)


class Tpm:
    """One TPM, one command at a time. Objects and sessions are lent for the length of a `with`, and
    flushed at its end, whatever happened inside."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    # --- objects

    @contextmanager
    def primary(self, hierarchy: int, template: bytes, auth: bytes = b"") -> Iterator[Made]:
        """The primary object that the hierarchy's seed and `template` (TPMT_PUBLIC) give."""
        sensitive = sized(sized(b"") + sized(b""))
        parameters = sensitive + sized(template) + sized(b"") + u32(0)
        answer = self._run(_CREATE_PRIMARY, (hierarchy,), parameters, [_password(auth)])
        with self._lent(answer.handle):
            yield Made(answer.handle, Public.decode(answer.parameters.sized()))

    @contextmanager
    def loaded(self, parent: int, public: bytes, private: bytes, auth: bytes) -> Iterator[int]:
        """A wrapped object under `parent`; `public` and `private` without their outer size."""
        try:
            answer = self._run(_LOAD, (parent,), sized(private) + sized(public), [_password(auth)])
        except TpmError as error:
            if error.code == _INTEGRITY:
                raise Refused(
                    "the TPM does not know the keys of this tpm2-pkcs11 store",
                    hint="the store came from another TPM, or the TPM was cleared since",
                ) from None
            raise
        with self._lent(answer.handle):
            yield answer.handle

    @contextmanager
    def _lent(self, handle: int) -> Iterator[None]:
        try:
            yield
        finally:
            with suppress(DeviceGone):  # whatever it held went with it
                self._run(_FLUSH, (), u32(handle))

    def read_public(self, handle: int) -> Public | None:
        """The key at a handle; None when nothing is there."""
        try:
            answer = self._run(_READ_PUBLIC, (handle,))
        except TpmError as error:
            if error.code in _ABSENT:
                return None
            raise
        return Public.decode(answer.parameters.sized())

    # --- what evidence is made of

    def certify(
        self, key: int, key_name: bytes, auth: bytes, ak: Made, nonce: bytes, salt_key: Made
    ) -> tuple[bytes, bytes]:
        """TPMS_ATTEST and TPMT_SIGNATURE: `key` as the AK saw it."""
        parameters = sized(nonce) + u16(ECDSA) + u16(SHA256)
        named = key_name + ak.public.name
        with self._session(salt_key) as session:
            proof = _proof(session, auth, u32(_CERTIFY) + named + parameters, 0)
            proofs = [proof, _password(b"")]
            answer = self._run(_CERTIFY, (key, ak.handle), parameters, proofs)
            _check_answer(session, auth, proof, _CERTIFY, answer)
        return _attested(answer)

    def quote(self, ak: Made, nonce: bytes, chosen: Sequence[Selection]) -> tuple[bytes, bytes]:
        """TPMS_ATTEST and TPMT_SIGNATURE over the chosen PCRs as they are now."""
        parameters = sized(nonce) + u16(ECDSA) + u16(SHA256) + encode_selections(chosen)
        return _attested(self._run(_QUOTE, (ak.handle,), parameters, [_password(b"")]))

    def unseal(self, handle: int, name: bytes, auth: bytes, salt_key: Made) -> bytes:
        """What a sealed object holds."""
        with self._session(salt_key) as session:
            proof = _proof(session, auth, u32(_UNSEAL) + name, _ENCRYPT)
            answer = self._run(_UNSEAL, (handle,), proofs=[proof])
            newer = _check_answer(session, auth, proof, _UNSEAL, answer)
            parts = kdfa(SHA256, session.key + auth, "CFB", newer, proof.nonce, 256)
            return aes_cfb(parts[:16], parts[16:], answer.parameters.sized(), decrypt=True)

    def activate(self, ak: Made, ek: Made, policy: Session, blob: bytes, seed: bytes) -> bytes:
        """The secret of a challenge that was made for this `ek` and this `ak`."""
        proofs = [_password(b""), _Proof(policy.handle, b"", _CONTINUE, b"")]
        answer = self._run(_ACTIVATE, (ak.handle, ek.handle), sized(blob) + sized(seed), proofs)
        return answer.parameters.sized()

    # --- PCRs and NV

    def pcrs(self, chosen: Sequence[Selection]) -> dict[Selection, dict[int, bytes]]:
        """The values of the chosen PCRs. Refused if this TPM does not keep one of them."""
        return {one: self._bank(one) for one in chosen}

    def _bank(self, bank: Selection) -> dict[int, bytes]:
        values: dict[int, bytes] = {}
        while missing := tuple(index for index in bank.indices if index not in values):
            asked = encode_selections([Selection(bank.algorithm, missing)])
            answer = self._run(_PCR_READ, (), asked).parameters
            answer.u32()  # how often PCRs changed
            read = [index for one in read_selections(answer) for index in one.indices]
            if answer.u32() != len(read) or not read:
                raise Refused(f"this TPM keeps no PCR {missing[0]} in that bank")
            values |= {index: answer.sized(64) for index in read}
        return values

    def handles(self, first: int, last: int) -> list[int]:
        """What is defined from `first` to `last`, of one kind: NV indices, or persistent objects."""
        found: list[int] = []
        more = True
        while more and first <= last:
            answer = self._run(_CAPABILITY, (), u32(1) + u32(first) + u32(64)).parameters
            more = bool(answer.u8())
            answer.u32()  # the capability again
            handles = [answer.u32() for _ in range(answer.u32())]
            found += [one for one in handles if first <= one <= last]
            if not handles:
                break
            first = handles[-1] + 1
        return found

    def nv_read(self, index: int) -> bytes | None:
        """What an NV index holds that everybody may read; None when it is not there."""
        try:
            public = Reader(self._run(_NV_READ_PUBLIC, (index,)).parameters.sized())
        except TpmError as error:
            if error.code in _ABSENT:
                return None
            raise
        public.take(10)  # index, name algorithm, attributes
        public.sized()  # policy
        size, data = public.u16(), b""
        while len(data) < size:
            count = min(_NV_CHUNK, size - len(data))
            part = u16(count) + u16(len(data))
            answer = self._run(_NV_READ, (index, index), part, [_password(b"")])
            data += answer.parameters.sized()
        return data

    # --- sessions

    @contextmanager
    def _session(self, salt_key: Made) -> Iterator[Session]:
        """An HMAC session whose key only this TPM and we know: its salt goes to `salt_key`."""
        salt, mine = share(salt_key.public, "SECRET"), os.urandom(32)
        handle, nonce = self._start(salt_key.handle, mine, salt.encrypted, _HMAC, SHA256)
        with self._lent(handle):
            yield Session(handle, kdfa(SHA256, salt.seed, "ATH", nonce, mine, 256), nonce)

    @contextmanager
    def endorsed(self, auth: bytes, either: Sequence[bytes], algorithm: int) -> Iterator[Session]:
        """A policy session that proved the endorsement authorization (EK Credential Profile, PolicyA);
        `either` are the branches of the template's PolicyOR, none for the older templates."""
        handle, nonce = self._start(NO_HANDLE, os.urandom(32), b"", _POLICY, algorithm)
        with self._lent(handle):
            nothing = sized(b"") * 3 + u32(0)  # no nonce, cpHash or reference; does not expire
            handles = (ENDORSEMENT, handle)
            self._run(_POLICY_SECRET, handles, nothing, [_password(auth)])
            if either:
                branches = u32(len(either)) + b"".join(map(sized, either))
                self._run(_POLICY_OR, (handle,), branches)
            yield Session(handle, b"", nonce)

    def _start(
        self, salt_key: int, nonce: bytes, salt: bytes, kind: int, algorithm: int
    ) -> tuple[int, bytes]:
        cipher = u16(AES) + u16(128) + u16(CFB) if salt else u16(NULL)
        parameters = sized(nonce) + sized(salt) + bytes([kind]) + cipher + u16(algorithm)
        answer = self._run(_START_SESSION, (salt_key, NO_HANDLE), parameters)
        return answer.handle, answer.parameters.sized()

    # --- one command

    def _run(
        self,
        code: int,
        handles: Sequence[int],
        parameters: bytes = b"",
        proofs: Sequence["_Proof"] = (),
    ) -> _Answer:
        """Send a command; TpmError, Locked or DeviceGone when it does not succeed."""
        body = b"".join(map(u32, handles))
        if proofs:
            area = b"".join(one.encode() for one in proofs)
            body += u32(len(area)) + area
        body += parameters
        tag = _SESSIONS if proofs else _NO_SESSIONS
        answer = self._exchange(u16(tag) + u32(10 + len(body)) + u32(code) + body, code)
        handle = answer.u32() if code in _GIVES_HANDLE else 0
        raw = answer.take(answer.u32()) if proofs else answer.rest()
        return _Answer(handle, raw, answer.rest())

    def _exchange(self, command: bytes, code: int) -> Reader:
        status = 0
        for pause in _PAUSES:
            time.sleep(pause)
            data = self._transport.exchange(command)
            answer = Reader(data)
            if len(data) < 10 or int.from_bytes(data[2:6], "big") != len(data):
                raise DeviceGone("the TPM's answer is cut short")
            status = int.from_bytes(answer.take(10)[6:], "big")
            if status not in _RETRY:
                break
        if status:
            raise _failure(code, status)
        return answer


class _Proof(NamedTuple):
    """TPMS_AUTH_COMMAND: the right to use one handle."""

    session: int
    nonce: bytes
    attributes: int
    hmac: bytes

    def encode(self) -> bytes:
        return u32(self.session) + sized(self.nonce) + bytes([self.attributes]) + sized(self.hmac)


def _password(auth: bytes) -> _Proof:
    return _Proof(PASSWORD, b"", _CONTINUE, auth)


def _proof(session: Session, auth: bytes, command: bytes, attributes: int) -> _Proof:
    """The HMAC that shows knowledge of `auth` without sending it. `command` is its code, the names
    of its handles, and its parameters."""
    nonce, attributes = os.urandom(32), attributes | _CONTINUE
    mac = _session_hmac(session, auth, command, nonce + session.nonce, attributes)
    return _Proof(session.handle, nonce, attributes, mac)


def _check_answer(
    session: Session, auth: bytes, proof: _Proof, code: int, answer: _Answer
) -> bytes:
    """That the answer is of the TPM that knows the session's key. Returns the TPM's new nonce."""
    reader = Reader(answer.proofs)
    nonce, attributes, mac = reader.sized(), reader.u8(), reader.sized()
    said = u32(0) + u32(code) + answer.raw
    wanted = _session_hmac(session, auth, said, nonce + proof.nonce, attributes)
    if not hmac.compare_digest(wanted, mac):
        raise Refused("an answer that is not the TPM's", hint="something sits between it and us")
    return nonce


def _session_hmac(
    session: Session, auth: bytes, said: bytes, nonces: bytes, attributes: int
) -> bytes:
    signed = digest(SHA256, said) + nonces + bytes([attributes])
    return hmac.digest(session.key + auth, signed, "sha256")


def _attested(answer: _Answer) -> tuple[bytes, bytes]:
    reader = answer.parameters
    return reader.sized(), reader.rest()


_SAID = {
    _LOCKOUT: (
        "the TPM is locked against guessing: too many wrong authorizations",
        "wait, or clear it with the lockout password: tpm2_dictionarylockout --clear-lockout",
    ),
    _OBJECT_MEMORY: (
        "the TPM has no room for another object",
        "close what uses it, or use the resource manager (device:/dev/tpmrm0); what a crash left"
        " goes with tpm2_flushcontext --transient-object",
    ),
    _SESSION_MEMORY: (
        "the TPM has no room for another session",
        "what a crash left goes with tpm2_flushcontext --loaded-session",
    ),
}


def _failure(command: int, status: int) -> VaultError:
    code = status & 0xBF if status & 0x80 else status & 0xFFF
    if code in _WRONG_AUTH:
        return Locked(
            "the TPM refused an authorization",
            hint="the PIN is not that of the store, or the hierarchy has a password",
        )
    message, hint = _SAID.get(code, (f"the TPM refused command {command:#x}: {status:#x}", ""))
    return TpmError(message, code, hint=hint)
