"""Recent: the troubles of a node, the last of each kind, and whether they are over.

It hears every line of the log before any is left out. What it keeps is bounded, in memory, and what
`status` shows as last errors.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Any

from edge.events import EVENTS
from edge.node.formats import message
from edge.token import utc

MOST = 50
"""Troubles that are remembered; the one that was silent longest goes."""
SUBJECTS = ("relay", "inlet", "outlet", "resource", "token")
"""Fields by which troubles of one kind are told apart; peers are not, there may be any number."""
Key = tuple[str, str]


@dataclass
class Trouble:
    """What went wrong, the last time of `count`."""

    event: str | None
    subject: str | None
    level: str
    message: str
    hint: str
    first: float
    last: float
    count: int = 1
    over: bool = False

    def status(self) -> dict[str, Any]:
        return {
            "event": self.event,
            "subject": self.subject,
            "level": self.level,
            "message": self.message,
            "hint": self.hint or None,
            "first": utc(self.first),
            "last": utc(self.last),
            "count": self.count,
            "over": self.over,
        }


class Recent(logging.Handler):
    """Hears warnings and errors; and what ends them."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.events: Counter[str] = Counter()
        """How often each event was told."""
        self.lines: Counter[str] = Counter()
        """How many lines there were of each level."""
        self._troubles: OrderedDict[Key, Trouble] = OrderedDict()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._hear(record)
        except Exception:
            self.handleError(record)

    def list(self) -> list[dict[str, Any]]:
        """Those that go on first, then the newest first."""
        found = reversed(self._troubles.values())
        return [one.status() for one in sorted(found, key=lambda one: one.over)]

    def _hear(self, record: logging.LogRecord) -> None:
        self.lines[record.levelname.lower()] += 1
        name: str | None = getattr(record, "event", None)
        fields = getattr(record, "fields", {})
        subject = next((fields[key] for key in SUBJECTS if key in fields), None)
        if name is not None:
            self.events[name] += 1
            for ended in EVENTS[name].ends:
                if (trouble := self._troubles.get((ended, subject or ""))) is not None:
                    trouble.over = True
        if record.levelno >= logging.WARNING and not (name and EVENTS[name].ends):
            self._keep(record, name, subject)

    def _keep(self, record: logging.LogRecord, name: str | None, subject: str | None) -> None:
        key = (name or f"{record.pathname}:{record.lineno}", subject or "")
        before = self._troubles.pop(key, None)
        self._troubles[key] = Trouble(
            name,
            subject,
            record.levelname.lower(),
            message(record),
            getattr(record, "hint", ""),
            record.created if before is None or before.over else before.first,
            record.created,
            1 if before is None or before.over else before.count + 1,
        )
        if len(self._troubles) > MOST:
            self._troubles.popitem(last=False)
