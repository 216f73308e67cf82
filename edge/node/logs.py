"""Where log lines go: the journal under systemd, else standard error, or a file of bounded size.

One more level, WIRE, is below DEBUG. How much may be written is for ration.py, how a line looks for
formats.py, and what is remembered of troubles for recent.py.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from edge.errors import ConfigError
from edge.node.formats import Journal, Json, Text, encode, journal_fields, under_journal
from edge.node.ration import Ration
from edge.node.recent import Recent

WIRE = 5
LEVELS = {
    "wire": WIRE,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
FORMATS = ("text", "json")
FILE_SIZE = 5 * 1024 * 1024
FILES = 2
"""Old files that are kept beside the newest: three in all."""
OVERHEAD = 800
"""Bytes that the journal adds to the fields of an entry: 30,000 entries with 270 bytes of fields took
at most 32 MiB in a journald 252."""


def set_up(
    *,
    file: Path | None = None,
    level: str = "info",
    form: str = "text",
    node: str = "",
    recent: Recent | None = None,
) -> Ration:
    """Send everything to the journal where systemd started us, else to `file`, or to standard error.
    `recent` hears all of it. Gives what counts the bytes. Raises ConfigError."""
    if level not in LEVELS:
        raise ConfigError(f"{level!r} is no log level", hint="use one of " + ", ".join(LEVELS))
    if form not in FORMATS:
        raise ConfigError(f"{form!r} is no log format", hint="use one of " + ", ".join(FORMATS))
    logging.addLevelName(WIRE, "WIRE")
    handler = _handler(file, form, node)
    ration = Ration(_cost(handler, node))
    handler.addFilter(ration)
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    if recent is not None:
        root.addHandler(recent)
    root.addHandler(handler)
    root.setLevel(LEVELS[level])
    logging.raiseExceptions = False  # a full disk must not stop the node
    return ration


def _handler(file: Path | None, form: str, node: str) -> logging.Handler:
    if file is None and form == "text" and under_journal():
        return Journal(node)
    handler = logging.StreamHandler(sys.stderr) if file is None else _to_file(file)
    handler.setFormatter(Json(node) if form == "json" else Text())
    return handler


def _to_file(file: Path) -> logging.Handler:
    try:
        return Rotating(file)
    except OSError as error:
        raise ConfigError(f"cannot write the log {file}: {error.strerror}") from None


def _cost(handler: logging.Handler, node: str) -> Callable[[logging.LogRecord], int]:
    """How many bytes a record takes there."""
    if isinstance(handler, Journal):
        return lambda record: len(encode(journal_fields(record, node))) + OVERHEAD
    return lambda record: len(handler.format(record).encode("utf-8", "replace")) + 1


class Rotating(logging.FileHandler):
    """A file that becomes FILE.1 when it is full. That of `logging.handlers` costs a node 0.8 MB."""

    def __init__(self, file: Path) -> None:
        super().__init__(file, encoding="utf-8", errors="replace")

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        try:
            if self.stream is not None and self.stream.tell() >= FILE_SIZE:
                self.stream.close()
                self.stream = None  # opened again by the next line
                self._rotate()
        except (OSError, ValueError):
            self.handleError(record)

    def _rotate(self) -> None:
        names = [self.baseFilename, *(f"{self.baseFilename}.{n + 1}" for n in range(FILES))]
        for newer, older in reversed(list(pairwise(names))):
            if os.path.exists(newer):
                os.replace(newer, older)
