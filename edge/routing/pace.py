"""Pace: how fast a listener accepts. Whoever is not accepted yet waits in the kernel's queue, in order.

After a restart everybody comes back at once. A listener that has come back therefore begins slowly and
doubles its pace from time to time; and at any time nobody new is let in faster than the loop keeps up,
so that those who are in already are served as before. Nobody need know how many the others are: a lone
node is accepted at once, as every member of a small fleet.
"""

from __future__ import annotations

FIRST = 60.0
"""Connections per second after a restart: a thousand come back in 17 s."""
DOUBLED = 20.0
"""Seconds after which it is twice as much."""
MOST = 800.0
"""Connections per second at any time: more handshakes than a core does."""
SAVED = 0.1
"""Seconds of the pace that may be used up at once."""
AT_ONCE = 16
"""Connections that may be accepted in one turn of the loop."""
LATE = 0.05
"""A turn that begins so many seconds late has been held up by work: a few dozen handshakes."""


class Pace:
    """`began`: when the listener came back, by the clock of `now`; None where it was never there
    before, and nobody comes back."""

    def __init__(self, began: float | None = None) -> None:
        self._began = began
        self._credit = MOST
        self._at: float | None = None

    def rate(self, now: float) -> float:
        """Connections per second."""
        if self._began is None:
            return MOST
        doublings = min(max(now - self._began, 0.0) // DOUBLED, 16.0)
        return float(min(MOST, FIRST * 2.0**doublings))

    def allowed(self, now: float, late: float = 0.0) -> int:
        """How many may be accepted now, in a turn of the loop that began `late` seconds after it was
        due. Where the loop does not keep up it is one at most, so that nobody waits for ever."""
        rate = self.rate(now)
        passed = 0.0 if self._at is None else max(now - self._at, 0.0)
        self._at = now
        self._credit = min(max(1.0, rate * SAVED), self._credit + rate * passed)
        return min(int(self._credit), 1 if late > LATE else AT_ONCE)

    def took(self) -> None:
        """One was accepted."""
        self._credit -= 1.0
