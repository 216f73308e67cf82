"""Places: how many requests may be in progress at once, in all and of one caller."""

from __future__ import annotations

from collections import Counter

from edge.identity.history import Identifier


class Places:
    """`most` in all, `each` of one caller."""

    def __init__(self, most: int, each: int) -> None:
        self.taken = 0
        self._most, self._each = most, each
        self._of: Counter[Identifier] = Counter()

    def of(self, caller: Identifier) -> int:
        """How many it has."""
        return self._of[caller]

    def take(self, caller: Identifier) -> bool:
        """Whether there was one for it."""
        if self.taken >= self._most or self._of[caller] >= self._each:
            return False
        self.taken += 1
        self._of[caller] += 1
        return True

    def leave(self, caller: Identifier) -> None:
        self.taken -= 1
        self._of[caller] -= 1
        if not self._of[caller]:
            del self._of[caller]
