"""Members: what this node's authority says of its peers, for as long as it is true.

A credential arrives in a handshake, or in an open channel when it was renewed. What it says counts from
then on for its subject, whichever channel it speaks through, until it expires, is replaced, or the
authority says that the subject is no member any more (05 §1.6, §2.5).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

from edge.authority.rights import RESERVED
from edge.errors import EdgeError
from edge.events import event
from edge.identity.credential import Credential
from edge.identity.history import Identifier
from edge.identity.known import Known

log = logging.getLogger("edge.members")

MOST = 50_000
"""Subjects that are remembered. Each has a credential that holds, so they are the fleet."""

Watcher = Callable[[Identifier], None]


class _Said(NamedTuple):
    """What was said of somebody. `encoded` tells the same credential from another one."""

    encoded: bytes
    attributes: Mapping[str, str]
    created_at: int
    expires_at: int


class Members:
    """`authority` is whose credentials count, None where nobody's do."""

    def __init__(
        self,
        known: Known,
        *,
        clock: Callable[[], int],
        clock_unset: Callable[[], bool] = lambda: False,
        authority: Identifier | None = None,
    ) -> None:
        self.authority = authority
        self.refused = 0
        self._known, self._clock, self._clock_unset = known, clock, clock_unset
        self._said: dict[Identifier, _Said] = {}
        self._not_before: dict[Identifier, int] = {}
        self._watchers: list[Watcher] = []

    def watch(self, watcher: Watcher) -> None:
        """Call `watcher` with the peer of whom something else is said now, or nothing any more."""
        self._watchers.append(watcher)

    def took(self, subject: Identifier, credentials: tuple[bytes, ...]) -> None:
        """What a peer has shown. One that does not hold is as if it had not been shown."""
        if self.authority is None:
            return
        for encoded in credentials:
            before = self._said.get(subject)
            if before is not None and before.encoded == encoded:
                continue
            try:
                said = self._verified(subject, encoded)
            except EdgeError as error:
                self.refused += 1
                log.warning(
                    "a credential that %s showed is refused: %s",
                    subject,
                    error,
                    extra=event("credential-refused", error, peer=subject),
                )
                continue
            self._keep(subject, said, before)

    def attributes(self, subject: Identifier | None) -> Mapping[str, str] | None:
        """What the authority says of `subject`; None where nothing holds."""
        said = self._said.get(subject) if subject is not None else None
        if said is None or said.expires_at < self._clock():
            return None
        return said.attributes

    def expires_at(self, subject: Identifier) -> int | None:
        """When what is said of `subject` ends."""
        said = self._said.get(subject)
        return None if said is None else said.expires_at

    def changed(self, subject: Identifier, at: int) -> None:
        """The authority removed it, or says something else of it, since `at`, by the authority's clock:
        credentials made until then do not count any more (the next ones are made later: issuer.py)."""
        limit = self._not_before[subject] = at + 1
        said = self._said.get(subject)
        if said is not None and said.created_at < limit:
            self._forget(subject)

    def sweep(self) -> None:
        """Forget what has expired. To be called every few seconds: nobody else tells of the end."""
        now = self._clock()
        for subject, said in list(self._said.items()):
            if said.expires_at < now:
                self._forget(subject)

    def _verified(self, subject: Identifier, encoded: bytes) -> _Said:
        assert self.authority is not None
        credential = Credential.decode(encoded)
        credential.verify(
            subject,
            (self.authority,),
            self._known,
            self._clock(),
            allow_future=self._clock_unset(),
        )
        if credential.created_at < self._not_before.get(subject, 0):
            raise EdgeError("its subject was removed or changed after it was made")
        return _Said(
            encoded, _texts(credential.attributes), credential.created_at, credential.expires_at
        )

    def _keep(self, subject: Identifier, said: _Said, before: _Said | None) -> None:
        if before is not None and said.created_at < before.created_at:
            return  # an older one, replayed or late
        self._said.pop(subject, None)
        self._said[subject] = said
        if len(self._said) > MOST:
            self._forget(next(iter(self._said)))
        if before is None or before.attributes != said.attributes:
            self._tell(subject)

    def _forget(self, subject: Identifier) -> None:
        del self._said[subject]
        self._tell(subject)

    def _tell(self, subject: Identifier) -> None:
        for watcher in self._watchers:
            watcher(subject)


def _texts(attributes: Mapping[bytes, bytes]) -> dict[str, str]:
    """Those whose names and values are texts, and that pass for nothing else."""
    found: dict[str, str] = {}
    for name, value in attributes.items():
        try:
            text = name.decode()
            if text not in RESERVED:
                found[text] = value.decode()
        except UnicodeDecodeError:
            continue
    return found
