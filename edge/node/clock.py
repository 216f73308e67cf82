"""The clock as an input with a quality: what time it is, and whether that can be believed.

A board without a battery wakes up in 1970. A wall clock before the day this was built is certainly
wrong; it is then replaced by the *time floor*: the build date, or the latest moment that a peer named
in the configuration has proved since, which the store keeps. Nobody else raises the floor. While the
clock is unset

- our own attestations run from the floor for LONG, since no peer with a right clock would accept a
  short one, and are made again when the floor rises;
- a configured or pinned peer may show an attestation made after what we take for now.

A clock that is ahead cannot be told from a right one: peers' attestations look expired and are refused,
with a message that asks about the clock, until it is set. What is *kept* survives it: an identity is
valid from the build date, and for LIFETIME beyond the later of build date and now. See
docs/decisions/0003-clock.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable

BUILD_DATE = 1_735_689_600
"""2025-01-01. No clock can rightly say less; moved forward with releases."""
YEAR = 365 * 86_400
LIFETIME = 30 * YEAR
"""How long an identity key may attest."""
SHORT = 86_400
"""How long our attestations live; they are renewed after two thirds of it."""
LONG = 5 * YEAR
"""The same while the clock is unset."""
STEP = 3_600
"""Seconds by which the floor must rise to be worth writing down."""


class Clock:
    """now() is the wall clock, or the floor while the wall clock cannot be right."""

    def __init__(
        self,
        *,
        wall: Callable[[], float] = time.time,
        floor: int = BUILD_DATE,
        raised: Callable[[int], None] = lambda floor: None,
    ) -> None:
        """`raised` is told of a new floor, to keep it."""
        self._wall = wall
        self._floor = max(floor, BUILD_DATE)
        self._raised = raised

    @property
    def floor(self) -> int:
        return self._floor

    def unset(self) -> bool:
        """Whether the wall clock says a time that is certainly over."""
        return int(self._wall()) < self._floor

    def now(self) -> int:
        return max(int(self._wall()), self._floor)

    def lifetime(self) -> int:
        """How long an attestation made now should live."""
        return LONG if self.unset() else SHORT

    def proved(self, moment: int) -> None:
        """A configured peer has proved that it is `moment` or later."""
        if moment >= self._floor + STEP and self.unset():
            self._floor = moment
            self._raised(moment)


def identity_validity(now: int) -> tuple[int, int]:
    """From when until when a key that is made now may attest."""
    return BUILD_DATE, max(BUILD_DATE, now) + LIFETIME
