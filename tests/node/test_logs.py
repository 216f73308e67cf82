"""Logs: bounded files, bounded lines about peers."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.errors import ConfigError
from edge.node import logs
from edge.node.logs import WIRE, Rarely, set_up


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, raising = list(root.handlers), root.level, logging.raiseExceptions
    root.handlers[:] = []
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.raiseExceptions = raising


def test_to_a_file_and_to_the_console(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "n.log"
    set_up(file=file, level="wire")
    logging.getLogger("edge.x").log(WIRE, "bytes")
    assert "WIRE    edge.x: bytes" in file.read_text()
    set_up(level="warning")
    logging.getLogger("edge.x").info("no")
    logging.getLogger("edge.x").warning("yes")
    assert "edge.x: yes" in capsys.readouterr().err
    assert len(logging.getLogger().handlers) == 1


def test_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no log level"):
        set_up(level="loud")
    with pytest.raises(ConfigError, match="cannot write"):
        set_up(file=tmp_path / "missing" / "n.log")


def test_the_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FILE_SIZE", 1000)
    file = tmp_path / "n.log"
    set_up(file=file)
    for number in range(300):
        logging.getLogger("edge").error("line %d", number)
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["n.log", "n.log.1", "n.log.2"]
    assert all(path.stat().st_size < 1200 for path in tmp_path.iterdir())
    text = "".join((tmp_path / name).read_text() for name in reversed(found))
    assert "line 299" in text
    assert "line 280" in text


def test_a_file_that_cannot_rotate_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError

    set_up(file=tmp_path / "n.log")
    monkeypatch.setattr(logs, "FILE_SIZE", 1)
    monkeypatch.setattr("os.replace", fail)
    logging.getLogger("edge").error("one")
    logging.getLogger("edge").error("two")
    assert sys.exc_info() == (None, None, None)


def test_lines_are_rationed() -> None:
    now = 0.0
    rarely = Rarely(most=3, every=60.0, clock=lambda: now)

    def say(level: int = logging.WARNING, line: int = 1) -> bool:
        record = logging.LogRecord("edge", level, "file.py", line, "peer %s", ("x",), None)
        passed = rarely.filter(record)
        said.append(record.getMessage())
        return passed

    said: list[str] = []
    assert [say() for _ in range(5)] == [True, True, True, False, False]
    assert say(line=2)
    assert say(logging.ERROR)
    now = 61.0
    assert say()
    assert said[-1] == "peer x (2 such lines were left out)"
    assert say()
    assert said[-1] == "peer x"
