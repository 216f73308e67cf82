"""Logs: where lines go, their forms, bounded files, bounded volume, and what is remembered."""

import json
import logging
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.errors import ConfigError
from edge.events import event
from edge.node import formats, logs
from edge.node.logs import WIRE, set_up
from edge.node.ration import BYTES, EVERY, LINES, PER_SECOND, Ration
from edge.node.recent import MOST, Recent

DAY = 86_400
MOST_A_DAY = 5_000_000


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


def record(
    text: str = "said", level: int = logging.WARNING, line: int = 1, **extra: object
) -> logging.LogRecord:
    made = logging.LogRecord("edge.x", level, "/a/file.py", line, text, None, None)
    made.__dict__.update(extra)
    return made


def failed() -> logging.LogRecord:
    try:
        raise ValueError("deep down")
    except ValueError:
        made = record("a bug", logging.ERROR)
        made.exc_info = sys.exc_info()
        return made


# -- where they go


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
    with pytest.raises(ConfigError, match="no log format"):
        set_up(form="xml")
    with pytest.raises(ConfigError, match="cannot write"):
        set_up(file=tmp_path / "missing" / "n.log")


def test_the_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FILE_SIZE", 1000)
    file = tmp_path / "n.log"
    set_up(file=file)
    for number in range(300):
        logging.getLogger(f"edge.{number}").handle(record(f"line {number}", line=number))
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


# -- how they look


def test_text_has_the_trace_and_no_endless_line() -> None:
    text = formats.Text().format(failed())
    assert "ERROR   edge.x: a bug\nTraceback" in text
    assert text.endswith("ValueError: deep down")
    assert len(formats.Text().format(record("x" * 100_000))) < formats.LONGEST + 100


def test_json_is_one_object_a_line() -> None:
    said = event("relay-failed", ConfigError("x", hint="do this"), relay="r1", peer=None)
    line = formats.Json("n").format(record("two\nlines", **said))
    assert "\n" not in line
    found = json.loads(line)
    assert found.pop("time").endswith("Z")
    assert found == {
        "level": "warning", "logger": "edge.x", "message": "two\nlines", "node": "n",
        "event": "relay-failed", "hint": "do this", "relay": "r1",
    }  # fmt: skip
    assert "deep down" in json.loads(formats.Json().format(failed()))["trace"]


def test_a_field_does_not_take_the_place_of_another() -> None:
    said = {"event": "bug", "fields": {"message": "forged", "level": "info", "priority": "7"}}
    assert json.loads(formats.Json().format(record(**said)))["message"] == "said"
    assert formats.journal_fields(record(**said), "n")["PRIORITY"] == "4"


def parsed(datagram: bytes) -> dict[str, str]:
    """As the journal reads it."""
    found = {}
    while datagram:
        line, _, rest = datagram.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + size], rest[8 + size :]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        found[name.decode()] = value.decode()
        datagram = rest
    return found


def test_the_journal_gets_fields(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(path))
        journal.settimeout(5)
        handler = formats.Journal("gateway", path)
        handler.handle(record("gone", **event("token-gone", token="t")))
        handler.handle(failed())
        handler.handle(record("forged\nPRIORITY=0", logging.INFO))
        handler.close()
        first, second, third = (parsed(journal.recv(65536)) for _ in range(3))
    assert first["MESSAGE"] == "gone"
    assert (first["EVENT"], first["NODE"], first["TOKEN"]) == ("token-gone", "gateway", "t")
    assert (first["PRIORITY"], first["SYSLOG_IDENTIFIER"]) == ("4", "ockam-edge")
    assert "taken up again" in first["HINT"]
    assert second["MESSAGE"].endswith("ValueError: deep down")
    assert third["PRIORITY"] == "6"


def test_a_journal_that_is_away_stops_nothing(tmp_path: Path) -> None:
    handler = formats.Journal("n", tmp_path / "nobody")
    handler.handle(record())
    handler.close()


def test_the_journal_is_taken_where_standard_error_is_its_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "JOURNAL", tmp_path)
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    assert not formats.under_journal()
    found = formats.os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
    assert formats.under_journal()
    set_up(node="n")
    assert isinstance(logging.getLogger().handlers[0], formats.Journal)
    set_up(node="n", form="json")
    assert not isinstance(logging.getLogger().handlers[0], formats.Journal)


# -- how many


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_lines_of_a_place_are_rationed_and_those_left_out_are_counted() -> None:
    clock = Clock()
    ration = Ration(lambda record: 10, clock=clock)
    assert all(ration.filter(record()) for _ in range(LINES))
    assert not ration.filter(record())
    assert not ration.filter(record(level=logging.ERROR))
    assert ration.filter(record(line=2))
    assert (ration.left_out, ration.written) == (2, 10 * (LINES + 1))
    clock.now = EVERY
    later = record("said %s")
    later.args = ("x",)
    assert ration.filter(later)
    assert later.getMessage() == "said x (2 such lines were left out)"
    assert not ration.filter(record())


def test_errors_and_audits_have_a_reserve() -> None:
    ration = Ration(lambda record: BYTES // 10, clock=Clock())
    passed = [ration.filter(record(line=number)) for number in range(20)]
    assert passed.count(True) == 7
    assert ration.filter(record("e", logging.ERROR, 30))
    assert all(
        ration.filter(record("a", logging.INFO, 31, **event("member-added"))) is (number < 2)
        for number in range(3)
    )
    assert ration.filter(record("asked for", logging.DEBUG, 32))


def test_an_audit_is_not_left_out_for_being_frequent() -> None:
    ration = Ration(lambda record: 10, clock=Clock())
    said = event("ticket-redeemed")
    assert all(ration.filter(record("a", logging.INFO, 1, **said)) for _ in range(10 * LINES))


@pytest.mark.parametrize("form", ["text", "json", "journal"])
def test_a_day_of_the_worst_is_less_than_5_mb(form: str, tmp_path: Path) -> None:
    """Nine places fail at once, over and over, with the longest lines, for a day."""
    clock = Clock()
    if form == "journal":
        handler: logging.Handler = formats.Journal("n", tmp_path / "none")
    else:
        handler = logging.NullHandler()
        handler.setFormatter(formats.Json("n") if form == "json" else formats.Text())
    sizes: dict[int, int] = {}  # by line
    measure = logs._cost(handler, "n")

    def cost(one: logging.LogRecord) -> int:  # of lines that differ in a digit only
        if one.lineno not in sizes:
            sizes[one.lineno] = measure(one)
        return sizes[one.lineno]

    ration = Ration(cost, clock=clock)
    lines = [
        record("x" * (200 * line), level, line, **event("relay-failed", relay="r" * 60))
        for line, level in enumerate([logging.INFO, logging.WARNING, logging.ERROR] * 3, 1)
    ]
    written = 0
    for moment in range(0, DAY, 300):  # a place has ten lines more by then
        clock.now = float(moment)
        for line in lines * (12 if moment else LINES):
            written += sizes.get(line.lineno, 0) if ration.filter(line) else 0
    handler.close()
    assert abs(written - ration.written) <= max(sizes.values())  # the first has no size yet
    assert written <= MOST_A_DAY
    assert BYTES + DAY * PER_SECOND <= MOST_A_DAY


# -- what is remembered


def test_a_trouble_is_remembered_and_ends() -> None:
    recent = Recent()
    for number in range(3):
        recent.handle(record(f"no {number}", **event("relay-failed", relay="a")))
    recent.handle(record("no", **event("relay-failed", relay="b")))
    first, second = recent.list()
    assert (first["subject"], second["subject"]) == ("b", "a")
    assert (second["message"], second["count"], second["over"]) == ("no 2", 3, False)
    assert "look at the network" in second["hint"]
    recent.handle(record("yes", logging.INFO, **event("relay-up", relay="b", peer="I")))
    assert [one["over"] for one in recent.list()] == [False, True]
    assert [one["subject"] for one in recent.list()] == ["a", "b"]
    recent.handle(record("again", **event("relay-failed", relay="b")))
    assert recent.list()[0]["count"] == 1
    assert recent.events["relay-failed"] == 5
    assert recent.lines == {"warning": 5, "info": 1}


def test_what_is_remembered_is_bounded() -> None:
    recent = Recent()
    for number in range(MOST + 10):
        recent.handle(record(line=number))
        recent.handle(record(**event("portal-refused", peer=f"I{number}", resource="db")))
    assert len(recent.list()) == MOST


def test_what_ends_a_trouble_is_none() -> None:
    recent = Recent()
    recent.handle(record("back", **event("token-back", token="t")))
    assert recent.list() == []


def test_all_is_heard_even_what_is_left_out(tmp_path: Path) -> None:
    recent = Recent()
    ration = set_up(file=tmp_path / "n.log", recent=recent)
    for _ in range(LINES + 5):
        logging.getLogger("edge").warning("x", extra=event("request-invalid"))
    assert recent.events["request-invalid"] == LINES + 5
    assert ration.left_out == 5
    assert (tmp_path / "n.log").stat().st_size == ration.written
