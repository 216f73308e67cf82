"""The histories we have seen, so that no peer can go back behind one of its rotations (02 §3.4)."""

from collections import OrderedDict
from collections.abc import Iterable
from enum import Enum, auto

from edge.errors import TrustError
from edge.identity.history import ChangeHistory, Comparison, Identifier


class Verdict(Enum):
    """What an acceptable history is to us."""

    NEW = auto()
    SAME = auto()
    NEWER = auto()


_ACCEPTED = {Comparison.SAME: Verdict.SAME, Comparison.NEWER: Verdict.NEWER}


class Known:
    """The latest verified history of each identity. Bounded in number and in bytes: the least
    recently used that is not `pinned` goes first, and with it the protection against its older
    forms. Authorities and peers that are named in the configuration are pinned."""

    def __init__(
        self,
        capacity: int = 10_000,
        pinned: Iterable[Identifier] = (),
        *,
        most_bytes: int = 4 * 1024 * 1024,
    ) -> None:
        self.capacity = capacity
        self.most_bytes = most_bytes
        self._bytes = 0
        self.pinned = set(pinned)
        self._histories: OrderedDict[Identifier, ChangeHistory] = OrderedDict()

    @property
    def size(self) -> int:
        return len(self._histories)

    def get(self, identifier: Identifier) -> ChangeHistory | None:
        history = self._histories.get(identifier)
        if history is not None:
            self._histories.move_to_end(identifier)
        return history

    def check(self, history: ChangeHistory) -> Verdict:
        """What is this verified history to us? TrustError if it is older than the one we know, or
        in conflict with it. Nothing is stored: see learn()."""
        ours = self.get(history.identifier)
        if ours is None:
            return Verdict.NEW
        comparison = ours.compare(history)
        if comparison not in _ACCEPTED:
            what = "older than" if comparison is Comparison.OLDER else "in conflict with"
            raise TrustError(f"{history.identifier}: the history is {what} the one we know")
        return _ACCEPTED[comparison]

    def learn(self, history: ChangeHistory) -> Verdict:
        """Keep a verified history, after the trust policy has accepted its owner (02 §10, 17)."""
        verdict = self.check(history)
        if verdict is not Verdict.SAME:
            older = self._histories.pop(history.identifier, None)
            self._bytes += len(history.encoded) - (len(older.encoded) if older else 0)
            self._histories[history.identifier] = history
            self._evict()
        return verdict

    def _evict(self) -> None:
        """Forget the least recently used; the pinned ones it meets count as used."""
        for _ in range(len(self._histories)):
            if len(self._histories) <= self.capacity and self._bytes <= self.most_bytes:
                return
            oldest = next(iter(self._histories))
            if oldest in self.pinned:
                self._histories.move_to_end(oldest)
            else:
                self._bytes -= len(self._histories.pop(oldest).encoded)
