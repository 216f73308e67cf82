"""What is remembered of the logins to one token, in a file that a power cut leaves whole.

    state      new, unknown (a login began and nobody wrote how it ended), ok, or failed
    broken     how many logins in a row ended as unknown
    refused    a tag of each PIN that the token refused
    unclear    how many logins in a row failed for another reason than the PIN, the last of them `at`
    tried      while unknown: the tag of the PIN being tried, where it lies in a file anyway
    counted    while unknown: whether the token counted a wrong PIN before that login

A tag is one byte of a hash. The same PIN always has the same tag, so a refused one is recognised for
ever; and of a million PINs four thousand have it, so it tells nobody what was typed. It is without
salt on purpose: salts would add up to more than one byte. See docs/decisions, "The PIN"."""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from vault_backends.vault import DeviceGone, VaultError

_STATES = ("new", "unknown", "ok", "failed")
_PATIENCE = 30.0  # seconds to wait for another process that is logging in to the same token
_LONGEST = 65536


@dataclass(frozen=True)
class Record:
    state: str = "new"
    broken: int = 0
    refused: tuple[str, ...] = ()
    tried: str | None = None
    counted: bool = False
    unclear: int = 0
    at: float = 0.0

    def trying(self, tag: str | None, counted: bool) -> "Record":
        """To be written before the login: what it means if nothing is written after it."""
        broken = self.broken + 1
        return Record("unknown", broken, self.refused, tag, counted, self.unclear, self.at)

    def was_refused(self, counted: bool) -> bool:
        """Whether the login that broke off was with a wrong PIN: the token `counted` none before,
        and does now."""
        return self.state == "unknown" and self.broken > 0 and counted and not self.counted

    def accepted(self) -> "Record":
        return Record("ok", refused=self.refused)

    def failed(self, tag: str) -> "Record":
        return Record("failed", refused=tuple(sorted({*self.refused, tag})))

    def without_verdict(self, now: float) -> "Record":
        """It ended, and not for the PIN's sake; as if we had not tried, but for the count."""
        return replace(self, unclear=self.unclear + 1, at=now)

    def fresh(self) -> "Record":
        """The broken-off logins were with another PIN."""
        return Record(self.state, 0, self.refused)


# A file that is no record: somebody's login broke off, and the next one is the last without a word.
_SPOILT = Record("unknown", 1)


class Memory(Protocol):
    """Where a Record is kept, ours alone while it is open."""

    path: Path | None

    def read(self) -> Record: ...

    def write(self, record: Record) -> None: ...

    def tag(self, pin: str) -> str: ...


def _digest(pin: str) -> str:
    return hashlib.sha256(b"ockam-edge refused PIN\0" + pin.encode()).hexdigest()


class Unwritten:
    """For this process only: nothing reaches a disk, so a tag may be a whole hash."""

    path: Path | None = None

    def __init__(self) -> None:
        self._record = Record()

    def read(self) -> Record:
        return self._record

    def write(self, record: Record) -> None:
        self._record = record

    def tag(self, pin: str) -> str:
        return _digest(pin)


class Marker:
    """The file, under the lock that open_marker() holds."""

    def __init__(self, path: Path, folder: int) -> None:
        self.path: Path | None = path
        self._name = path.name
        self._folder = folder

    def read(self) -> Record:
        """What the last login left. VaultError if the file cannot be read: not knowing is no leave
        to try."""
        try:
            fd = os.open(
                self._name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._folder
            )
            try:
                return _parsed(os.read(fd, _LONGEST))
            finally:
                os.close(fd)
        except FileNotFoundError:
            return Record()
        except OSError as error:
            raise _unkept(self.path, error) from None

    def write(self, record: Record) -> None:
        """Replace the file; durable when this returns, whole at every moment before."""
        beside = f".{self._name}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(beside, flags, 0o600, dir_fd=self._folder)
            with os.fdopen(fd, "wb") as file:
                file.write(json.dumps(asdict(record)).encode() + b"\n")
                file.flush()
                os.fsync(fd)
            os.rename(beside, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            os.fsync(self._folder)
        except OSError as error:
            raise _unkept(self.path, error) from None

    def tag(self, pin: str) -> str:
        return _digest(pin)[:2]


def _parsed(data: bytes) -> Record:
    try:
        found: Any = json.loads(data)
        record = Record(
            found["state"],
            int(found["broken"]),
            tuple(map(str, found["refused"])),
            found["tried"],
            found.get("counted") is True,
            int(found.get("unclear", 0)),
            float(found.get("at", 0.0)),
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return _SPOILT
    return record if record.state in _STATES else _SPOILT


@contextmanager
def open_marker(path: Path) -> Iterator[Marker]:
    """The marker at `path`, for one process at a time. DeviceGone if another one keeps it."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _unkept(path, error) from None
    try:
        lock = _locked(path, folder)
        try:
            yield Marker(path, folder)
        finally:
            os.close(lock)
    finally:
        os.close(folder)


def _locked(path: Path, folder: int) -> int:
    """Two processes must not both try the same wrong PIN. The lock is a file of its own, since the
    marker is replaced at each write."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(f"{path.stem}.lock", flags, 0o600, dir_fd=folder)
    except OSError as error:
        raise _unkept(path, error) from None
    deadline = time.monotonic() + _PATIENCE
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        if time.monotonic() > deadline:
            os.close(fd)
            raise DeviceGone(
                f"another process has been logging in to the token for {_PATIENCE:.0f} s",
                hint="if it hangs, end it; the next call tries again",
            )
        time.sleep(0.02)


def _unkept(path: Path | None, error: OSError) -> VaultError:
    return VaultError(
        f"cannot keep the outcome of the login in {path}: {error.strerror}",
        hint="without it a wrong PIN could lock the token; make the folder writable",
    )
