"""What an identity says about its own key: where it is, signed by that key, for one who asked.

It proves that whoever made it could use the identity's current key when the nonce was known. That the
key is in a token is what the identity *says*; how far the token's own words go stands in the
description (`attributes_prove`). A proof that the holder cannot make up is evidence of a TPM.

The signed bytes begin with a text, which no change, attestation or credential does (02 §2.1), so this
signature can never be taken for one of those:

    statement = [history, data, signature]
    data      = "ockam-edge key statement 1\\n" then
                [subject, hash of the latest change, nonce, made at, description]
"""

from typing import NamedTuple, Self

from edge.errors import DecodeError, TrustError
from edge.identity.history import ChangeHistory
from edge.identity.keys import Sign, Signature, signed
from edge.identity.versioned import HASH_BYTES
from edge.wire import cbor

DOMAIN = b"ockam-edge key statement 1\n"
NONCE_BYTES = range(8, 65)
MAX_BYTES = 65_536

Described = dict[str, str | int | bool | None]
"""Names and what they are; no more structure than that."""


class KeyStatement(NamedTuple):
    """A statement as it arrived; verify() before anything of it is believed."""

    encoded: bytes
    history: ChangeHistory
    data: bytes
    signature: Signature
    subject: bytes
    change_hash: bytes
    nonce: bytes
    made_at: int
    description: Described

    @classmethod
    def decode(cls, encoded: bytes) -> Self:
        """Raises DecodeError for anything but one whole statement."""
        if len(encoded) > MAX_BYTES:
            raise DecodeError(f"a statement has at most {MAX_BYTES} bytes")
        history, signed_data, signature = _exactly(cbor.decode(encoded), 3)
        data = cbor.as_bytes(signed_data)
        if not data.startswith(DOMAIN):
            raise DecodeError("not a statement about a key")
        body = _exactly(cbor.decode(data[len(DOMAIN) :]), 5)
        subject, change_hash, nonce, made_at, description = body
        return cls(
            encoded=bytes(encoded),
            history=ChangeHistory.decode(cbor.as_bytes(history)),
            data=data,
            signature=Signature.read(signature),
            subject=cbor.as_bytes(subject, HASH_BYTES),
            change_hash=cbor.as_bytes(change_hash, HASH_BYTES),
            nonce=cbor.as_bytes(nonce),
            made_at=cbor.as_int(made_at),
            description=_described(description),
        )

    def verify(self, nonce: bytes) -> None:
        """Raise TrustError unless the owner of `history` made this with its latest key, for `nonce`.
        Whether that is the identity which was asked, and how new its history is, the caller sees."""
        self.history.verify()
        if self.subject != self.history.identifier or self.change_hash != self.history.latest.hash:
            raise TrustError("the statement is not about the latest key of its history")
        if self.nonce != nonce:
            raise TrustError("the statement was made for another nonce")
        self.signature.check(self.history.latest.key, self.data, "statement")


def state(
    history: ChangeHistory, sign: Sign, description: Described, *, nonce: bytes, now: int
) -> KeyStatement:
    """Make a statement, one signature, verified. Raises TrustError where the key is another one."""
    if len(nonce) not in NONCE_BYTES:
        raise DecodeError(f"a nonce has {NONCE_BYTES.start} to {NONCE_BYTES.stop - 1} bytes")
    latest = history.latest
    body = cbor.encode([history.identifier, latest.hash, nonce, now, description])
    data = DOMAIN + body
    signature = signed(latest.key, sign, data, "statement")
    return KeyStatement.decode(cbor.encode([history.encoded, data, signature.structure()]))


def _exactly(value: cbor.Value, count: int) -> list[cbor.Value]:
    found = cbor.as_list(value, count)
    if len(found) != count:
        raise DecodeError(f"{count} items were expected, not {len(found)}")
    return found


def _described(value: cbor.Value) -> Described:
    found: Described = {}
    for name, said in cbor.as_map(value).items():
        if said is not None and not isinstance(said, str | int):  # a boolean is an int
            raise DecodeError("a description holds texts, numbers and booleans")
        found[cbor.as_text(name)] = said
    return found
