"""The forms of a line of the log: text for people, JSON for programs, fields for the journal."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

LONGEST = 2_000
"""Characters of a message; the rest is cut, so that no peer makes a line long."""
LONGEST_TRACE = 8_000
TEXT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
JOURNAL = Path("/run/systemd/journal/socket")
PRIORITY = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
"""syslog(3) levels; what is less is 7."""


def message(record: logging.LogRecord) -> str:
    """What is said, of bounded length."""
    text = record.getMessage()
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text)} characters)"


def trace(record: logging.LogRecord) -> str | None:
    """Where an exception came from; its last lines say most."""
    if not record.exc_info or record.exc_info[0] is None:
        return None
    return logging.Formatter().formatException(record.exc_info)[-LONGEST_TRACE:]


def described(record: logging.LogRecord) -> dict[str, str]:
    """Its event, whom it is about, and what to do: stable names, in lower case."""
    found = {"event": str(record.event)} if hasattr(record, "event") else {}
    if hint := getattr(record, "hint", ""):
        found["hint"] = hint
    return found | getattr(record, "fields", {})


class Text(logging.Formatter):
    """A line, and below it the trace of an exception."""

    def __init__(self) -> None:
        super().__init__(TEXT)

    def format(self, record: logging.LogRecord) -> str:
        line = self.formatMessage(_copy(record, self.formatTime(record)))
        where = trace(record)
        return line if where is None else f"{line}\n{where}"


class Json(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message; event, hint and its fields."""

    def __init__(self, node: str = "") -> None:
        super().__init__()
        self._node = node

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message(record),
        }
        if self._node:
            line["node"] = self._node
        line |= {key: value for key, value in described(record).items() if key not in line}
        if (where := trace(record)) is not None:
            line["trace"] = where
        return json.dumps(line, ensure_ascii=False)


class Journal(logging.Handler):
    """systemd's journal, by its native protocol: a datagram of fields, which LONGEST and LONGEST_TRACE
    keep well below what a datagram may be. systemd-python would do the same, and has no wheels."""

    def __init__(self, node: str, path: Path = JOURNAL) -> None:
        super().__init__()
        self._node, self._path = node, str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            datagram = encode(journal_fields(record, self._node))
            with suppress(OSError):  # no journal now: there is nobody to tell
                self._socket.sendto(datagram, self._path)
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        self._socket.close()
        super().close()


def journal_fields(record: logging.LogRecord, node: str) -> dict[str, str]:
    """As the journal takes them: upper case, EVENT among them."""
    priority = next((syslog for least, syslog in PRIORITY if record.levelno >= least), 7)
    where = trace(record)
    fields = {
        "MESSAGE": message(record) if where is None else f"{message(record)}\n{where}",
        "PRIORITY": str(priority),
        "SYSLOG_IDENTIFIER": "ockam-edge",
        "LOGGER": record.name,
        "NODE": node,
        "CODE_FILE": Path(record.pathname).name,
        "CODE_LINE": str(record.lineno),
    }
    more = {key.upper(): value for key, value in described(record).items()}
    return fields | {key: value for key, value in more.items() if key not in fields}


def encode(fields: dict[str, str]) -> bytes:
    """Values with line breaks are written with their length."""
    parts = bytearray()
    for name, value in fields.items():
        data = value.encode("utf-8", "replace")
        if b"\n" in data:
            parts += name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
        else:
            parts += name.encode() + b"=" + data + b"\n"
    return bytes(parts)


def under_journal() -> bool:
    """Whether standard error is a stream to the journal (systemd.exec(5), $JOURNAL_STREAM)."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    with suppress(OSError):
        found = os.fstat(2)
        return (device, inode) == (str(found.st_dev), str(found.st_ino)) and JOURNAL.exists()
    return False


def _copy(record: logging.LogRecord, asctime: str) -> logging.LogRecord:
    """With the message cut: other handlers have the record, too."""
    copy = logging.makeLogRecord(record.__dict__)
    copy.message, copy.asctime = message(record), asctime
    return copy
