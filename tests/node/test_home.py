"""The home: names, private folders, short sockets, and the lock that says a node runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge.errors import ConfigError
from edge.node import home as homes
from edge.node.home import LONGEST_SOCKET, Home
from vault_backends.uri import SoftwareUri, parse


def test_where_it_is(tmp_path: Path) -> None:
    assert Home.of_environment({"OCKAM_HOME": str(tmp_path)}).root == tmp_path
    assert Home.of_environment({}).root == Path.home() / ".ockam-edge"
    home = Home(tmp_path / "a" / "b").prepare()
    assert home.root.stat().st_mode & 0o777 == 0o700
    assert home.prepare().log("n") == home.root / "log" / "n.log"


@pytest.mark.parametrize("name", ["", "a b", "../x", "ä", "x" * 65, "a.b", "a\n"])
def test_names_that_are_refused(name: str, tmp_path: Path) -> None:
    for use in (Home(tmp_path).log, Home(tmp_path).lock, Home(tmp_path).socket):
        with pytest.raises(ConfigError, match="name"):
            use(name)


def test_a_folder_that_cannot_be_or_is_open_to_others(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot make"):
        Home(tmp_path / "file" / "x").prepare()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(ConfigError, match="write"):
        Home(tmp_path / "open").prepare()


def test_a_folder_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for root either: its owner could put links there, for root to write or empty any file."""
    os.chown(tmp_path, 4711, 4711)
    with pytest.raises(ConfigError, match="belongs to user 4711") as caught:
        Home(tmp_path).prepare()
    assert "sudo -u" in caught.value.hint
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match="belongs"):
        Home(tmp_path).prepare()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to give folders away")
@pytest.mark.parametrize("name", ["log", "run"])
def test_a_folder_in_it_of_somebody_else(tmp_path: Path, name: str) -> None:
    Home(tmp_path).prepare()
    os.chown(tmp_path / name, 4711, 4711)
    with pytest.raises(ConfigError, match=f"{name} belongs to user 4711"):
        Home(tmp_path).prepare()


def test_the_vault_of_a_strange_path(tmp_path: Path) -> None:
    root = tmp_path / "my home;ü"
    found = parse(Home(root).vault_uri)
    assert isinstance(found, SoftwareUri)
    assert found.path == root / "vault.sealed"


def test_a_long_path_has_a_short_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = Home(tmp_path / ("x" * 90))
    path = long.socket("n")
    assert len(str(path)) <= LONGEST_SOCKET
    assert path == long.socket("n") != long.socket("m")
    assert path.parent.stat().st_mode & 0o077 == 0
    assert Home(Path("/h")).socket("n") == Path("/h/run/n.sock")


def test_a_folder_for_sockets_that_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(homes, "Path", lambda text: tmp_path if text == "/tmp" else Path("/none"))
    place = tmp_path / f"ockam-edge-{os.geteuid()}"
    place.symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="not a private folder"):
        homes._short_folder()
    place.unlink()
    place.mkdir()
    place.chmod(0o755)
    with pytest.raises(ConfigError, match="not a private folder"):
        homes._short_folder()
    place.chmod(0o700)
    assert homes._short_folder() == place
    monkeypatch.setattr(homes, "Path", lambda text: Path("/proc/none"))
    with pytest.raises(ConfigError, match="cannot make"):
        homes._short_folder()


def test_the_lock(tmp_path: Path) -> None:
    home = Home(tmp_path).prepare()
    assert home.running("n") is None
    lock = home.take("n")
    assert home.running("n") == (0, home.socket("n"))
    lock.write(Path("/s"))
    assert home.running("n") == (os.getpid(), Path("/s"))
    with pytest.raises(ConfigError, match=f"as process {os.getpid()}"):
        home.take("n", patience=0.05)
    lock.close()
    assert home.running("n") is None
    home.take("n").close()


def test_the_lock_goes_with_its_process(tmp_path: Path) -> None:
    home = Home(tmp_path).prepare()
    code = (
        "import sys, time; from pathlib import Path; from edge.node.home import Home;"
        f"lock = Home(Path({str(tmp_path)!r})).take('n'); lock.write(Path('/s'));"
        "print('ready', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = home.running("n")
        assert found is not None
        assert found.pid == process.pid
        process.kill()
    assert home.running("n") is None
