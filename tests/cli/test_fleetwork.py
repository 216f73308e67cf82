"""Where a ticket may come from, without a fleet; what is wrong with it shows nothing of it."""

import errno
from pathlib import Path
from typing import NoReturn

import pytest

from edge.cli.fleetwork import LONGEST_TICKET, read_ticket
from edge.errors import ConfigError

HEX = "5e" * 700
"""As long as a ticket in hexadecimal: longer than the name of a file may be."""


@pytest.mark.parametrize("ticket", [HEX, "x" * 5000, "/ip4/127.0.0.1/tcp/1,I00,plant", '{"a": 1}'])
def test_the_ticket_itself(ticket: str) -> None:
    assert read_ticket(f" {ticket}\n") == ticket


def test_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a,{name"
    file.write_text(HEX)
    assert read_ticket(str(file)) == HEX
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert read_ticket(None) is None
    file.rename(tmp_path / "ticket")
    assert read_ticket(None) == HEX


def test_what_is_too_long_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ticket").write_text("x" * (LONGEST_TICKET + 1))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    for argument in (None, str(tmp_path / "ticket")):
        with pytest.raises(ConfigError, match="too long"):
            read_ticket(argument)


def test_an_error_does_not_show_what_may_be_a_ticket(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refused)
    with pytest.raises(ConfigError, match="Permission denied") as caught:
        read_ticket(HEX)
    assert HEX[:20] not in f"{caught.value} {caught.value.hint}"
