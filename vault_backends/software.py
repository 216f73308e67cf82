"""Keys in one file, sealed at rest; for devices without a token, for tokens that hold too little, and
for tests.

The file is JSON: how the sealing key is made, and one box (XChaCha20-Poly1305, the first part
bound to it) with every private key. The sealing key is in a file or a systemd credential, or comes
from a passphrase by argon2id, or is random and sealed by a token, which is then needed once per
process, to open the file. The vault file is replaced whole, under a lock, so that a power cut at
any moment leaves the old file or the new one, and two processes lose nothing of each other's."""

import base64
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, utils
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from nacl import pwhash
from nacl.exceptions import CryptoError
from nacl.secret import Aead
from nacl.utils import random

from vault_backends import open_vault
from vault_backends.uri import Ask, SoftwareUri, check_private, obtain, read_secret, secret_path
from vault_backends.vault import (
    Exists,
    Key,
    Kind,
    Locked,
    Misconfigured,
    NotFound,
    Provisions,
    Refused,
    Seals,
    Unsupported,
    Vault,
    VaultError,
    check_label,
)

# argon2id: about half a second on a small board. Read back from the file, so it may change.
_OPS, _MEMORY = 3, pwhash.argon2id.MEMLIMIT_INTERACTIVE
_MOST_OPS, _MOST_MEMORY = 16, 1 << 30  # a file that asks for more is refused, not obeyed

_SEALED_KEY = b"ockam-edge: the sealing key of a software vault"
_OTHER_SECRETS = b"ockam-edge: secrets beside the keys of a software vault"
_BLOB = b"\1"  # version of what seal() gives

_Private = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey


def open(uri: SoftwareUri, ask: Ask | None, state_dir: Path | None) -> Vault:
    return SoftwareVault(uri, ask, state_dir)


class _Stamp(NamedTuple):
    """Tells one state of the file from the next: every replacement is a new inode."""

    inode: int
    mtime: int
    size: int


class SoftwareVault:
    """The six methods over one sealed file."""

    kinds = frozenset(Kind)

    def __init__(
        self, uri: SoftwareUri, ask: Ask | None = None, state_dir: Path | None = None
    ) -> None:
        self._uri = uri
        self._path = uri.path
        self._ask = ask
        self._state_dir = state_dir
        self._closed = False
        self._stamp: _Stamp | None = None
        self._secrets: dict[str, tuple[Kind, bytes]] = {}
        self._ready: dict[Key, tuple[_Private, bytes]] = {}
        self._sealing: tuple[str, bytes] | None = None  # header text -> key; argon2id once per file
        if not self._path.parent.is_dir():
            raise Misconfigured(f"the folder of the vault {self._path} does not exist")

    def generate(self, kind: Kind, label: str) -> Key:
        check_label(label)
        with self._changing() as header:
            if label in self._secrets:
                raise Exists(f"{self._path} has a key {label!r} already")
            self._store(header, self._secrets | {label: (kind, _new_secret(kind))})
        return Key(kind, label)

    def keys(self) -> Iterator[Key]:
        self._load()
        return iter([Key(kind, label) for label, (kind, _) in self._secrets.items()])

    def public(self, key: Key) -> bytes:
        return self._key(key)[1]

    def sign(self, key: Key, data: bytes) -> bytes:
        private, _ = self._key(key)
        if isinstance(private, ed25519.Ed25519PrivateKey):
            return private.sign(data)
        r, s = utils.decode_dss_signature(private.sign(data, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    def delete(self, key: Key) -> None:
        with self._changing() as header:
            self._secret(key)
            self._store(header, {k: v for k, v in self._secrets.items() if k != key.label})

    def describe(self, key: Key) -> dict[str, Any]:
        self._key(key)
        return {
            "vault": "software",
            "path": str(self._path),
            "kind": key.kind.value,
            "label": key.label,
            "extractable": True,
        }

    # --- other secrets

    def provision(self) -> str:
        """With sealed-by, the seal key of that token is made; else there is nothing to make."""
        if self._uri.sealed_by is None:
            return "xchacha20-poly1305"
        with self._token(apart=False) as token:
            if not isinstance(token, Provisions):
                raise Unsupported(f"{self._uri.sealed_by} cannot seal")
            return token.provision()

    def seal(self, secret: bytes, aad: bytes) -> bytes:
        """Under a key of its own, made from the sealing key; the file is made if there is none."""
        with self._changing() as header:
            if self._stamp is None:
                self._store(header, {})
        return _BLOB + bytes(Aead(self._other_key(header)).encrypt(secret, aad))

    def unseal(self, blob: bytes, aad: bytes) -> bytes:
        header = self._load()
        if header is None:
            raise NotFound(f"there is no vault file {self._path}", hint="restore it from a backup")
        if blob[:1] != _BLOB:
            raise Refused("this is no sealed secret, or one of a newer version")
        try:
            return bytes(Aead(self._other_key(header)).decrypt(blob[1:], aad))
        except (CryptoError, ValueError):
            raise Refused(
                f"the sealed secret does not open with {self._path}: it was changed, or sealed for "
                "something else, or by another vault",
                hint="restore it from a backup",
            ) from None

    def _other_key(self, header: dict[str, Any]) -> bytes:
        derive = HKDF(hashes.SHA256(), Aead.KEY_SIZE, salt=None, info=_OTHER_SECRETS)
        return derive.derive(self._sealing_key(header))

    def close(self) -> None:
        self._closed = True
        self._forget()
        self._sealing = None

    # --- keys

    def _key(self, key: Key) -> tuple[_Private, bytes]:
        self._load()
        if key not in self._ready:
            private = _private(key.kind, self._secret(key))
            self._ready[key] = private, _public(private)
        return self._ready[key]

    def _secret(self, key: Key) -> bytes:
        kind, secret = self._secrets.get(key.label, (None, b""))
        if kind != key.kind:
            other = f" (it is {kind})" if kind else ""
            raise NotFound(f"{self._path} has no {key.kind} key {key.label!r}{other}")
        return secret

    # --- the file

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        """The only writer, with the newest content loaded; gives the header to write with."""
        self._check_open()
        try:
            with self._lock():
                yield self._load() or self._new_header()
        except OSError as error:
            raise VaultError(f"cannot change {self._path}: {error.strerror}") from error

    @contextmanager
    def _lock(self) -> Iterator[None]:
        # A file of its own, because the vault file is another one after each change.
        fd = os.open(
            f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)  # and with it the lock

    def _load(self) -> dict[str, Any] | None:
        """Bring `_secrets` up to date; the header, or None when there is no file yet."""
        self._check_open()
        try:
            found = check_private(self._path)
        except FileNotFoundError:
            self._forget()
            return None
        except OSError as error:
            raise VaultError(f"cannot read {self._path}: {error.strerror}") from error
        stamp = _Stamp(found.st_ino, found.st_mtime_ns, found.st_size)
        if stamp == self._stamp and self._sealing is not None:
            header: dict[str, Any] = json.loads(self._sealing[0])
            return header
        header, box = self._parse(self._path.read_bytes())
        secrets = self._unseal(header, box)
        self._forget()
        self._secrets, self._stamp = secrets, stamp
        return header

    def _parse(self, text: bytes) -> tuple[dict[str, Any], bytes]:
        try:
            whole = json.loads(text)
            box = base64.b64decode(whole.pop("box"), validate=True)
            if whole.get("version") != 1 or whole.get("kdf") not in _WITH:
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            raise self._damaged() from None
        return whole, box

    def _unseal(self, header: dict[str, Any], box: bytes) -> dict[str, tuple[Kind, bytes]]:
        aad = _canonical(header)
        try:
            plain = Aead(self._sealing_key(header)).decrypt(box, aad)
        except (CryptoError, ValueError):
            raise Locked(
                f"{self._path} does not open with {self._source()}: it is the wrong one, "
                "or the file is damaged",
                hint="give the key or passphrase this vault was made with, or restore a backup",
            ) from None
        return {
            label: (Kind(kind), bytes.fromhex(secret))
            for label, (kind, secret) in json.loads(plain).items()
        }

    def _store(self, header: dict[str, Any], secrets: dict[str, tuple[Kind, bytes]]) -> None:
        plain = {label: (kind.value, secret.hex()) for label, (kind, secret) in secrets.items()}
        box = Aead(self._sealing_key(header)).encrypt(
            json.dumps(plain).encode(), _canonical(header)
        )
        text = json.dumps(header | {"box": base64.b64encode(box).decode()})
        _replace(self._path, text.encode() + b"\n")
        self._stamp = None  # read it back: what the disk holds is what counts
        self._load()

    def _damaged(self) -> VaultError:
        return VaultError(f"{self._path} is not a vault file", hint="restore it from a backup")

    def _forget(self) -> None:
        self._stamp = None
        self._secrets = {}
        self._ready = {}

    def _check_open(self) -> None:
        if self._closed:
            raise VaultError(f"the vault {self._path} is closed")

    # --- the sealing key

    def _source(self) -> str:
        uri = self._uri
        return uri.key_source or uri.passphrase_source or uri.sealed_by or "the passphrase"

    def _new_header(self) -> dict[str, Any]:
        if self._uri.sealed_by is not None:
            return self._new_sealed_header()
        if self._uri.key_source is None:
            salt = random(pwhash.argon2id.SALTBYTES).hex()
            return {"version": 1, "kdf": "argon2id", "salt": salt, "ops": _OPS, "memory": _MEMORY}
        path = secret_path(self._uri.key_source)
        if self._uri.key_source.startswith("file:") and not os.path.lexists(path):
            if not path.parent.is_dir():
                raise Misconfigured(f"the folder of the key file {path} does not exist")
            _create(path, random(Aead.KEY_SIZE).hex().encode() + b"\n")
        return {"version": 1, "kdf": "file"}

    def _sealing_key(self, header: dict[str, Any]) -> bytes:
        text = _canonical(header).decode()
        if self._sealing is None or self._sealing[0] != text:
            attribute, what, make = _WITH[header["kdf"]]
            if getattr(self._uri, attribute) is None:
                hint = f"give {attribute.replace('_', '-')}"
                raise Misconfigured(f"{self._path} is sealed with {what}", hint=hint)
            self._sealing = text, make(self, header)
        return self._sealing[1]

    def _key_from_file(self, header: dict[str, Any]) -> bytes:
        assert self._uri.key_source is not None
        try:
            key = bytes.fromhex(read_secret(self._uri.key_source))
        except ValueError:
            key = b""
        if len(key) != Aead.KEY_SIZE:
            raise Locked(f"{self._uri.key_source}: a key file holds 64 hexadecimal digits")
        return key

    def _key_from_passphrase(self, header: dict[str, Any]) -> bytes:
        assert self._uri.passphrase_source is not None
        try:
            salt, ops, memory = (
                bytes.fromhex(header["salt"]),
                int(header["ops"]),
                int(header["memory"]),
            )
            if ops > _MOST_OPS or memory > _MOST_MEMORY or len(salt) != pwhash.argon2id.SALTBYTES:
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise self._damaged() from None
        secret = obtain(self._uri.passphrase_source, self._ask, f"the passphrase of {self._path}")
        key: bytes = pwhash.argon2id.kdf(
            Aead.KEY_SIZE, secret.encode(), salt, opslimit=ops, memlimit=memory
        )
        return key

    # --- the sealing key in a token's care

    @contextmanager
    def _token(self, *, apart: bool = True) -> Iterator[Vault]:
        """The token, for as long as it is needed, its code and its PIN out of this process, which may
        be one that faces the network. Its errors say which file they are about."""
        assert self._uri.sealed_by is not None
        token = open_vault(self._uri.sealed_by, self._ask, state_dir=self._state_dir, apart=apart)
        try:
            yield token
        except VaultError as error:
            raise type(error)(
                f"{self._path} is sealed by a token: {error}", hint=error.hint, retry=error.retry
            ) from error
        finally:
            token.close()

    def _new_sealed_header(self) -> dict[str, Any]:
        key = random(Aead.KEY_SIZE)
        with self._token() as token:
            sealed = _sealing(token).seal(key, _SEALED_KEY)
        header = {"version": 1, "kdf": "sealed", "sealed": base64.b64encode(sealed).decode()}
        self._sealing = _canonical(header).decode(), key
        return header

    def _key_from_token(self, header: dict[str, Any]) -> bytes:
        try:
            sealed = base64.b64decode(header["sealed"], validate=True)
        except (KeyError, TypeError, ValueError):
            raise self._damaged() from None
        with self._token() as token:
            return _sealing(token).unseal(sealed, _SEALED_KEY)


# How the sealing key is made -> what the URI must give for it, in words, and how to get it.
_WITH: dict[str, tuple[str, str, Callable[[SoftwareVault, dict[str, Any]], bytes]]] = {
    "file": ("key_source", "a key file", SoftwareVault._key_from_file),
    "argon2id": ("passphrase_source", "a passphrase", SoftwareVault._key_from_passphrase),
    "sealed": ("sealed_by", "a token", SoftwareVault._key_from_token),
}


def _sealing(token: Vault) -> Seals:
    if not isinstance(token, Seals):
        raise Unsupported("this vault cannot seal")
    return token


def _canonical(header: dict[str, Any]) -> bytes:
    return json.dumps(header, sort_keys=True).encode()


def _new_secret(kind: Kind) -> bytes:
    if kind is Kind.ED25519:
        return ed25519.Ed25519PrivateKey.generate().private_bytes_raw()
    return (
        ec.generate_private_key(ec.SECP256R1()).private_numbers().private_value.to_bytes(32, "big")
    )


def _private(kind: Kind, secret: bytes) -> _Private:
    if kind is Kind.ED25519:
        return ed25519.Ed25519PrivateKey.from_private_bytes(secret)
    return ec.derive_private_key(int.from_bytes(secret, "big"), ec.SECP256R1())


def _public(private: _Private) -> bytes:
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return private.public_key().public_bytes_raw()
    return private.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )


def _replace(path: Path, data: bytes) -> None:
    """The whole file or the one before, also after a power cut. Called under the lock, which is why
    one fixed name for the new file is enough and none is left behind."""
    new = _written(path, data)
    os.replace(new, path)
    _sync_folder(path)


def _create(path: Path, data: bytes) -> None:
    """Like `_replace`, but never over a file that is there: link fails where rename would
    overwrite."""
    new = _written(path, data)
    try:
        os.link(new, path)
    finally:
        os.unlink(new)
    _sync_folder(path)


def _written(path: Path, data: bytes) -> str:
    new = f"{path}.new"
    if os.path.lexists(new):
        os.unlink(new)  # a power cut left it
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(
        fd, "wb"
    ) as file:  # writes all of it or raises: a full disk must not shorten keys
        file.write(data)
        file.flush()
        os.fsync(fd)
    return new


def _sync_folder(path: Path) -> None:
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
