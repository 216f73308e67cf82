"""An identity: the list of its changes, each announcing a signing key (02 §3)."""

from enum import Enum, auto
from hashlib import sha256
from typing import NamedTuple, Self

from edge.errors import DecodeError, TrustError
from edge.identity.keys import PublicKey, Sign, Signature, signed
from edge.identity.versioned import HASH_BYTES, read_versioned, versioned_data
from edge.wire import cbor

KEY_LIFETIME = 315_360_000
"""Ten years of 365 days: how long upstream lets an identity key attest (02 §3.2)."""
MAX_CHANGES = 64
"""Each costs two verifications before its owner is known to be anybody: strangers choose how many."""

_CHANGE = 1  # the type number of versioned data


class Identifier(bytes):
    """The hash of an identity's first change, for life; written `I` and 64 lowercase digits."""

    def __new__(cls, value: bytes) -> Self:
        if len(value) != HASH_BYTES:
            raise DecodeError(f"an identifier has {HASH_BYTES} bytes, not {len(value)}")
        return super().__new__(cls, value)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text form: surrounding space goes, hex digits of either case (02 §3.6)."""
        digits = text.strip()
        try:
            if len(digits) != 65 or digits[0] != "I":
                raise ValueError
            return cls(bytes.fromhex(digits[1:]))
        except ValueError:
            raise DecodeError(f"not an identifier: {text[:80]!r}") from None

    def __str__(self) -> str:
        return f"I{self.hex()}"

    def __repr__(self) -> str:
        return f"Identifier({self})"


class Change(NamedTuple):
    """One change as it arrived. `data` is what was signed; its hash names the change (02 §3.1)."""

    data: bytes
    signature: Signature
    previous_signature: Signature | None
    hash: bytes
    previous: bytes | None
    key: PublicKey
    revoke: bool
    valid_from: int
    valid_until: int

    def structure(self) -> list[object]:
        found: list[object] = [self.data, self.signature.structure()]
        return [*found, self.previous_signature.structure()] if self.previous_signature else found


class Comparison(Enum):
    """What another history is, seen from ours (02 §3.4)."""

    SAME = auto()
    NEWER = auto()
    OLDER = auto()
    CONFLICT = auto()


class ChangeHistory:
    """The changes of one identity, and the bytes they arrived in."""

    __slots__ = ("changes", "encoded", "identifier")

    def __init__(self, encoded: bytes, changes: tuple[Change, ...]) -> None:
        self.encoded = encoded
        self.changes = changes
        self.identifier = Identifier(changes[0].hash)

    @property
    def latest(self) -> Change:
        return self.changes[-1]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChangeHistory) and self.encoded == other.encoded

    def __hash__(self) -> int:
        return hash(self.encoded)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Steps 1 and 2 of verification (02 §3.3): not empty, and every change decodes."""
        value, end = cbor.decode_prefix(data)
        changes = cbor.as_list(value)
        if not changes:
            raise DecodeError("a change history without a change")
        if len(changes) > MAX_CHANGES:
            raise DecodeError(f"a change history of more than {MAX_CHANGES} changes")
        return cls(bytes(data[:end]), tuple(_read_change(change) for change in changes))

    def verify(self, expected: Identifier | None = None) -> None:
        """Raise TrustError unless every change follows from the one before it (02 §3.3)."""
        # 1, 2: done by decode(). 4, first part: versions cannot go down, there is only one.
        first = self.changes[0]
        # 3. Nothing precedes the first change; a previous signature on it is ignored.
        if first.previous is not None:
            raise TrustError("the first change names a change before it")
        # 5. The first change signs itself.
        first.signature.check(first.key, first.data, "first change")
        for before, change in zip(self.changes, self.changes[1:], strict=False):
            _check_succession(before, change)
        # 6. The identifier is the one expected.
        if expected is not None and self.identifier != expected:
            raise TrustError(f"the history is of {self.identifier}, not of {expected}")

    def compare(self, other: "ChangeHistory") -> Comparison:
        """What is `other`, seen from us? Pairwise over the common length (02 §3.4)."""
        for ours, theirs in zip(self.changes, other.changes, strict=False):
            if ours.hash != theirs.hash:
                return Comparison.CONFLICT
        if len(other.changes) == len(self.changes):
            return Comparison.SAME
        longer = len(other.changes) > len(self.changes)
        return Comparison.NEWER if longer else Comparison.OLDER

    def rotated(
        self,
        new_key: PublicKey,
        sign_new: Sign,
        sign_old: Sign,
        *,
        valid_from: int,
        valid_until: int,
    ) -> "ChangeHistory":
        """This history and one more change, signed by both keys and verified (02 §3.5). Persist it
        before the old key is destroyed."""
        data = _change_data(self.latest.hash, new_key, valid_from, valid_until)
        change = [
            data,
            signed(new_key, sign_new, data, "new key").structure(),
            signed(self.latest.key, sign_old, data, "old key").structure(),
        ]
        history = _assembled([*(one.structure() for one in self.changes), change])
        history.verify(self.identifier)
        return history


def create(key: PublicKey, sign: Sign, *, valid_from: int, valid_until: int) -> ChangeHistory:
    """A new identity with one change, verified (02 §3.2)."""
    data = _change_data(None, key, valid_from, valid_until)
    history = _assembled([[data, signed(key, sign, data, "new key").structure()]])
    history.verify()
    return history


def _change_data(
    previous: bytes | None, key: PublicKey, valid_from: int, valid_until: int
) -> bytes:
    return versioned_data(_CHANGE, [previous, key.structure(), False, valid_from, valid_until])


def _assembled(changes: list[object]) -> ChangeHistory:
    return ChangeHistory.decode(cbor.encode(changes))


def _read_change(value: object) -> Change:
    fields = cbor.as_list(value, 2)
    data = cbor.as_bytes(fields[0])
    previous, key, revoke, valid_from, valid_until = read_versioned(data, _CHANGE)
    return Change(
        data=data,
        signature=Signature.read(fields[1]),
        previous_signature=_read_optional_signature(fields[2] if len(fields) > 2 else None),
        hash=sha256(data).digest(),
        previous=None if previous is None else cbor.as_bytes(previous, HASH_BYTES),
        key=PublicKey.read(key),
        revoke=cbor.as_bool(revoke),
        valid_from=cbor.as_int(valid_from),
        valid_until=cbor.as_int(valid_until),
    )


def _read_optional_signature(value: object) -> Signature | None:
    """In an optional field an unknown variant counts as absent (02 §2)."""
    if value is None:
        return None
    return Signature.read(value) if cbor.variant(value)[0] in (0, 1) else None


def _check_succession(before: Change, change: Change) -> None:
    """Steps 4 and 5 of 02 §3.3 for a change and its predecessor."""
    # 4. It does not go back in time, and it names its predecessor.
    if change.valid_from < before.valid_from:
        raise TrustError("a change is valid from before its predecessor")
    if change.previous != before.hash:
        raise TrustError("a change does not name its predecessor")
    # 5. Both keys signed it.
    change.signature.check(change.key, change.data, "change")
    if change.previous_signature is None:
        raise TrustError("a change without the signature of the key before it")
    change.previous_signature.check(before.key, change.data, "change, by the key before it")
