"""The PIN of a token, and the memory of one that was refused: a wrong PIN is never tried twice.

Tokens count wrong PINs and then lock, some for good, and a service that restarts would walk into
that by itself. So the outcome of each login is kept in a small file. It holds nothing derived from
the PIN, which would be easy to guess back: the place of the PIN, and which state of that file was
tried."""

import fcntl
import hashlib
import hmac
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vault_backends.uri import ASK, Ask, obtain, secret_path
from vault_backends.vault import Locked, VaultError

_BLIND_TRIES = 2  # logins whose outcome a crash swallowed, with a PIN that never was right


class WrongPin(Exception):
    """The token said no to the PIN."""


class Pin:
    """Gives out the PIN for one login attempt at a time, or refuses to."""

    def __init__(self, source: str, ask: Ask | None, state_dir: Path | None) -> None:
        self._source = source
        self._ask = ask
        self._state_dir = state_dir
        self._salt = os.urandom(16)
        self._wrong: bytes | None = None  # hash of a PIN refused in this process; never leaves it
        self._wrong_stamp: list[Any] | None = None

    def forget_refusal(self) -> None:
        self._wrong = self._wrong_stamp = None

    @contextmanager
    def attempt(self, module: str, token: str) -> Iterator[str]:
        """The PIN, for one login inside the block. WrongPin raised there is remembered."""
        stamp = self._stamp()
        if stamp is not None and stamp == self._wrong_stamp:
            raise self._refusal(token)
        with _marker(self._marker_path(module, token)) as marker:
            before = marker.read(stamp) if marker else {}
            if marker:
                self._check(before, token, marker.path)
            pin = self._fetch(token)
            if marker:
                marker.write(_trying(before, stamp))
            try:
                yield pin
            except WrongPin as error:
                self._wrong, self._wrong_stamp = self._digest(pin), stamp
                if marker:
                    marker.write({"stamp": stamp, "state": "failed"})
                raise Locked(
                    f"token {token} refused the PIN from {self._place()}: {error}",
                    hint="correct the PIN at its source; the same one is not tried again",
                ) from None
            except Exception:
                if marker:  # no verdict on the PIN: as if we had not tried
                    marker.write(before)
                raise
            if marker:
                marker.write({"stamp": stamp, "state": "ok", "good": True})

    def _fetch(self, token: str) -> str:
        pin = obtain(self._source, self._ask, f"the PIN of token {token}")
        if self._wrong is not None and hmac.compare_digest(self._wrong, self._digest(pin)):
            self._wrong_stamp = self._stamp()
            raise self._refusal(token)
        return pin

    def _digest(self, pin: str) -> bytes:
        return hashlib.sha256(self._salt + pin.encode()).digest()

    def _place(self) -> str:
        return "the answer" if self._source == ASK else self._source

    def _refusal(self, token: str) -> Locked:
        return Locked(
            f"token {token} refused this PIN from {self._place()} before; it is not tried again",
            hint="correct the PIN at its source",
        )

    def _stamp(self) -> list[Any] | None:
        """Which state of the PIN's file this is. None: nothing to compare (a person answers)."""
        if self._source == ASK:
            return None
        path = secret_path(self._source)
        if self._source.startswith("credential:"):
            # systemd writes a credential anew at each start: its times say nothing about a change.
            return [self._source, path.stat().st_size if path.exists() else 0]
        try:
            found = path.stat()
        except OSError:
            return [self._source]
        return [self._source, found.st_ino, found.st_mtime_ns, found.st_size]

    def _marker_path(self, module: str, token: str) -> Path | None:
        if self._state_dir is None or self._source == ASK:
            return None
        name = hashlib.sha256(f"{module}\0{token}".encode()).hexdigest()[:32]
        return self._state_dir / f"pin-{name}.json"

    def _check(self, before: dict[str, Any], token: str, marker: Path) -> None:
        hint = f"correct the PIN at its source; if it is right, remove {marker}"
        if before.get("state") == "failed":
            raise Locked(
                f"token {token} refused this PIN from {self._place()} before a restart; "
                "it is not tried again",
                hint=hint,
            )
        if before.get("tries", 0) >= _BLIND_TRIES:
            raise Locked(
                f"{_BLIND_TRIES} logins to token {token} broke off without an answer; "
                "the PIN may be wrong, and is not tried again",
                hint=hint,
            )


def _trying(before: dict[str, Any], stamp: list[Any] | None) -> dict[str, Any]:
    """What the file says while the login runs, for whoever finds it after a power cut. A PIN that
    was right once is not suspected."""
    if before.get("good"):
        return {"stamp": stamp, "state": "unknown", "good": True}
    return {"stamp": stamp, "state": "unknown", "tries": before.get("tries", 0) + 1}


class _Marker:
    """The file that survives, open and locked for the time of one login."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    def read(self, stamp: list[Any] | None) -> dict[str, Any]:
        """What is known about this state of the PIN. Half a file means: broke off once."""
        text = os.pread(self._fd, 4096, 0)
        try:
            found = json.loads(text) if text else {}
        except ValueError:
            return {"stamp": stamp, "state": "unknown", "tries": 1}
        return found if isinstance(found, dict) and found.get("stamp") == stamp else {}

    def write(self, record: dict[str, Any]) -> None:
        data = json.dumps(record).encode() + b"\n"
        os.pwrite(self._fd, data, 0)
        os.ftruncate(self._fd, len(data))
        os.fsync(self._fd)


@contextmanager
def _marker(path: Path | None) -> Iterator[_Marker | None]:
    if path is None:
        yield None
        return
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise VaultError(
            f"cannot keep the outcome of the login in {path}: {error.strerror}",
            hint="without it a wrong PIN could lock the token; make the folder writable",
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # two processes must not both try the same wrong PIN
        yield _Marker(path, fd)
    finally:
        os.close(fd)
