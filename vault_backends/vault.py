"""What a vault is: the interface, its optional powers, and its errors."""

from collections.abc import Iterator
from enum import StrEnum
from typing import Any, NamedTuple, Protocol, runtime_checkable


class Kind(StrEnum):
    ED25519 = "ed25519"
    P256 = "p256"


class Key(NamedTuple):
    """Names one key in one vault. Holds no secret."""

    kind: Kind
    label: str


class Vault(Protocol):
    """Where private keys live. Synchronous; one thread at a time is the caller's business."""

    @property
    def kinds(self) -> frozenset[Kind]:
        """What this vault can hold; it never pretends."""
        ...

    def generate(self, kind: Kind, label: str) -> Key:
        """A new key, durable when this returns. Exists if the label is taken."""
        ...

    def keys(self) -> Iterator[Key]: ...

    def public(self, key: Key) -> bytes:
        """32 bytes, or 65 (uncompressed point) for P-256."""
        ...

    def sign(self, key: Key, data: bytes) -> bytes:
        """64 bytes. P-256 is ECDSA over SHA-256(data), as r || s."""
        ...

    def delete(self, key: Key) -> None: ...

    def close(self) -> None: ...


@runtime_checkable
class Seals(Protocol):
    """Can keep other secrets at rest under a key that never leaves the vault."""

    def seal(self, secret: bytes, aad: bytes) -> bytes: ...

    def unseal(self, blob: bytes, aad: bytes) -> bytes: ...


@runtime_checkable
class Provisions(Protocol):
    """Makes the key that `seal` needs: an act of its own, never part of sealing."""

    def provision(self) -> str:
        """How it seals. Makes the key if there is none; tests one that is there, and never replaces
        it."""
        ...


@runtime_checkable
class Attests(Protocol):
    """Can say where a key lives and how it is held."""

    def describe(self, key: Key) -> dict[str, Any]: ...


class TokenState(NamedTuple):
    """What a token says of itself without a PIN."""

    present: bool
    label: str = ""
    serial: str = ""
    manufacturer: str = ""
    model: str = ""
    pin_tried: bool = False  # a wrong PIN was entered since the last good one
    pin_final_try: bool = False
    pin_locked: bool = False


@runtime_checkable
class Token(Protocol):
    """A device that can be pulled out, locked, and come back."""

    def state(self) -> TokenState: ...

    def probe(self) -> None:
        """Ask the device for something real, without a PIN. DeviceGone if it does not answer."""
        ...

    def reopen(self) -> None:
        """Forget everything learnt from the device and log in again."""
        ...


@runtime_checkable
class Pins(Protocol):
    """Can be told what a key must be."""

    def pin(self, key: Key, public: bytes, serial: str = "") -> None:
        """From now on `key` must have this public key, whatever the device says; with `serial` a
        device with another serial number is refused before it is given the PIN."""
        ...


class VaultError(Exception):
    """What a vault raises. `hint` says what to do, `exit_code` what a command exits with, `retry`
    whether the same call may work later. Never carries a secret."""

    exit_code = 70
    retry = False

    def __init__(self, message: str, *, hint: str = "", retry: bool | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        if retry is not None:
            self.retry = retry


class NotFound(VaultError):
    """No such key, token or module."""


class NoSealKey(NotFound):
    """The vault is there, and has no key to seal with; unlike a vault that is not there."""


class Exists(VaultError):
    """The label or id is taken; nothing was made."""


class Unsupported(VaultError):
    """This vault cannot do that."""


class Locked(VaultError):
    """The secret that opens the vault is missing, wrong, or not to be tried again."""


class DeviceGone(VaultError):
    """The device stopped answering; the next call starts over."""

    retry = True


class Refused(VaultError):
    """Not done, because the result could not be trusted or the vault said no."""


class Misconfigured(VaultError):
    """The operator must change something; the message names it."""


def check_label(label: str, longest: int = 255) -> None:
    """A label must survive every token, a terminal and a URI."""
    if not label or not label.isprintable() or len(label.encode()) > longest:
        raise Misconfigured(
            f"a key label is 1 to {longest} bytes of printable text, not {label[:80]!r}"
        )
