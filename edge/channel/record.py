"""Records: what travels in an open channel, and the replay window (02 §7.1 to §7.3).

    record = nonce (8) || AES-256-GCM(key, 00000000 || nonce, no aad, plain) || tag (16)

This is the hot path, once per message and direction: a cipher object is made once per interval of
32 messages, its method is bound, and a message in order takes no branch that it does not need.
"""

from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from edge.errors import RecordError, StateError

Buffer = bytes | bytearray | memoryview
DecryptInto = Callable[[Buffer, Buffer, Buffer | None, Buffer], int]

OVERHEAD: Final = 24
INTERVAL: Final = 32
WINDOW: Final = 32
LAST_NONCE: Final = 2**64 - 1
"""Never used: here a direction has come to its end."""

_BITMAP: Final = 2**64 - 1
_REKEY_IV: Final = bytes(4) + b"\xff" * 8
_ZEROS: Final = bytes(32)


def next_key(cipher: AESGCM) -> bytes:
    """Rekey: the key of the following interval. There is no way back from it (02 §7.2)."""
    return cipher.encrypt(_REKEY_IV, _ZEROS, None)[:32]


class Sealer:
    """Seals the records of one direction; the counter and the rekeying are its own (02 §7.2)."""

    __slots__ = ("_boundary", "_cipher", "_encrypt_into", "_nonce")

    def __init__(self, key: bytes) -> None:
        self._nonce = 0
        self._boundary = INTERVAL
        self._use(AESGCM(key))

    @property
    def nonce(self) -> int:
        """The nonce of the next record."""
        return self._nonce

    def seal(self, plain: Buffer) -> bytes:
        out = bytearray(len(plain) + OVERHEAD)
        self.seal_into(plain, memoryview(out))
        return bytes(out)

    def seal_into(self, plain: Buffer, out: memoryview) -> int:
        """Write the record of `plain` at the start of `out`, which has room for `len(plain) + 24`
        bytes, and return its length. RecordError when the counter is at its end."""
        nonce = self._nonce
        if nonce >= self._boundary:
            self._turn()
        iv = nonce.to_bytes(12, "big")
        size = len(plain) + OVERHEAD
        try:
            self._encrypt_into(iv, plain, None, out[8:size])
        except ValueError as error:
            raise StateError("no room for the record") from error
        out[:8] = iv[4:]
        self._nonce = nonce + 1
        return size

    def _turn(self) -> None:
        """Enter the next interval, or fail at the last nonce."""
        if self._nonce >= LAST_NONCE:
            raise RecordError("the channel has sent its last record")
        self._use(AESGCM(next_key(self._cipher)))
        self._boundary = min(self._boundary + INTERVAL, LAST_NONCE)

    def _use(self, cipher: AESGCM) -> None:
        self._cipher = cipher
        self._encrypt_into = cipher.encrypt_into


class Opener:
    """Opens the records of one direction, in any order within the window, each once (02 §7.3).
    A record that fails changes nothing, and costs at most one Rekey."""

    __slots__ = ("_bitmap", "_cipher", "_decrypt_into", "_newest", "_previous", "_start")

    def __init__(self, key: bytes) -> None:
        self._newest = 0
        self._bitmap = 0  # bit i: the nonce `newest - i` was seen
        self._start = 0  # the first nonce of the current key
        self._previous: AESGCM | None = None
        self._use(AESGCM(key))

    @property
    def newest(self) -> int:
        """The highest nonce accepted so far."""
        return self._newest

    def open(self, record: Buffer) -> bytes:
        size = len(record) - OVERHEAD
        out = bytearray(max(size, 0))
        self.open_into(record, memoryview(out))
        return bytes(out)

    def open_into(self, record: Buffer, out: memoryview) -> int:
        """Write the plaintext of `record` at the start of `out`, which has room for
        `len(record) - 24` bytes, and return its length. After a RecordError `out` holds rubbish."""
        size = len(record) - OVERHEAD
        if size < 0:
            raise RecordError("too short for a record")
        # 1. The window.
        prefix = record[:8]
        nonce = int.from_bytes(prefix, "big")
        ahead = nonce - self._newest
        if ahead > 0:
            if ahead > WINDOW:
                raise RecordError("a nonce too far ahead")
            bitmap, newest = (self._bitmap << ahead | 1) & _BITMAP, nonce
        else:
            if ahead < -WINDOW:
                raise RecordError("a nonce too far behind")
            bit = 1 << -ahead
            if self._bitmap & bit:
                raise RecordError("a nonce that was used already")
            bitmap, newest = self._bitmap | bit, self._newest
        # 2. The key.
        offset = nonce - self._start
        if 0 <= offset < INTERVAL:
            fresh, decrypt_into = None, self._decrypt_into
        else:
            fresh, decrypt_into = self._other_key(offset)
        # 3. Decrypt.
        try:
            decrypt_into(nonce.to_bytes(12, "big"), record[8:], None, out[:size])
        except InvalidTag:
            raise RecordError("a record that does not decrypt") from None
        except ValueError as error:
            raise StateError("no room for the plaintext") from error
        # 4. Commit.
        self._bitmap, self._newest = bitmap, newest
        if fresh is not None:
            self._previous, self._start = self._cipher, self._start + INTERVAL
            self._use(fresh)
        return size

    def _other_key(self, offset: int) -> tuple[AESGCM | None, DecryptInto]:
        """The key for a nonce outside the current interval, `offset` from its start: the next one,
        fresh, or the one before. Between two accepted records there is at most one step."""
        if offset >= 2 * INTERVAL:
            raise RecordError("a nonce more than one key ahead")
        if offset >= INTERVAL:
            fresh = AESGCM(next_key(self._cipher))
            return fresh, fresh.decrypt_into
        if offset < -INTERVAL or self._previous is None:
            raise RecordError("a nonce more than one key behind")
        return None, self._previous.decrypt_into

    def _use(self, cipher: AESGCM) -> None:
        self._cipher = cipher
        self._decrypt_into: DecryptInto = cipher.decrypt_into
