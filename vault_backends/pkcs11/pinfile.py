"""Files that hold a PIN: made once, and replaced so that no power cut loses the PIN.

A change of PIN has two steps that cannot be one, the token's and the file's. So the new PIN is on the
disk, in FILE.new, before the token hears of it, and takes FILE's place afterwards. Whoever finds both
tries FILE; only if the token refuses that PIN was the change done, and FILE.new takes its place."""

import os
import secrets
from pathlib import Path

from vault_backends.uri import read_secret
from vault_backends.vault import Exists, Misconfigured, VaultError

_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"  # nothing that looks like something else
_LENGTH = 24  # 118 bits; tokens that take less get what they take


def random_pin(shortest: int, longest: int | None) -> str:
    """As long as the token allows, at most 24 characters."""
    length = max(shortest, min(_LENGTH, longest or _LENGTH))
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def successor(path: Path) -> Path:
    return path.with_name(path.name + ".new")


def make(path: Path, pin: str) -> None:
    """A new file that only its owner reads, durable when this returns. Exists if it is there."""
    try:
        _write(path, pin)
    except FileExistsError:
        raise Exists(f"{path} exists already; it is not overwritten") from None
    except OSError as error:
        raise VaultError(f"cannot write {path}: {error.strerror}") from error


def prepare(path: Path, pin: str) -> None:
    """Put `pin` beside the one in `path`, which is still good."""
    discard(path)
    make(successor(path), pin)


def prepared(path: Path) -> str | None:
    """The PIN of a change that broke off, or None."""
    beside = successor(path)
    return read_secret(f"file:{beside}") if os.path.lexists(beside) else None


def discard(path: Path) -> None:
    """Forget what was prepared: the token never took it."""
    successor(path).unlink(missing_ok=True)


def succeed(path: Path) -> bool:
    """Let the prepared PIN take the place of the one in `path`; False where none was prepared."""
    beside = successor(path)
    if not os.path.lexists(beside):
        return False
    read_secret(f"file:{beside}")  # a file that others could have written takes nobody's place
    found = path.stat()
    if os.geteuid() == 0 and found.st_uid != 0:  # the service's user goes on reading it
        os.chown(beside, found.st_uid, found.st_gid, follow_symlinks=False)
    os.replace(beside, path)
    _sync(path.parent)
    return True


def _write(path: Path, pin: str) -> None:
    if not path.parent.is_dir():
        raise Misconfigured(f"the folder of the PIN file {path} does not exist")
    whole = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(fd, "w") as file:
            file.write(pin + "\n")
            file.flush()
            os.fsync(fd)
        os.link(whole, path)  # fails where a rename would overwrite
    finally:
        whole.unlink()
    _sync(path.parent)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
