"""Where log lines go: standard error, or a file of bounded size; one more level, WIRE, below DEBUG.

Peers can make us write: `Rarely` lets a line about them through some times a minute and counts the
rest.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from edge.errors import ConfigError

WIRE = 5
LEVELS = {
    "wire": WIRE,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
FILE_SIZE = 5 * 1024 * 1024
FILES = 2
"""Old files that are kept beside the newest: three in all."""
FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def set_up(*, file: Path | None = None, level: str = "info") -> None:
    """Send everything to `file`, or to standard error. Raises ConfigError."""
    if level not in LEVELS:
        raise ConfigError(f"{level!r} is no log level", hint="use one of " + ", ".join(LEVELS))
    logging.addLevelName(WIRE, "WIRE")
    handler = _handler(file)
    handler.setFormatter(logging.Formatter(FORMAT))
    handler.addFilter(Rarely())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(LEVELS[level])
    logging.raiseExceptions = False  # a full disk must not stop the node


def _handler(file: Path | None) -> logging.Handler:
    if file is None:
        return logging.StreamHandler(sys.stderr)
    try:
        return Rotating(file)
    except OSError as error:
        raise ConfigError(f"cannot write the log {file}: {error.strerror}") from None


class Rotating(logging.FileHandler):
    """A file that becomes FILE.1 when it is full. That of `logging.handlers` costs a node 0.8 MB."""

    def __init__(self, file: Path) -> None:
        super().__init__(file, encoding="utf-8")

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


class Rarely(logging.Filter):
    """Lets each place in the code write so many warnings and less per minute; errors always pass."""

    def __init__(
        self, most: int = 60, every: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._most, self._every, self._clock = most, every, clock
        self._seen: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            return True
        place = (record.pathname, record.lineno)
        now = self._clock()
        since, count = self._seen.get(place, (now, 0))
        if now - since >= self._every:
            left_out = count - self._most
            if left_out > 0:
                record.msg = f"{record.getMessage()} ({left_out} such lines were left out)"
                record.args = ()
            since, count = now, 0
        self._seen[place] = (since, count + 1)
        return count < self._most
