"""The store: what was written is there, whatever happens next; names are unique and found."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.errors import ConfigError
from edge.node import store as module
from edge.node.store import (
    RevocationRecord,
    Store,
    Taken,
    Unknown,
    UnsettledKey,
    VaultRecord,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "edge.db")
    yield opened
    opened.close()


def identity(store: Store, name: str, vault: str = "v") -> None:
    store.add_identity(
        name, identifier=f"I{name}", vault=vault, kind="ed25519", label=name, history=b"h"
    )


def test_vaults(store: Store) -> None:
    assert store.default_vault() is None
    with pytest.raises(Unknown, match="not found") as caught:
        store.vault("v")
    assert "no vault" in caught.value.hint
    store.add_vault("v", "software:/v")
    store.add_vault("w", "software:/w")
    with pytest.raises(Taken, match="exists already"):
        store.add_vault("v", "software:/x")
    with pytest.raises(Unknown) as caught:
        store.vault("x")
    assert "v, w" in caught.value.hint
    assert store.default_vault() == ("v", "software:/v", True)
    store.make_default_vault("w")
    assert [vault.name for vault in store.vaults() if vault.is_default] == ["w"]
    identity(store, "i", "w")
    with pytest.raises(ConfigError, match="holds the keys of i"):
        store.remove_vault("w")
    store.remove_vault("v")
    store.remove_identity("i")
    store.remove_vault("w")
    assert store.vaults() == []


def test_identities(store: Store) -> None:
    store.add_vault("v", "software:/v")
    identity(store, "a")
    identity(store, "b")
    with pytest.raises(Taken):
        identity(store, "a")
    with pytest.raises(ConfigError, match="does not allow"):
        identity(store, "c", vault="none")
    default = store.default_identity()
    assert default is not None
    assert default.name == "a"
    changed = store.rotate_identity("a", kind="p256", label="a-2", history=b"hh")
    assert (changed.kind, changed.label, changed.history) == ("p256", "a-2", b"hh")
    assert changed.identifier == "Ia"
    store.make_default_identity("b")
    store.add_node("n", identity="b")
    with pytest.raises(ConfigError, match="of the node n"):
        store.remove_identity("b")
    store.remove_node("n")
    store.remove_identity("b")
    assert [one.is_default for one in store.identities()] == [True]


def test_nodes_and_their_resources(store: Store) -> None:
    store.add_vault("v", "software:/v")
    identity(store, "i")
    with pytest.raises(Unknown):
        store.add_node("n", identity="other")
    node = store.add_node("n", identity="i", settings={"a": 1})
    assert node == ("n", "i", "127.0.0.1:0", {"a": 1}, True, "running")
    assert store.default_node() == node
    store.add_node("m", identity="i", listener=None)
    with pytest.raises(Taken):
        store.add_node("n", identity="i")
    store.set_setting("n", "port", 4000)
    store.set_wanted("n", "stopped")
    store.set_listener("n", None)
    store.make_default_node("m")
    assert store.node("n") == ("n", "i", None, {"a": 1, "port": 4000}, False, "stopped")
    with pytest.raises(ConfigError, match="does not allow"):
        store.set_wanted("n", "perhaps")
    store.add_resource("n", "relay", "r", {"at": "x"})
    store.add_resource("n", "tcp-inlet", "r", {"at": "y"}, source="file")
    with pytest.raises(Taken, match="relay r exists already on node n"):
        store.add_resource("n", "relay", "r", {})
    with pytest.raises(ConfigError, match="does not allow"):
        store.add_resource("none", "relay", "r", {})
    assert [(one.kind, one.spec, one.source) for one in store.resources("n")] == [
        ("relay", {"at": "x"}, "command"),
        ("tcp-inlet", {"at": "y"}, "file"),
    ]
    store.add_pins("n", "relay/r", {0: "Ia", 1: "Ib"})
    store.add_pins("n", "relay/r", {0: "Ix"})
    assert store.pins("n", "relay/r") == {0: "Ia", 1: "Ib"}
    assert store.pins("n", "relay/s") == {}
    store.remove_resource("n", "relay", "r")
    assert store.pins("n", "relay/r") == {}
    assert [one.kind for one in store.resources("n")] == ["tcp-inlet"]
    store.remove_node("n")
    assert store.resources("n") == []


def test_peers_and_time(store: Store) -> None:
    store.keep_peers([("Ia", b"1"), ("Ib", b"2")])
    store.keep_peers([("Ia", b"3")])
    assert sorted(store.peers()) == [b"2", b"3"]
    assert store.time_floor() == 0
    store.raise_time_floor(100)
    store.raise_time_floor(50)
    assert store.time_floor() == 100


def test_a_transaction_is_all_or_nothing(store: Store) -> None:
    def half() -> None:
        with store._changing():
            store._db.execute("INSERT INTO vault VALUES ('v', 'u', 0)")
            raise KeyError

    with pytest.raises(KeyError):
        half()
    assert store.vaults() == []


def test_it_is_private_and_opens_again(tmp_path: Path) -> None:
    path = tmp_path / "edge.db"
    first = Store(path)
    first.add_vault("v", "software:/v")
    assert path.stat().st_mode & 0o777 == 0o600
    second = Store(path)
    assert second.vaults() == first.vaults()
    first.close()
    second.close()


def test_files_that_are_no_database_of_ours(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"no database" * 100)
    with pytest.raises(ConfigError, match="cannot use the database"):
        Store(broken)
    with pytest.raises(ConfigError, match="cannot use the database"):
        Store(tmp_path / "missing" / "edge.db")
    newer = Store(tmp_path / "newer")
    newer._db.execute("UPDATE schema_version SET version = 99")
    newer.close()
    with pytest.raises(ConfigError, match="version 99"):
        Store(tmp_path / "newer")


def test_many_open_a_new_one_at_once(tmp_path: Path) -> None:
    failed: list[Exception] = []

    def work(number: int) -> None:
        try:
            store = Store(tmp_path / "edge.db")
            store.add_vault(f"v{number}", "software:/v")
            store.close()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    store = Store(tmp_path / "edge.db")
    assert len(store.vaults()) == 8
    assert sum(vault.is_default for vault in store.vaults()) == 1
    store.close()


WRITER = """
import sys
from pathlib import Path
from edge.node.store import Store
store = Store(Path(sys.argv[1]))
for number in range(int(sys.argv[2]), 10**9):
    store.add_resource("n", "relay", str(number), {"number": number})
    print(number, flush=True)
"""


def test_kill_loses_nothing_that_was_confirmed(tmp_path: Path) -> None:
    path = tmp_path / "edge.db"
    store = Store(path)
    store.add_vault("v", "software:/v")
    identity(store, "i")
    store.add_node("n", identity="i")
    confirmed = -1
    for after in (1, 7, 20, 33, 50):
        command = [sys.executable, "-c", WRITER, str(path), str(confirmed + 1000)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            said = [int(process.stdout.readline()) for _ in range(after)]
            os.kill(process.pid, signal.SIGKILL)
            said += [int(line) for line in process.stdout.read().split("\n") if line]
        confirmed = said[-1]
        there = {one.spec["number"] for one in store.resources("n")}
        assert set(said) <= there
    store.close()


def test_a_database_of_the_first_version_is_brought_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MIGRATIONS", ())
    monkeypatch.setattr(module, "VERSION", 1)
    old = Store(tmp_path / "edge.db")
    old._db.execute("INSERT INTO vault VALUES ('v', 'software:/v', 1)")
    old._db.execute("INSERT INTO identity VALUES ('a', 'Ia', 'v', 'ed25519', 'k', x'01', 1)")
    old.close()
    monkeypatch.undo()
    for _ in range(2):
        new = Store(tmp_path / "edge.db")
        assert new._version() == module.VERSION > 1
        record = new.identity("a")
        assert (record.label, record.history, record.serial, record.is_default) == (
            "k", b"\1", "", True,
        )  # fmt: skip
        new.close()


def test_keys_that_are_not_settled(store: Store) -> None:
    """A key is reserved before it is made, and counted as going before it is destroyed."""
    vault = VaultRecord("v", "software:/v", False)
    making = UnsettledKey("a", "v", "p256", "k", "making")
    store.reserve_key(making, vault)
    assert store.vaults() == [VaultRecord("v", "software:/v", True)]
    with pytest.raises(Taken, match="not settled"):
        store.reserve_key(making, vault)
    with pytest.raises(ConfigError, match="keys of a"):
        store.remove_vault("v")
    store.add_identity(
        "a",
        identifier="Ia",
        vault="v",
        kind="p256",
        label="k",
        history=b"h",
        serial="s",
        module="m",
    )
    assert store.unsettled() == []
    store.reserve_key(making._replace(label="k2"), vault)
    changed = store.rotate_identity("a", kind="p256", label="k2", history=b"hh")
    assert (changed.label, changed.serial) == ("k2", "")
    assert store.unsettled("a") == [making._replace(what="going")]
    assert store.unsettled("b") == []
    store.remove_identity("a", key_goes=True)
    assert [key.label for key in store.unsettled()] == ["k", "k2"]
    for key in store.unsettled():
        store.settle_key(key)
    store.remove_vault("v")


def test_revocations_are_kept_the_latest_of_each_and_not_too_many(store: Store) -> None:
    store.add_vault("v", "software:/v")
    identity(store, "i")
    store.add_node("n", identity="i")
    one = [RevocationRecord(f"I{n}", n, True, 100 + n) for n in range(1, 6)]
    store.put_revocations("n", one, 3)
    assert store.revocations("n") == one[2:]
    back = RevocationRecord("I4", 9, False, 200)
    store.put_revocations("n", [back], 3)
    assert store.revocations("n") == [one[2], one[4], back]
    store.remove_node("n")
    assert store.revocations("n") == []
