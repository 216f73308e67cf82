"""The key store of tpm2-pkcs11, read without it: where it is, and how a key's TPM blobs come out.

The module keeps each key as the two blobs the TPM gave it, in an SQLite file, with the key's own
authorization beside them, encrypted. The key to that is sealed in the TPM, and opens with a hash of
the PIN. Facts from tpm2-pkcs11's docs/ARCHITECTURE.md and DB schema version 8 (1.9.0)."""

import hashlib
import os
import re
import sqlite3
from pathlib import Path
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vault_backends.tpm.commands import Made, Tpm
from vault_backends.tpm.structures import Malformed, Reader, digest, u16
from vault_backends.vault import Misconfigured, NotFound, Refused, Unsupported

FILE = "tpm2_pkcs11.sqlite3"
_SCHEMAS = range(4, 9)  # 4 brought the form of the primary object that is read here
# The pairs of the YAML map that both libyaml and PyYAML write in canonical form.
_PAIR = re.compile(r'\? !!(?:int|str) "([^"]*)"\s*: !!(?:int|str|bool) "([^"]*)"')
_CLASS, _LABEL = "0", "3"
_PRIVATE = "3"  # CKO_PRIVATE_KEY
_AUTH, _PUBLIC_BLOB, _PRIVATE_BLOB = "2399141889", "2399141890", "2399141891"
_BLOBS = {_PUBLIC_BLOB, _PRIVATE_BLOB}


class StoredKey(NamedTuple):
    """A key of the store: blobs without their outer size, and its authorization, still wrapped."""

    public: bytes
    private: bytes
    wrapped_auth: str
    sealed_public: bytes
    sealed_private: bytes
    salt: str
    parent: int
    parent_auth: bytes

    def authorization(self, tpm: Tpm, pin: str) -> bytes:
        """The key's own auth value. Locked if the PIN is wrong, which the TPM counts."""
        parent = self.parent_key(tpm)
        auth = hashlib.sha256(pin.encode() + self.salt.encode()).hexdigest()[:32].encode()
        sealed = (self.sealed_public, self.sealed_private)
        with tpm.loaded(self.parent, *sealed, self.parent_auth) as handle:
            name = u16(int.from_bytes(self.sealed_public[2:4], "big"))
            name += digest(int.from_bytes(name, "big"), self.sealed_public)
            wrapping = tpm.unseal(handle, name, auth, parent)
        return _unwrap(wrapping, self.wrapped_auth)

    def parent_key(self, tpm: Tpm) -> Made:
        public = tpm.read_public(self.parent)
        if public is None:
            raise NotFound(
                f"the TPM has no key at {self.parent:#x}, which the tpm2-pkcs11 store is under",
                hint="the TPM was cleared or exchanged: the keys of this store are lost",
            )
        return Made(self.parent, public)


def store_folder(folder: str | None = None) -> Path:
    """Where the module looks, in its order. NotFound if no store is there."""
    given = folder or os.environ.get("TPM2_PKCS11_STORE")
    home = Path(os.environ.get("HOME", "/nonexistent")) / ".tpm2_pkcs11"
    places = [Path(given)] if given else [Path("/etc/tpm2_pkcs11"), home]
    for place in places:
        if (place / FILE).is_file():
            return place
    raise NotFound(
        f"there is no tpm2-pkcs11 store in {' or '.join(map(str, places))}",
        hint="set TPM2_PKCS11_STORE to the folder that holds " + FILE,
    )


def find_key(folder: Path, token: str | None, label: str, point: bytes) -> StoredKey:
    """The private key with this label and public point, in the token of that name (any for None)."""
    path = folder / FILE
    try:
        with _Opened(path) as database:
            return _find(database, token, label, point)
    except (sqlite3.Error, ValueError, KeyError) as error:
        raise Misconfigured(
            f"{path} is no store of tpm2-pkcs11 that is known here: {error}"
        ) from None


class _Opened:
    """The database, for reading, for the length of a `with`."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=5)

    def __enter__(self) -> sqlite3.Connection:
        return self._connection

    def __exit__(self, *_: object) -> None:
        self._connection.close()


_KEYS = """
SELECT o.attrs, s.userpub, s.userpriv, s.userauthsalt, p.config, p.objauth
FROM tobjects o JOIN tokens t ON o.tokid = t.id JOIN sealobjects s ON s.tokid = t.id
JOIN pobjects p ON t.pid = p.id WHERE ?1 IS NULL OR t.label = ?1"""


def _find(database: sqlite3.Connection, token: str | None, label: str, point: bytes) -> StoredKey:
    (version,) = database.execute("SELECT schema_version FROM schema").fetchone() or (0,)
    if version not in _SCHEMAS:
        raise Unsupported(f"a tpm2-pkcs11 store of schema {version}: known are 4 to 8")
    for attributes, *row in database.execute(_KEYS, (token,)):
        pairs = dict(_PAIR.findall(attributes))
        named = bytes.fromhex(pairs.get(_LABEL, "")) == label.encode()
        if pairs.get(_CLASS) != _PRIVATE or not named or not pairs.keys() >= _BLOBS:
            continue
        found = _stored(pairs, *row)
        # Labels repeat; the point is the key. It is the end of its public area: two sized halves.
        if found.public.endswith(point[1:33] + u16(32) + point[33:]):
            return found
    raise NotFound(f"the tpm2-pkcs11 store has no key {label!r} with the identity's public key")


def _stored(
    pairs: dict[str, str], sealed_public: bytes, sealed_private: bytes, salt: str,
    config: str, parent_auth: str,
) -> StoredKey:  # fmt: skip
    primary = dict(_PAIR.findall(config))
    if primary.get("transient") != "false":
        raise Unsupported(
            "this tpm2-pkcs11 store is under a transient primary key",
            hint="initialise the token so that its primary key is persistent",
        )
    if not sealed_public or not sealed_private:
        raise Refused("this token has no user PIN")
    return StoredKey(
        public=_unsized(bytes.fromhex(pairs[_PUBLIC_BLOB])),
        private=_unsized(bytes.fromhex(pairs[_PRIVATE_BLOB])),
        wrapped_auth=bytes.fromhex(pairs.get(_AUTH, "")).decode(),
        sealed_public=_unsized(sealed_public),
        sealed_private=_unsized(sealed_private),
        salt=salt,
        parent=int(primary["esys-tr"][:8], 16),  # an ESYS_TR, serialized, starts with the handle
        parent_auth=(parent_auth or "").encode(),
    )


def _unsized(blob: bytes) -> bytes:
    reader = Reader(blob)
    data = reader.sized()
    reader.end()
    return data


def _unwrap(wrapping: bytes, text: str) -> bytes:
    """AES-256-GCM; `iv:tag:ciphertext`, each in hex; the key is hex, too."""
    try:
        iv, tag, sealed = map(bytes.fromhex, text.split(":"))
        key = bytes.fromhex(wrapping.decode())
        return AESGCM(key).decrypt(iv, sealed + tag, None)
    except (ValueError, InvalidTag):
        raise Malformed(
            "the tpm2-pkcs11 store does not open with the key sealed in the TPM"
        ) from None
