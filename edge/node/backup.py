"""Backup of an authority: one file with all that makes it that authority again, on another machine.

A tar archive: `manifest.json` (node, settings, project, identities with their histories and where
their keys are), `registry.sqlite3` (members, tickets as hashes, changes) and, for keys in a software
vault, the vault file, sealed as it is. What opens a vault is never in it: neither the key file or
passphrase of a software vault, nor anything of a token. So the backup alone can sign nothing
(docs/decisions/0013-backup.md).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sqlite3
import tarfile
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

from edge.authority.sqlite import leap
from edge.errors import ConfigError
from edge.identity.history import Identifier
from edge.identity.project import Project
from edge.keyring import Ask
from edge.node.home import Home, check_name
from edge.node.identities import load
from edge.node.keys import check_held, opened
from edge.node.store import IdentityRecord, NodeRecord, Store
from edge.node.trustcontext import check_authority
from vault_backends.uri import SoftwareUri, check_private, parse
from vault_backends.vault import VaultError

FORMAT = "ockam-edge authority backup"
VERSION = 1
MANIFEST, REGISTRY, VAULTS = "manifest.json", "registry.sqlite3", "vaults/"
LARGEST = {MANIFEST: 1 << 22, REGISTRY: 1 << 32, VAULTS: 1 << 22}
"""Bytes of a part."""
HERE = "@home"
"""Stands in a vault's URI for the home, which is elsewhere after a restore."""


class Restored(NamedTuple):
    """What came of a restore."""

    node: str
    authority: str
    made_at: int


def registry_path(home: Home, name: str) -> Path:
    """Where the members and tokens of the authority NAME are, without PostgreSQL."""
    return home.root / f"authority-{check_name('a node', name)}.sqlite3"


# -- backup


def back_up(store: Store, home: Home, name: str | None, file: Path, now: int) -> NodeRecord:
    """Write the authority `name`, or the only one here, to `file`; it may run. Raises ConfigError."""
    node = _authority(store, name)
    parts: dict[str, bytes] = {}
    identities = _identities(store, node)
    vaults = {}
    for vault in sorted({record.vault for record in identities}):
        uri = store.vault(vault).uri
        vaults[vault] = uri.replace(str(home.root), HERE)
        parsed = parse(uri)
        if isinstance(parsed, SoftwareUri):
            check_private(parsed.path)
            parts[f"{VAULTS}{vault}"] = parsed.path.read_bytes()
    registry = registry_path(home, node.name)
    if registry.exists():
        parts[REGISTRY] = _snapshot(registry)
    project = next((one for one in store.projects() if one.id == _project_id(node)), None)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "made_at": now,
        "node": {
            "name": node.name,
            "identity": node.identity,
            "listener": node.listener,
            "settings": node.settings,
        },
        "identities": [_written(record) for record in identities],
        "vaults": vaults,
        "project": json.loads(project.model) if project is not None else None,
        "sha256": {part: hashlib.sha256(data).hexdigest() for part, data in parts.items()},
    }
    _write(file, {MANIFEST: json.dumps(manifest, indent=1, sort_keys=True).encode(), **parts})
    return node


def _authority(store: Store, name: str | None) -> NodeRecord:
    there = [node for node in store.nodes() if "authority" in node.settings.get("serves", {})]
    found = [node for node in there if name in (None, node.name)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(node.name for node in there)
    if not there:
        raise ConfigError("there is no authority here", hint="make one: ockam-edge project init")
    if name is not None:
        raise ConfigError(f"node {name} is no authority", hint=f"authorities here: {names}")
    raise ConfigError("which authority?", hint=f"name one with --at: {names}")


def _project_id(node: NodeRecord) -> str:
    return str(node.settings["serves"]["authority"]["project_id"])


def _identities(store: Store, node: NodeRecord) -> list[IdentityRecord]:
    """The authority's own, and those of this home that it trusts from the start."""
    trusted = node.settings["serves"]["authority"].get("trusted", {})
    return [
        record
        for record in store.identities()
        if record.name == node.identity or record.identifier in trusted
    ]


def _written(record: IdentityRecord) -> dict[str, Any]:
    return {**record._asdict(), "history": record.history.hex()}


def _snapshot(path: Path) -> bytes:
    """The database as of one moment, whoever writes meanwhile."""
    try:
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(":memory:")) as copy:
            source.backup(copy)
            return copy.serialize()
    except sqlite3.Error as error:
        raise ConfigError(f"cannot read the registry {path}: {error}") from None


def _write(file: Path, parts: Mapping[str, bytes]) -> None:
    """A whole file for this user only, or none."""
    unfinished = file.with_name(f".{file.name}.unfinished")
    try:
        fd = os.open(
            unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        with open(fd, "wb") as raw:
            with tarfile.open(fileobj=raw, mode="w") as archive:
                for name, data in parts.items():
                    info = tarfile.TarInfo(name)
                    info.size, info.mode = len(data), 0o600
                    archive.addfile(info, io.BytesIO(data))
            raw.flush()
            os.fsync(raw.fileno())
        unfinished.replace(file)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()
        raise ConfigError(f"cannot write {file}: {error.strerror}") from None


# -- restore


def restore(
    store: Store, home: Home, file: Path, *, vault: str | None = None, ask: Ask | None = None
) -> Restored:
    """Make what is in `file` again; `vault` is where the authority's key is now, if it has moved.
    Nothing that is here is overwritten, and what cannot be finished leaves nothing. ConfigError."""
    parts = _read(file)
    manifest = _checked(parts)
    name = manifest["node"]["name"]
    _refuse_taken(store, home, manifest)
    undo: list[Callable[[], object]] = []
    try:
        for vault_name, uri in _moved(manifest, vault).items():
            _put_vault(store, home, vault_name, uri, parts, undo)
        for one in manifest["identities"]:
            _put_identity(store, one, undo)
        _check_key(store, home, manifest["node"]["identity"], ask)
        if REGISTRY in parts:
            path = registry_path(home, name)
            _create(path, parts[REGISTRY])
            undo.append(path.unlink)
            leap(path)
        node = manifest["node"]
        store.add_node(
            name, identity=node["identity"], listener=node["listener"], settings=node["settings"]
        )
        undo.append(lambda: store.remove_node(name))
        if manifest["project"] is not None:
            project = Project.from_model(manifest["project"])
            store.put_project(project.name, project.id, json.dumps(project.model))
    except BaseException:
        for step in reversed(undo):
            step()
        raise
    return Restored(name, _owner(manifest)["identifier"], int(manifest["made_at"]))


def _owner(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """The identity of the authority."""
    name = manifest["node"]["identity"]
    found: Mapping[str, Any] = next(one for one in manifest["identities"] if one["name"] == name)
    return found


def _moved(manifest: Mapping[str, Any], vault: str | None) -> dict[str, str]:
    """URIs of the vaults by name; `vault` is that of the authority's key now."""
    vaults: dict[str, str] = dict(manifest["vaults"])
    return vaults if vault is None else vaults | {_owner(manifest)["vault"]: vault}


def _read(file: Path) -> dict[str, bytes]:
    try:
        with tarfile.open(file, "r:") as archive:
            found = {}
            for info in archive:
                kind = VAULTS if info.name.startswith(VAULTS) else info.name
                if not info.isreg() or info.size > LARGEST.get(kind, -1):
                    raise tarfile.TarError
                data = archive.extractfile(info)
                assert data is not None
                found[info.name] = data.read()
            return found
    except tarfile.TarError:
        raise _no_backup(file) from None
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None


def _no_backup(file: Path | str) -> ConfigError:
    return ConfigError(
        f"{file} is no backup of an authority, or is damaged",
        hint="give a file that ockam-edge authority backup wrote",
    )


def _checked(parts: Mapping[str, bytes]) -> dict[str, Any]:
    """The manifest, when the other parts are those that it speaks of."""
    try:
        manifest: dict[str, Any] = json.loads(parts[MANIFEST])
        if manifest["format"] != FORMAT:
            raise ValueError
        if manifest["version"] > VERSION:
            raise ConfigError(
                f"the backup has version {manifest['version']}, this program knows {VERSION}",
                hint="use the newer ockam-edge",
            )
        sums = {
            part: hashlib.sha256(data).hexdigest()
            for part, data in parts.items()
            if part != MANIFEST
        }
        if manifest["sha256"] != sums:
            raise ValueError
        for name in (manifest["node"]["name"], *manifest["vaults"]):
            check_name("a part of the backup", name)
        for one in manifest["identities"]:
            Identifier.parse(one["identifier"])
            bytes.fromhex(one["history"])
        _owner(manifest)
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration):
        raise _no_backup("the file") from None
    return manifest


def _refuse_taken(store: Store, home: Home, manifest: Mapping[str, Any]) -> None:
    node = manifest["node"]["name"]
    taken = {
        f"a node named {node}": node in {one.name for one in store.nodes()},
        f"the file {registry_path(home, node)}": registry_path(home, node).exists(),
    }
    for record in store.identities():
        for one in manifest["identities"]:
            same = record.identifier == one["identifier"]
            if (record.name == one["name"]) != same:
                taken[f"the identity {record.name}"] = True
    for what, there in taken.items():
        if there:
            raise ConfigError(
                f"{what} is here already, and nothing is overwritten",
                hint="restore into a fresh home (OCKAM_HOME), or delete that first",
            )
    if manifest["project"] is not None:
        check_authority(store, Project.from_model(manifest["project"]))


def _put_vault(
    store: Store,
    home: Home,
    name: str,
    uri: str,
    parts: Mapping[str, bytes],
    undo: list[Callable[[], object]],
) -> None:
    wanted = uri.replace(HERE, str(home.root))
    parsed = parse(wanted)
    there = {one.name: one.uri for one in store.vaults()}
    if there.setdefault(name, wanted) != wanted:
        raise ConfigError(
            f"the vault {name} is here already, and another one",
            hint="restore into a fresh home (OCKAM_HOME)",
        )
    sealed = parts.get(f"{VAULTS}{name}")
    if isinstance(parsed, SoftwareUri) and sealed is not None and not parsed.path.exists():
        _create(parsed.path, sealed)
        undo.append(parsed.path.unlink)
    if name not in {one.name for one in store.vaults()}:
        store.add_vault(name, wanted)
        undo.append(lambda: store.remove_vault(name))


def _put_identity(store: Store, one: Mapping[str, Any], undo: list[Callable[[], object]]) -> None:
    if one["identifier"] in {record.identifier for record in store.identities()}:
        return
    keys = ("identifier", "vault", "kind", "label", "serial", "module")
    history = bytes.fromhex(one["history"])
    store.add_identity(one["name"], history=history, **{key: one[key] for key in keys})
    undo.append(lambda: store.remove_identity(one["name"]))


def _check_key(store: Store, home: Home, name: str, ask: Ask | None) -> None:
    """Before anything runs: is the key there?"""
    identity = load(store, name)
    try:
        with opened(identity.uri, ask, home) as held:
            check_held(held, identity)
    except (VaultError, OSError) as error:
        hint = getattr(error, "hint", "")
        raise ConfigError(
            f"the authority's key cannot be used here: {error}",
            hint=_what_is_missing(identity.uri) or hint,
        ) from None


def _what_is_missing(uri: str) -> str:
    parsed = parse(uri)
    source = parsed.key_source if isinstance(parsed, SoftwareUri) else None
    if source is None or not source.startswith("file:"):
        return ""
    path = source.removeprefix("file:")
    if os.path.exists(path):
        return ""
    return f"put the key file of the old machine at {path}: it is never part of a backup"


def _create(path: Path, data: bytes) -> None:
    """A new file for this user only, whole on the disk."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None
