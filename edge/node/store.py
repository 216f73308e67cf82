"""Store: what was configured, in SQLite. The only SQL of the node.

What a method has written when it returns survives a kill and a power cut: write-ahead log, and the disk
is waited for at every commit. Commands and the node use the same file at the same time.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from edge.errors import ConfigError

GUARDED = ("tcp-outlet", "tcp-inlet")
"""Kinds of resources that have a policy by their name; two may share a name, and so a policy."""
BUSY = 10_000
"""Milliseconds to wait for another process that writes."""

SCHEMA = """
CREATE TABLE vault (
    name TEXT PRIMARY KEY, uri TEXT NOT NULL, is_default INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE identity (
    name TEXT PRIMARY KEY, identifier TEXT NOT NULL UNIQUE, vault TEXT NOT NULL REFERENCES vault(name),
    kind TEXT NOT NULL, label TEXT NOT NULL, history BLOB NOT NULL,
    is_default INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE node (
    name TEXT PRIMARY KEY, identity TEXT NOT NULL REFERENCES identity(name), listener TEXT,
    settings TEXT NOT NULL DEFAULT '{}', is_default INTEGER NOT NULL DEFAULT 0,
    wanted TEXT NOT NULL DEFAULT 'running' CHECK (wanted IN ('running', 'stopped'))
) STRICT;
CREATE TABLE resource (
    node TEXT NOT NULL REFERENCES node(name) ON DELETE CASCADE, kind TEXT NOT NULL, name TEXT NOT NULL,
    spec TEXT NOT NULL, source TEXT NOT NULL CHECK (source IN ('command', 'file')),
    created INTEGER NOT NULL, PRIMARY KEY (node, kind, name)
) STRICT;
CREATE TABLE pin (
    node TEXT NOT NULL REFERENCES node(name) ON DELETE CASCADE, resource TEXT NOT NULL,
    position INTEGER NOT NULL, identifier TEXT NOT NULL, PRIMARY KEY (node, resource, position)
) STRICT;
CREATE TABLE peer (identifier TEXT PRIMARY KEY, history BLOB NOT NULL) STRICT;
CREATE TABLE time_floor (key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
"""

MIGRATIONS = (
    # What identities in tokens need: where a key was when it was made, and keys in the making or going.
    """
    ALTER TABLE identity ADD COLUMN serial TEXT NOT NULL DEFAULT '';
    ALTER TABLE identity ADD COLUMN module TEXT NOT NULL DEFAULT '';
    CREATE TABLE unsettled (
        identity TEXT NOT NULL, vault TEXT NOT NULL REFERENCES vault(name), kind TEXT NOT NULL,
        label TEXT NOT NULL, what TEXT NOT NULL CHECK (what IN ('making', 'going')),
        PRIMARY KEY (vault, label)
    ) STRICT;
    """,
    # Policies have a table of their own, by name or by type of resource; the other one is empty.
    """
    CREATE TABLE policy (
        node TEXT NOT NULL REFERENCES node(name) ON DELETE CASCADE, resource TEXT NOT NULL,
        type TEXT NOT NULL, expression TEXT NOT NULL, PRIMARY KEY (node, resource, type)
    ) STRICT;
    INSERT INTO policy SELECT node, name, '', json_extract(spec, '$.allow') FROM resource
        WHERE json_extract(spec, '$.allow') IS NOT NULL;
    UPDATE resource SET spec = json_remove(spec, '$.allow');
    """,
    # Secrets of an identity (sealed.py). No uri: the vault of the identity seals.
    """
    CREATE TABLE data_key (
        identifier TEXT PRIMARY KEY REFERENCES identity(identifier) ON DELETE CASCADE,
        uri TEXT, sealed BLOB NOT NULL
    ) STRICT;
    CREATE TABLE sealed (
        identifier TEXT NOT NULL REFERENCES data_key(identifier) ON DELETE CASCADE,
        name TEXT NOT NULL, version INTEGER NOT NULL, record BLOB NOT NULL,
        node TEXT REFERENCES node(name) ON DELETE CASCADE, PRIMARY KEY (identifier, name)
    ) STRICT;
    """,
    # Projects, and credentials of ours by who made them and what for.
    """
    CREATE TABLE project (
        name TEXT PRIMARY KEY, id TEXT NOT NULL UNIQUE, model TEXT NOT NULL,
        is_default INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE TABLE credential (
        subject TEXT NOT NULL, issuer TEXT NOT NULL, scope TEXT NOT NULL, credential BLOB NOT NULL,
        expires_at INTEGER NOT NULL, PRIMARY KEY (subject, issuer, scope)
    ) STRICT;
    """,
    # Policies come from a command or from the configuration, as resources do.
    """
    ALTER TABLE policy ADD COLUMN source TEXT NOT NULL DEFAULT 'command'
        CHECK (source IN ('command', 'file'));
    """,
    # Who is no member any more, or another one, as a node was told: it holds over a restart.
    """
    CREATE TABLE revocation (
        node TEXT NOT NULL REFERENCES node(name) ON DELETE CASCADE, identifier TEXT NOT NULL,
        number INTEGER NOT NULL, removed INTEGER NOT NULL, at INTEGER NOT NULL,
        PRIMARY KEY (node, identifier)
    ) STRICT;
    """,
)
"""What makes version n + 2 of n + 1, in this order. Only ever added to."""
VERSION = 1 + len(MIGRATIONS)


class VaultRecord(NamedTuple):
    """A vault, by name."""

    name: str
    uri: str
    is_default: bool


class IdentityRecord(NamedTuple):
    """An identity of ours, and where its key is. `serial` and `module` are those of the token that the
    key was made in, empty where there is none; its public key is in the latest change."""

    name: str
    identifier: str
    vault: str
    kind: str
    label: str
    history: bytes
    is_default: bool
    serial: str = ""
    module: str = ""


class UnsettledKey(NamedTuple):
    """A key that an identity is not to have (`going`) or does not have yet (`making`). Written before
    the vault is asked, so that no power cut leaves a key that nobody knows of."""

    identity: str
    vault: str
    kind: str
    label: str
    what: str


class NodeRecord(NamedTuple):
    """A node: `listener` is where it accepts TCP connections, None for nowhere."""

    name: str
    identity: str
    listener: str | None
    settings: dict[str, Any]
    is_default: bool
    wanted: str


class ResourceRecord(NamedTuple):
    """Something a node is to have."""

    kind: str
    name: str
    spec: dict[str, Any]
    source: str


class DataKeyRecord(NamedTuple):
    """The sealed key that the sealed records of an identity are under. `uri` is that of the vault that
    sealed it, None where that is the vault of the identity."""

    uri: str | None
    sealed: bytes


class SealedRecord(NamedTuple):
    """A secret at rest; each change has a higher version."""

    version: int
    record: bytes


class ProjectRecord(NamedTuple):
    """A project; `model` is its JSON (identity/project.py)."""

    name: str
    id: str
    model: str
    is_default: bool


class CredentialRecord(NamedTuple):
    """A credential of one of our identities, as it arrived."""

    subject: str
    issuer: str
    scope: str
    credential: bytes
    expires_at: int


class RevocationRecord(NamedTuple):
    """What an authority told of a member; see authority/changes.py."""

    identifier: str
    number: int
    removed: bool
    at: int


Record = TypeVar("Record", VaultRecord, IdentityRecord, NodeRecord, ProjectRecord)


class Store:
    """The database. Synchronous; the node calls it in its store thread (storethread.py)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._troubles():
            self._db = _opened(path)
            self._migrate()

    def close(self) -> None:
        self._db.close()

    # -- vaults

    def vaults(self) -> list[VaultRecord]:
        return [
            VaultRecord(name, uri, bool(default))
            for name, uri, default in self._rows("SELECT * FROM vault ORDER BY name")
        ]

    def vault(self, name: str) -> VaultRecord:
        return _found("vault", name, self.vaults())

    def default_vault(self) -> VaultRecord | None:
        return _default(self.vaults())

    def add_vault(self, name: str, uri: str) -> VaultRecord:
        """The first one is the default."""
        with self._changing(taken=f"a vault named {name} exists already"):
            first = not self._rows("SELECT 1 FROM vault")
            self._db.execute("INSERT INTO vault VALUES (?, ?, ?)", (name, uri, first))
        return self.vault(name)

    def remove_vault(self, name: str) -> None:
        self.vault(name)
        users = {one.name for one in self.identities() if one.vault == name}
        users |= {one.identity for one in self.unsettled() if one.vault == name}
        if users:
            raise ConfigError(
                f"the vault {name} holds the keys of {', '.join(sorted(users))}",
                hint="delete those identities first",
            )
        self._remove("vault", name)

    def make_default_vault(self, name: str) -> None:
        self.vault(name)
        self._make_default("vault", name)

    # -- identities

    def identities(self) -> list[IdentityRecord]:
        rows = self._rows(
            "SELECT name, identifier, vault, kind, label, history, is_default, serial, module"
            " FROM identity ORDER BY name"
        )
        return [IdentityRecord(*row)._replace(is_default=bool(row[6])) for row in rows]

    def identity(self, name: str) -> IdentityRecord:
        return _found("identity", name, self.identities())

    def default_identity(self) -> IdentityRecord | None:
        return _default(self.identities())

    def add_identity(
        self,
        name: str,
        *,
        identifier: str,
        vault: str,
        kind: str,
        label: str,
        history: bytes,
        serial: str = "",
        module: str = "",
    ) -> IdentityRecord:
        """The first one is the default. Its key is not in the making any more."""
        with self._changing(taken=f"an identity named {name} exists already"):
            first = not self._rows("SELECT 1 FROM identity")
            self._db.execute(
                "INSERT INTO identity (name, identifier, vault, kind, label, history, is_default,"
                " serial, module) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (name, identifier, vault, kind, label, history, first, serial, module),
            )
            self._forget_key(vault, label)
        return self.identity(name)

    def rotate_identity(
        self,
        name: str,
        *,
        kind: str,
        label: str,
        history: bytes,
        serial: str = "",
        module: str = "",
    ) -> IdentityRecord:
        """The new key counts, and the old one is going, from the same moment."""
        with self._changing():
            old = self.identity(name)
            self._keep_key(UnsettledKey(name, old.vault, old.kind, old.label, "going"))
            self._forget_key(old.vault, label)
            self._db.execute(
                "UPDATE identity SET kind = ?, label = ?, history = ?, serial = ?, module = ?"
                " WHERE name = ?",
                (kind, label, history, serial, module, name),
            )
        return self.identity(name)

    def remove_identity(self, name: str, *, key_goes: bool = False) -> None:
        """Forget it; with `key_goes` remember that its key is to be destroyed."""
        record = self.identity(name)
        users = [one.name for one in self.nodes() if one.identity == name]
        if users:
            raise ConfigError(
                f"the identity {name} is that of the node {', '.join(users)}",
                hint="delete the node first",
            )
        with self._changing():
            self._delete("identity", name)
            if key_goes:
                key = UnsettledKey(name, record.vault, record.kind, record.label, "going")
                self._keep_key(key)

    def make_default_identity(self, name: str) -> None:
        self.identity(name)
        self._make_default("identity", name)

    # -- keys in the making, and keys to be destroyed

    def unsettled(self, identity: str | None = None) -> list[UnsettledKey]:
        """Those of one identity, or all."""
        rows = self._rows(
            "SELECT identity, vault, kind, label, what FROM unsettled WHERE ? IS NULL OR identity = ?"
            " ORDER BY rowid",
            identity,
            identity,
        )
        return [UnsettledKey(*row) for row in rows]

    def reserve_key(self, key: UnsettledKey, vault: VaultRecord) -> None:
        """Before it is made: the key, and the vault if that is not known yet."""
        with self._changing(taken=f"the key {key.label} in the vault {vault.name} is not settled"):
            if not self._rows("SELECT 1 FROM vault WHERE name = ?", vault.name):
                first = not self._rows("SELECT 1 FROM vault")
                self._db.execute(
                    "INSERT INTO vault VALUES (?, ?, ?)", (vault.name, vault.uri, first)
                )
            self._keep_key(key)

    def settle_key(self, key: UnsettledKey) -> None:
        """It is gone, or an identity's."""
        with self._changing():
            self._forget_key(key.vault, key.label)

    def _keep_key(self, key: UnsettledKey) -> None:
        self._db.execute("INSERT INTO unsettled VALUES (?, ?, ?, ?, ?)", key)

    def _forget_key(self, vault: str, label: str) -> None:
        self._db.execute("DELETE FROM unsettled WHERE vault = ? AND label = ?", (vault, label))

    # -- nodes

    def nodes(self) -> list[NodeRecord]:
        return [
            NodeRecord(name, identity, listener, json.loads(settings), bool(default), wanted)
            for name, identity, listener, settings, default, wanted in self._rows(
                "SELECT * FROM node ORDER BY name"
            )
        ]

    def node(self, name: str) -> NodeRecord:
        return _found("node", name, self.nodes())

    def default_node(self) -> NodeRecord | None:
        return _default(self.nodes())

    def add_node(
        self,
        name: str,
        *,
        identity: str,
        listener: str | None = "127.0.0.1:0",
        settings: dict[str, Any] | None = None,
    ) -> NodeRecord:
        """The first one is the default."""
        self.identity(identity)
        with self._changing(taken=f"a node named {name} exists already"):
            first = not self._rows("SELECT 1 FROM node")
            self._db.execute(
                "INSERT INTO node VALUES (?, ?, ?, ?, ?, 'running')",
                (name, identity, listener, json.dumps(settings or {}), first),
            )
        return self.node(name)

    def set_listener(self, name: str, listener: str | None) -> None:
        self._set_node(name, "listener", listener)

    def set_wanted(self, name: str, wanted: str) -> None:
        """'running' or 'stopped': whether it should come back by itself."""
        self._set_node(name, "wanted", wanted)

    def set_setting(self, name: str, key: str, value: Any) -> None:
        with self._changing():
            settings = self.node(name).settings | {key: value}
            self._db.execute(
                "UPDATE node SET settings = ? WHERE name = ?", (json.dumps(settings), name)
            )

    def remove_node(self, name: str) -> None:
        """With all its resources and pins."""
        self.node(name)
        self._remove("node", name)

    def make_default_node(self, name: str) -> None:
        self.node(name)
        self._make_default("node", name)

    def _set_node(self, name: str, column: str, value: str | None) -> None:
        with self._changing():
            self._db.execute(f"UPDATE node SET {column} = ? WHERE name = ?", (value, name))

    # -- resources of a node

    def resources(self, node: str) -> list[ResourceRecord]:
        """In the order in which they were made."""
        rows = self._rows(
            "SELECT kind, name, spec, source FROM resource WHERE node = ? ORDER BY rowid", node
        )
        return [
            ResourceRecord(kind, name, json.loads(spec), source)
            for kind, name, spec, source in rows
        ]

    def add_resource(
        self,
        node: str,
        kind: str,
        name: str,
        spec: dict[str, Any],
        source: str = "command",
        policy: str | None = None,
    ) -> None:
        """With its policy, in one step: nobody finds it without."""
        with self._changing(taken=f"{kind} {name} exists already on node {node}"):
            if policy is not None:
                self._put_policy(node, name, "", policy, source)
            self._db.execute(
                "INSERT INTO resource VALUES (?, ?, ?, ?, ?, ?)",
                (node, kind, name, json.dumps(spec), source, int(time.time())),
            )

    def own_resource(self, node: str, kind: str, name: str, source: str) -> None:
        """It is the command's, or the file's, from now on."""
        with self._changing():
            self._db.execute(
                "UPDATE resource SET source = ? WHERE node = ? AND kind = ? AND name = ?",
                (source, node, kind, name),
            )

    def remove_resource(self, node: str, kind: str, name: str) -> None:
        """With its pins, and its policy where nothing else has it: one of the same name made again
        meets its peers anew."""
        with self._changing():
            self._db.execute(
                "DELETE FROM resource WHERE node = ? AND kind = ? AND name = ?", (node, kind, name)
            )
            if kind in GUARDED:
                self._db.execute(
                    "DELETE FROM policy WHERE node = ? AND resource = ? AND NOT EXISTS (SELECT 1 FROM"
                    " resource WHERE node = ? AND name = ? AND kind IN (?, ?))",
                    (node, name, node, name, *GUARDED),
                )
            self._db.execute(
                "DELETE FROM pin WHERE node = ? AND resource = ?", (node, f"{kind}/{name}")
            )

    # -- projects, and what their authorities say of us

    def projects(self) -> list[ProjectRecord]:
        rows = self._rows("SELECT name, id, model, is_default FROM project ORDER BY name")
        return [
            ProjectRecord(name, id_, model, bool(default)) for name, id_, model, default in rows
        ]

    def project(self, name: str) -> ProjectRecord:
        return _found("project", name, self.projects())

    def default_project(self) -> ProjectRecord | None:
        return _default(self.projects())

    def put_project(self, name: str, id_: str, model: str) -> ProjectRecord:
        """Another one of this name or id is replaced. The first one is the default."""
        with self._changing():
            first = not self._rows("SELECT 1 FROM project WHERE is_default AND name != ?", name)
            self._db.execute("DELETE FROM project WHERE name = ? OR id = ?", (name, id_))
            self._db.execute("INSERT INTO project VALUES (?, ?, ?, ?)", (name, id_, model, first))
        return self.project(name)

    def remove_project(self, name: str) -> None:
        self.project(name)
        users = [one.name for one in self.nodes() if one.settings.get("project") == name]
        if users:
            raise ConfigError(
                f"the project {name} is that of the node {', '.join(users)}",
                hint="delete the node first",
            )
        self._remove("project", name)

    def make_default_project(self, name: str) -> None:
        self.project(name)
        self._make_default("project", name)

    def credentials(self) -> list[CredentialRecord]:
        return [CredentialRecord(*row) for row in self._rows("SELECT * FROM credential")]

    def credential(self, subject: str, issuer: str, scope: str) -> CredentialRecord | None:
        rows = self._rows(
            "SELECT * FROM credential WHERE subject = ? AND issuer = ? AND scope = ?",
            subject, issuer, scope,
        )  # fmt: skip
        return CredentialRecord(*rows[0]) if rows else None

    def put_credential(self, record: CredentialRecord) -> None:
        with self._changing():
            self._db.execute("INSERT OR REPLACE INTO credential VALUES (?, ?, ?, ?, ?)", record)

    # -- who is no member any more

    def revocations(self, node: str) -> list[RevocationRecord]:
        """By number."""
        sql = (
            "SELECT identifier, number, removed, at FROM revocation WHERE node = ? ORDER BY number"
        )
        return [
            RevocationRecord(identifier, number, bool(removed), at)
            for identifier, number, removed, at in self._rows(sql, node)
        ]

    def put_revocations(self, node: str, records: list[RevocationRecord], most: int) -> None:
        """The latest of each member; of all the `most` latest."""
        with self._changing():
            self._db.executemany(
                "INSERT OR REPLACE INTO revocation (node, identifier, number, removed, at)"
                " VALUES (?, ?, ?, ?, ?)",
                [(node, *record) for record in records],
            )
            self._db.execute(
                "DELETE FROM revocation WHERE node = ? AND number <= (SELECT number FROM revocation"
                " WHERE node = ? ORDER BY number DESC LIMIT 1 OFFSET ?)",
                (node, node, most),
            )

    # -- policies of a node

    def policies(self, node: str) -> list[tuple[str, str, str]]:
        """Resource, type, expression; of the first two one is empty."""
        return self._rows(
            "SELECT resource, type, expression FROM policy WHERE node = ? ORDER BY resource, type",
            node,
        )

    def policy_sources(self, node: str) -> dict[tuple[str, str], tuple[str, str]]:
        """Expression and source, by resource and type."""
        rows = self._rows(
            "SELECT resource, type, expression, source FROM policy WHERE node = ?", node
        )
        return {
            (resource, kind): (expression, source) for resource, kind, expression, source in rows
        }

    def put_policy(
        self, node: str, resource: str, kind: str, expression: str, source: str = "command"
    ) -> None:
        with self._changing():
            self._put_policy(node, resource, kind, expression, source)

    def remove_policy(self, node: str, resource: str, kind: str) -> None:
        with self._changing():
            self._db.execute(
                "DELETE FROM policy WHERE node = ? AND resource = ? AND type = ?",
                (node, resource, kind),
            )

    def _put_policy(
        self, node: str, resource: str, kind: str, expression: str, source: str
    ) -> None:
        values = (node, resource, kind, expression, source)
        self._db.execute(
            "INSERT OR REPLACE INTO policy (node, resource, type, expression, source)"
            " VALUES (?, ?, ?, ?, ?)",
            values,
        )

    # -- whom a resource met first

    def pins(self, node: str, resource: str) -> dict[int, str]:
        """Identifiers by the position of their channel in the route. `resource` is kind/name."""
        rows = self._rows(
            "SELECT position, identifier FROM pin WHERE node = ? AND resource = ?", node, resource
        )
        return dict(rows)

    def add_pins(self, node: str, resource: str, pins: dict[int, str]) -> None:
        """What is pinned stays as it is."""
        rows = [(node, resource, position, identifier) for position, identifier in pins.items()]
        with self._changing():
            self._db.executemany("INSERT OR IGNORE INTO pin VALUES (?, ?, ?, ?)", rows)

    # -- peers and time

    def peers(self) -> list[bytes]:
        """The histories we know."""
        return [history for (history,) in self._rows("SELECT history FROM peer ORDER BY rowid")]

    def keep_peers(self, histories: Iterable[tuple[str, bytes]]) -> None:
        with self._changing():
            self._db.executemany("INSERT OR REPLACE INTO peer VALUES (?, ?)", list(histories))

    def time_floor(self) -> int:
        rows = self._rows("SELECT value FROM time_floor WHERE key = 'floor'")
        return int(rows[0][0]) if rows else 0

    def raise_time_floor(self, moment: int) -> None:
        with self._changing():
            self._db.execute(
                "INSERT INTO time_floor VALUES ('floor', ?)"
                " ON CONFLICT (key) DO UPDATE SET value = max(value, excluded.value)",
                (moment,),
            )

    # -- secrets at rest

    def data_key(self, identifier: str) -> DataKeyRecord | None:
        rows = self._rows("SELECT uri, sealed FROM data_key WHERE identifier = ?", identifier)
        return DataKeyRecord(*rows[0]) if rows else None

    def add_data_key(self, identifier: str, uri: str | None, sealed: bytes) -> DataKeyRecord:
        """The one that is there, if somebody was quicker."""
        with self._changing():
            self._db.execute(
                "INSERT OR IGNORE INTO data_key VALUES (?, ?, ?)", (identifier, uri, sealed)
            )
        found = self.data_key(identifier)
        assert found is not None
        return found

    def replace_data_key(
        self, identifier: str, old: DataKeyRecord, uri: str | None, sealed: bytes
    ) -> None:
        """The same key, sealed anew; nothing happens where it is not `old` any more."""
        with self._changing():
            self._db.execute(
                "UPDATE data_key SET uri = ?, sealed = ? WHERE identifier = ? AND sealed = ?",
                (uri, sealed, identifier, old.sealed),
            )

    def sealed(self, identifier: str, name: str) -> SealedRecord | None:
        rows = self._rows(
            "SELECT version, record FROM sealed WHERE identifier = ? AND name = ?", identifier, name
        )
        return SealedRecord(*rows[0]) if rows else None

    def sealed_names(self, identifier: str) -> list[str]:
        rows = self._rows("SELECT name FROM sealed WHERE identifier = ? ORDER BY name", identifier)
        return [name for (name,) in rows]

    def put_sealed(
        self,
        identifier: str,
        name: str,
        sealing: Callable[[int], bytes],
        node: str | None = None,
    ) -> None:
        """`sealing` gives the record of the version that it is called with. What belongs to a `node`
        goes when that is removed."""
        with self._changing():
            found = self.sealed(identifier, name)
            version = found.version + 1 if found else 1
            self._db.execute(
                "INSERT OR REPLACE INTO sealed VALUES (?, ?, ?, ?, ?)",
                (identifier, name, version, sealing(version), node),
            )

    def remove_sealed(self, identifier: str, name: str) -> None:
        with self._changing():
            self._db.execute(
                "DELETE FROM sealed WHERE identifier = ? AND name = ?", (identifier, name)
            )

    # -- how

    def _rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        with self._troubles():
            return self._db.execute(sql, values).fetchall()

    @contextmanager
    def _changing(self, taken: str = "") -> Iterator[None]:
        """A transaction: on the disk when it ends, or nothing of it."""
        with self._troubles(taken):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _troubles(self, taken: str = "") -> Iterator[None]:
        """Turns what sqlite3 raises into ConfigError."""
        try:
            yield
        except sqlite3.IntegrityError as error:
            if taken and error.sqlite_errorname in (
                "SQLITE_CONSTRAINT_PRIMARYKEY",
                "SQLITE_CONSTRAINT_UNIQUE",
            ):
                raise Taken(taken, hint="choose another name, or delete it first") from None
            raise ConfigError(f"the database {self.path} does not allow this: {error}") from None
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(
                f"cannot use the database {self.path}: {error}",
                hint="is the disk full, or the file of another user or version?",
            ) from None

    def _make_default(self, table: str, name: str) -> None:
        with self._changing():
            self._db.execute(f"UPDATE {table} SET is_default = (name = ?)", (name,))

    def _remove(self, table: str, name: str) -> None:
        with self._changing():
            self._delete(table, name)

    def _delete(self, table: str, name: str) -> None:
        """If it was the default, the first of the others is."""
        self._db.execute(f"DELETE FROM {table} WHERE name = ?", (name,))
        self._db.execute(
            f"UPDATE {table} SET is_default = 1 WHERE NOT EXISTS"
            f" (SELECT 1 FROM {table} WHERE is_default = 1)"
            f" AND name = (SELECT min(name) FROM {table})"
        )

    def _migrate(self) -> None:
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL) STRICT"
        )
        if self._version() == VERSION:
            return
        with self._changing():
            found = self._version()  # again, now that nobody else makes it
            if found > VERSION:
                raise ConfigError(
                    f"the database {self.path} has version {found}, this program knows {VERSION}",
                    hint="use the newer ockam-edge, or another OCKAM_HOME",
                )
            if found == VERSION:
                return
            for script in (SCHEMA, *MIGRATIONS)[found:]:
                for statement in script.split(";"):
                    self._db.execute(statement)
            self._db.execute("DELETE FROM schema_version")
            self._db.execute("INSERT INTO schema_version VALUES (?)", (VERSION,))

    def _version(self) -> int:
        rows = self._rows("SELECT version FROM schema_version")
        return int(rows[0][0]) if rows else 0


class Taken(ConfigError):
    """The name is in use."""


class Unknown(ConfigError):
    """Nothing has this name."""


def _opened(path: Path) -> sqlite3.Connection:
    new = not path.exists()
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    if new:
        _sync_folder(path)
    db = sqlite3.connect(path, timeout=BUSY / 1000, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA foreign_keys = ON")
    return db


def _sync_folder(path: Path) -> None:
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _found(what: str, name: str, records: list[Record]) -> Record:
    for record in records:
        if record.name == name:
            return record
    there = ", ".join(record.name for record in records)
    raise Unknown(
        f"{what} {name} was not found",
        hint=f"there is: {there}" if there else f"there is no {what} at all",
    )


def _default(records: list[Record]) -> Record | None:
    return next((record for record in records if record.is_default), None)
