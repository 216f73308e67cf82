"""An authority from its backup, on a fresh machine: its members are known, and its tickets hold."""

import asyncio
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.authority.sqlite import LEAP, SqliteRegistry
from edge.errors import EdgeError
from edge.identity.history import Identifier
from edge.node.home import Home
from edge.node.store import Store
from tests.cli.test_end_to_end import Machine, free_port
from tests.cli.test_local import home, out, run

__all__ = ["home"]
IDENTIFIER = "I" + "ab" * 32


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_fleet_goes_on_with_the_restored_one(tmp_path: Path) -> None:
    old, new, device, late = (Machine(tmp_path / name) for name in ("old", "new", "dev", "late"))
    file = str(tmp_path / "plant.backup")
    try:
        old.do("project", "init", "plant", "--address", f"127.0.0.1:{free_port()}")
        joined = json.loads(device.do("project", "enroll", old.do("project", "ticket")))
        unused = old.do("project", "ticket", "-a", "role=late")
        used = old.do("project", "ticket")
        second = Machine(tmp_path / "second")
        second.do("project", "enroll", used)
        said = old.run("authority", "backup", file)
        assert (said.returncode, said.stdout) == (0, file)
        assert "what opens the vault is not in this file" in said.stderr
        assert Path(file).stat().st_mode & 0o777 == 0o600
        members = _members(old)
        old.do("node", "stop", "plant")

        missing = new.refused("authority", "restore", file)
        assert f"put the key file of the old machine at {new.home}/vault.sealed.key" in missing
        assert new.do("node", "list") == "[]" == new.do("identity", "list")
        assert not (new.home / "vault.sealed").exists()
        shutil.copy(old.home / "vault.sealed.key", new.home)
        assert new.do("authority", "restore", file) == "plant"

        assert _members(new) == members
        again = json.loads(device.do("project", "enroll"))
        assert again["identity"] == joined["identity"]
        assert again["credential"]["issuer"] == joined["credential"]["issuer"]
        said = json.loads(late.do("project", "enroll", unused))
        assert said["credential"]["attributes"]["role"] == "late"
        thief = Machine(tmp_path / "thief")
        thief.do("identity", "create")
        assert "used up" in thief.refused("project", "enroll", used)
        assert "here already" in new.refused("authority", "restore", file)
        assert new.do("project", "show", "plant") == old.do("project", "show", "plant")
        assert new.do("project", "ticket").count(",") == 6, "the first enroller is there, too"
    finally:
        for machine in (old, new):
            machine.run("node", "delete", "--all", "--yes", "--force")


def _members(machine: Machine) -> dict[str, object]:
    """But since when: those trusted from the start are put in at every start, as with stock."""
    found = json.loads(machine.do("project-member", "list"))
    return {one["identifier"]: one["attributes"]["attributes"] for one in found}


# -- without processes


@pytest.fixture
def authority(home: Path, tmp_path: Path) -> Path:
    """Written down, with an enroller of this home; its backup."""
    boss = out("identity", "create", "boss")
    out("identity", "create", "plant")
    _add(home, "plant", {"trusted": {boss: {"ockam-role": "enroller"}, IDENTIFIER: {}}})
    file = tmp_path / "backup"
    out("authority", "backup", str(file))
    return file


def _add(home: Path, name: str, more: dict[str, object]) -> None:
    settings = {"serves": {"authority": {"project_id": name, **more}}}
    store = Store(home / "edge.db")
    store.add_node(name, identity=name, listener="127.0.0.1:1", settings=settings)
    store.close()


def refused(*arguments: str) -> str:
    with pytest.raises(EdgeError) as caught:
        run(*arguments)
    return f"{caught.value}\n{caught.value.hint}"


@pytest.fixture
def fresh(
    authority: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Path]:
    """Another machine, with the key file of the first; what it starts is only written down."""
    monkeypatch.setattr("edge.cli.fleetinit.start", lambda name: None)

    def make() -> Path:
        place = Home(tmp_path / f"fresh-{len(list(tmp_path.iterdir()))}").prepare().root
        shutil.copy(home / "vault.sealed.key", place)
        monkeypatch.setenv("OCKAM_HOME", str(place))
        return place

    return make


def rewritten(
    file: Path,
    change: Callable[[dict[str, object]], object] = lambda manifest: None,
    parts: Callable[[dict[str, bytes]], object] = lambda parts: None,
) -> str:
    """The backup with another manifest or other parts."""
    with tarfile.open(file) as archive:
        found = {one.name: archive.extractfile(one).read() for one in archive}  # type: ignore[union-attr]
    manifest = json.loads(found["manifest.json"])
    change(manifest)
    found["manifest.json"] = json.dumps(manifest).encode()
    parts(found)
    bad = file.with_name("bad")
    with tarfile.open(bad, "w") as archive:
        for name, data in found.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(bad)


def test_what_is_in_it(authority: Path, home: Path) -> None:
    with tarfile.open(authority) as archive:
        assert archive.getnames() == ["manifest.json", "vaults/default"]
    manifest = json.loads(_part(authority, "manifest.json"))
    assert [one["name"] for one in manifest["identities"]] == ["boss", "plant"]
    assert manifest["vaults"] == {"default": "software:@home/vault.sealed"}
    key = (home / "vault.sealed.key").read_bytes().strip()
    assert key not in authority.read_bytes()
    assert str(home) not in _part(authority, "manifest.json")


def _part(file: Path, name: str) -> str:
    with tarfile.open(file) as archive:
        data = archive.extractfile(name)
        assert data is not None
        return data.read().decode()


def test_again_replaces_the_file_and_what_fails_leaves_it(authority: Path) -> None:
    before = authority.read_bytes()
    out("authority", "backup", str(authority))
    assert len(authority.read_bytes()) == len(before)
    assert [one.name for one in authority.parent.glob(".*")] == []
    assert "cannot write" in refused("authority", "backup", str(authority / "below"))


@pytest.mark.usefixtures("authority")
def test_which_authority(home: Path, tmp_path: Path) -> None:
    file = str(tmp_path / "other")
    assert "no authority" in refused("authority", "backup", file, "--at", "other")
    out("identity", "create", "second")
    _add(home, "second", {"database": "postgresql://host/fleet"})
    assert "which authority?" in refused("authority", "backup", file)
    assert "pg_dump" in run("authority", "backup", file, "--at", "second").stderr


@pytest.mark.usefixtures("home")
def test_no_authority(tmp_path: Path) -> None:
    assert "there is no authority" in refused("authority", "backup", str(tmp_path / "x"))


def test_restored_where_its_vault_is_now(authority: Path, fresh: Callable[[], Path]) -> None:
    place = fresh()
    elsewhere = place / "other.sealed"
    (place / "vault.sealed.key").rename(place / "other.sealed.key")
    made = ("authority", "restore", str(authority), "--vault", f"software:{elsewhere}")
    assert json.loads(out(*made, "--output", "json"))["node"] == "plant"
    assert elsewhere.stat().st_mode & 0o777 == 0o600
    assert [one["name"] for one in json.loads(out("identity", "list"))] == ["boss", "plant"]


def test_restored_numbers_leap(home: Path, authority: Path, fresh: Callable[[], Path]) -> None:
    registry = home / "authority-plant.sqlite3"
    owner = Identifier.parse(out("identity", "show", "plant"))

    async def latest(path: Path) -> int:
        opened = await SqliteRegistry.open(path, owner)
        number = await opened.latest_change()
        await opened.close()
        return number

    assert asyncio.run(latest(registry)) == 0
    out("authority", "backup", str(authority))
    place = fresh()
    out("authority", "restore", str(authority))
    assert asyncio.run(latest(place / registry.name)) == LEAP


def test_another_key_is_refused(authority: Path, fresh: Callable[[], Path]) -> None:
    place = fresh()
    (place / "vault.sealed.key").write_text("00" * 32 + "\n")
    assert "does not open" in refused("authority", "restore", str(authority))
    (place / "vault.sealed.key").unlink()
    out("identity", "create", "plant2")  # a vault of its own, and the name is another one
    assert "cannot be used here" in refused("authority", "restore", str(authority))
    assert [one["name"] for one in json.loads(out("identity", "list"))] == ["plant2"]
    assert out("node", "list") == "[]"


def test_nothing_is_overwritten(authority: Path, fresh: Callable[[], Path]) -> None:
    for what, arguments in (
        ("identity plant", ("identity", "create", "plant")),
        ("vault default", ("vault", "create", "default", "--uri", "software:/tmp/x")),
    ):
        fresh()
        made = run(*arguments)
        if made.exit_code:
            continue
        assert f"{what} is here already" in refused("authority", "restore", str(authority))
    place = fresh()
    registry = place / "authority-plant.sqlite3"
    registry.write_text("mine")
    assert "here already" in refused("authority", "restore", str(authority))
    assert registry.read_text() == "mine"


def test_what_is_no_backup(authority: Path, fresh: Callable[[], Path], tmp_path: Path) -> None:
    fresh()
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"garbage")
    cut = tmp_path / "cut"
    cut.write_bytes(authority.read_bytes()[:700])
    bad: list[str] = [str(garbage), str(cut)]
    for file in bad:
        assert "no backup of an authority" in refused("authority", "restore", file)
    for change in (
        lambda manifest: manifest.pop("format"),
        lambda manifest: manifest.update(format="other"),
        lambda manifest: manifest.update(vaults=None),
        lambda manifest: manifest.update(identities=[]),
        lambda manifest: manifest.update(identities=[{"identifier": "x"}]),
    ):
        said = refused("authority", "restore", rewritten(authority, change))
        assert "no backup" in said or "identifier" in said
    newer = rewritten(authority, lambda manifest: manifest.update(version=2))
    assert "use the newer" in refused("authority", "restore", newer)
    traversal = rewritten(
        authority,
        lambda manifest: manifest["node"].update(name="../x"),  # type: ignore[attr-defined]
    )
    assert "cannot be the name" in refused("authority", "restore", traversal)
    for parts in (
        lambda parts: parts.update({"vaults/default": b"{}"}),
        lambda parts: parts.pop("vaults/default"),
        lambda parts: parts.update({"../../etc/passwd": b"x"}),
    ):
        assert "no backup" in refused("authority", "restore", rewritten(authority, parts=parts))
    assert out("node", "list") == "[]" == out("identity", "list")
