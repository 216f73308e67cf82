"""Noise XX with X25519, AES-256-GCM and SHA-256: the core of the handshake (02 §6.1)."""

import hmac
from collections.abc import Callable
from copy import copy
from hashlib import sha256
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from edge.errors import HandshakeError, StateError

PROTOCOL: Final = b"OCKAM_XX_25519_AES256_GCM_SHA256"
KEY_BYTES: Final = 32
TAG_BYTES: Final = 16

Agreement = Callable[[bytes, bytes], bytes]
"""The secret that our private and their public X25519 key agree on."""


def x25519(private: bytes, public: bytes) -> bytes:
    """X25519 in software. A point of low order, which would agree on zero, is refused (02 §1.2)."""
    try:
        ours = X25519PrivateKey.from_private_bytes(private)
        return ours.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise HandshakeError("the peer sent a point of low order") from error


def public_key(private: bytes) -> bytes:
    """The public half of an X25519 key."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def hkdf2(salt: bytes, material: bytes) -> tuple[bytes, bytes]:
    """HKDF-SHA-256 with two outputs (02 §6.1)."""
    prk = hmac.digest(salt, material, "sha256")
    first = hmac.digest(prk, b"\x01", "sha256")
    return first, hmac.digest(prk, first + b"\x02", "sha256")


class SymmetricState:
    """`ck`, `h`, `k` and `n` of Noise. A copy is a checkpoint: there is nothing behind it."""

    __slots__ = ("chaining_key", "hash", "key", "nonce")

    def __init__(self, protocol: bytes = PROTOCOL) -> None:
        self.chaining_key = protocol
        self.hash = sha256(protocol).digest()  # the name, and the empty prologue mixed into it
        self.key: bytes | None = None
        self.nonce = 0

    def copy(self) -> Self:
        return copy(self)

    def mix_hash(self, data: bytes) -> None:
        self.hash = sha256(self.hash + data).digest()

    def mix_key(self, secret: bytes) -> None:
        self.chaining_key, self.key = hkdf2(self.chaining_key, secret)
        self.nonce = 0

    @property
    def overhead(self) -> int:
        """How much longer a ciphertext is: nothing while there is no key."""
        return 0 if self.key is None else TAG_BYTES

    def encrypt(self, plain: bytes) -> bytes:
        if self.key is not None:
            plain = AESGCM(self.key).encrypt(self._take_iv(), plain, self.hash)
        self.mix_hash(plain)
        return plain

    def decrypt(self, cipher: bytes) -> bytes:
        plain = cipher
        if self.key is not None:
            try:
                plain = AESGCM(self.key).decrypt(self._take_iv(), cipher, self.hash)
            except InvalidTag as error:
                raise HandshakeError("the handshake message does not decrypt") from error
        self.mix_hash(cipher)
        return plain

    def split(self) -> tuple[bytes, bytes]:
        """k1 and k2; who seals with which is 02 §6.4, and the opposite of Noise."""
        return hkdf2(self.chaining_key, b"")

    def _take_iv(self) -> bytes:
        iv = self.nonce.to_bytes(12, "big")
        self.nonce += 1
        return iv


XX: Final = (
    ("e",),
    ("e", "ee", "s", "es"),
    ("s", "se"),
)
"""Who sends which key, and which keys agree after it. Of a pair the first letter is the initiator's
key and the second the responder's."""


class Handshake:
    """One end of an XX handshake. write() and read() walk the tokens of one message each; a read
    that fails leaves rubbish, so read on a copy() and keep that when it went well."""

    __slots__ = (
        "_agree",
        "_ephemeral",
        "_initiator",
        "_remote",
        "_static",
        "_static_public",
        "_step",
        "state",
    )

    def __init__(
        self,
        *,
        initiator: bool,
        static: bytes,
        ephemeral: bytes,
        static_public: bytes | None = None,
        agree: Agreement = x25519,
        protocol: bytes = PROTOCOL,
    ) -> None:
        self.state = SymmetricState(protocol)
        self._initiator = initiator
        self._static = static
        self._static_public = static_public or public_key(static)
        self._ephemeral = ephemeral
        self._agree = agree
        self._remote: dict[str, bytes] = {}
        self._step = 0

    def copy(self) -> Self:
        twin = copy(self)
        twin.state = self.state.copy()
        twin._remote = dict(self._remote)
        return twin

    @property
    def remote_static(self) -> bytes:
        return self._remote["s"]

    def write(self, payload: bytes) -> bytes:
        """The next message, with `payload` in it."""
        parts = []
        for token in self._next_tokens(ours=True):
            if token == "e":
                public = public_key(self._ephemeral)
                self.state.mix_hash(public)
                parts.append(public)
            elif token == "s":
                parts.append(self.state.encrypt(self._static_public))
            else:
                self._mix(token)
        parts.append(self.state.encrypt(payload))
        return b"".join(parts)

    def read(self, message: bytes) -> bytes:
        """The payload of the next message; HandshakeError if it is not one."""
        position = 0
        for token in self._next_tokens(ours=False):
            if token == "e":
                public, position = self._cut(message, position, KEY_BYTES)
                self.state.mix_hash(public)
                self._remote["e"] = public
            elif token == "s":
                size = KEY_BYTES + self.state.overhead
                cipher, position = self._cut(message, position, size)
                self._remote["s"] = self.state.decrypt(cipher)
            else:
                self._mix(token)
        return self.state.decrypt(message[position:])

    def _next_tokens(self, *, ours: bool) -> tuple[str, ...]:
        if self._step == len(XX) or ours != (self._initiator == (self._step % 2 == 0)):
            raise StateError("it is not this side's turn in the handshake")
        tokens = XX[self._step]
        self._step += 1
        return tokens

    def _mix(self, token: str) -> None:
        """Agree on a secret: our key of the one letter with their key of the other."""
        mine, theirs = tuple(token if self._initiator else reversed(token))
        private = self._ephemeral if mine == "e" else self._static
        self.state.mix_key(self._agree(private, self._remote[theirs]))

    @staticmethod
    def _cut(message: bytes, position: int, size: int) -> tuple[bytes, int]:
        end = position + size
        if len(message) < end:
            raise HandshakeError("the handshake message is too short")
        return message[position:end], end
