"""What a module says, in the log of the node: at most so many lines a minute."""

import logging
import time
from collections.abc import Callable

from vault_backends.apart.complaints import shown


class Log:
    def __init__(
        self, logger: logging.Logger, a_minute: int = 20, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger = logger
        self._a_minute = a_minute
        self._now = now
        self._since = now()
        self._count = 0

    def write(self, module: str, lines: list[str]) -> None:
        for line in lines:
            if self._now() - self._since > 60:
                self._skipped(module)
                self._since, self._count = self._now(), 0
            self._count += 1
            if self._count <= self._a_minute:
                self._logger.info("%s says: %s", module, shown(line))

    def _skipped(self, module: str) -> None:
        if self._count > self._a_minute:
            self._logger.info("%s said %d lines more", module, self._count - self._a_minute)
