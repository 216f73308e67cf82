"""Ration: how much may be logged, so that a failure that repeats for years does not fill a small disk.

Each place in the code has a bucket of lines, and all together have one of bytes. What is left out is
counted, and said with the next line of the same place. DEBUG and less are not counted against the
bytes: whoever asks for them gets them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from edge.events import EVENTS

LINES = 60
"""Lines of one place at once."""
EVERY = 30.0
"""Seconds after which it has one more."""
BYTES = 1 << 20
"""Bytes of all places at once."""
PER_SECOND = 40.0
"""Bytes that are added per second: with those at once 4.5 MB in any 24 hours."""
RESERVE = BYTES // 4
"""Of the bytes: what is left for errors, and for what an audit is made of."""


class Bucket(NamedTuple):
    """How much is left, since when; `left_out` counts what found too little."""

    left: float
    since: float
    left_out: int = 0


class Ration(logging.Filter):
    """Lets through what there is room for."""

    def __init__(
        self,
        cost: Callable[[logging.LogRecord], int],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`cost` says how many bytes a record takes where it goes."""
        super().__init__()
        self.written = self.left_out = 0
        """Bytes, and lines."""
        self._cost, self._clock = cost, clock
        self._places: dict[tuple[str, int], Bucket] = {}
        self._bytes = Bucket(BYTES, clock())

    def filter(self, record: logging.LogRecord) -> bool:
        now = self._clock()
        place = (record.pathname, record.lineno)
        mine = _filled(self._places.get(place, Bucket(LINES, now)), now, LINES, 1 / EVERY)
        known = EVENTS.get(getattr(record, "event", ""))
        audit = known is not None and known.audit
        if mine.left < 1 and not audit:
            return self._refuse(place, mine)
        if mine.left_out:
            record.msg = f"{record.getMessage()} ({mine.left_out} such lines were left out)"
            record.args = ()
        if not self._pay(record, now, urgent=audit or record.levelno >= logging.ERROR):
            return self._refuse(place, mine._replace(left=max(mine.left - 1, 0)))
        self._places[place] = Bucket(max(mine.left - 1, 0), now)
        return True

    def _pay(self, record: logging.LogRecord, now: float, *, urgent: bool) -> bool:
        cost = self._cost(record)
        if record.levelno >= logging.INFO:
            there = _filled(self._bytes, now, BYTES, PER_SECOND)
            if there.left - cost < (0 if urgent else RESERVE):
                return False
            self._bytes = Bucket(there.left - cost, now)
        self.written += cost
        return True

    def _refuse(self, place: tuple[str, int], mine: Bucket) -> bool:
        self.left_out += 1
        self._places[place] = mine._replace(left_out=mine.left_out + 1)
        return False


def _filled(bucket: Bucket, now: float, most: float, per_second: float) -> Bucket:
    left = min(most, bucket.left + (now - bucket.since) * per_second)
    return bucket._replace(left=left, since=now)
