"""Where a database is: what is taken for a URL, and what is never shown of it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.authority import database
from edge.errors import ConfigError

URL = "postgresql://fleet:s3cr%2Ft@db.example.com:5432/plant?sslmode=verify-full"


@pytest.mark.parametrize(
    "source",
    [
        "postgresql://fleet@db.example.com/plant",
        "postgres:///plant?host=/run/postgresql",
        "file:/etc/edge/database",
        "credential:database",
    ],
)
def test_what_can_stand_on_a_command_line(source: str) -> None:
    database.check(source)


@pytest.mark.parametrize(
    "source",
    [
        URL,
        "postgresql://fleet:@db.example.com/plant",
        "postgresql://fleet@db.example.com/plant?password=s3cret",
        "postgresql://fleet:s3cr/et@db.example.com/plant",
        "postgresql://fleet:s3cr?et@db.example.com/plant",
        "postgresql://fleet:s3cr#et@db.example.com/plant",
        "postgresql://[s3cret/plant",
        "mysql://fleet:s3cret@db/plant",
        "fleet:s3cret@db/plant",
        "file:s3cret",
        "credential:s3cret/../x",
        "",
    ],
)
def test_what_cannot(source: str) -> None:
    with pytest.raises(ConfigError) as caught:
        database.check(source)
    assert caught.value.hint
    assert "s3cr" not in str(caught.value) + caught.value.hint


def test_a_url_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "database"
    path.write_text(URL + "\n")
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="can be read by others"):
        database.read(f"file:{path}")
    path.chmod(0o600)
    assert database.read(f"file:{path}") == URL
    path.write_text("postgresql://fleet:s3cr/et@db/plant")
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        database.read(f"file:{path}")
    assert "s3cr" not in str(caught.value)
    with pytest.raises(ConfigError, match="No such file"):
        database.read(f"file:{tmp_path}/none")


def test_a_url_in_a_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(ConfigError, match="systemd gave no credentials") as caught:
        database.read("credential:database")
    assert "LoadCredential" in caught.value.hint
    (tmp_path / "database").write_text(URL)
    (tmp_path / "database").chmod(0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert database.read("credential:database") == URL


def test_what_is_shown() -> None:
    assert database.shown(URL) == "plant at db.example.com:5432"
    assert database.shown("postgresql:///plant?host=/run/pg") == "plant at /run/pg"
    assert database.shown("postgres://") == "the database at this machine"


def test_hosts() -> None:
    assert database.hosts(URL) == ["db.example.com"]
    assert database.hosts("postgresql://u@[fe80::1]:1,b:2,c/x") == ["fe80::1", "b", "c"]
    assert database.hosts("postgresql:///x?host=/run/pg") == ["/run/pg"]
    assert database.hosts("postgresql:///x") == []


def test_secrets() -> None:
    assert database.secrets(URL + "&password=two") == ["s3cr%2Ft", "s3cr%2Ft", "two"]
    assert database.secrets("postgresql://u@h/x") == []


@given(
    st.text(max_size=30),
    st.sampled_from(["", "postgresql://", "postgresql://u:", "file:", "credential:"]),
)
def test_any_text(text: str, start: str) -> None:
    try:
        database.check(start + text)
        database.shown(start + text)
    except ConfigError:
        pass
