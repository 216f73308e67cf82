"""The PIN of a token, given out for one login at a time: one that the token refused is never tried
again.

Tokens count wrong PINs and then lock, some for good, and a service that restarts would walk into
that by itself. So how each login ends is on the disk (marker.py), and that one has begun is there
before it begins."""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vault_backends.pkcs11 import pinfile
from vault_backends.pkcs11.marker import Memory, Record, Unwritten, open_marker
from vault_backends.uri import ASK, PIN_VALUE, Ask, Pkcs11Uri, obtain, secret_path
from vault_backends.vault import DeviceGone, Locked, TokenState

_UNCLEAR_TRIES = 4  # logins in a row that say nothing of the PIN, then there is a pause
_FIRST_PAUSE, _LAST_PAUSE = 15.0, 900.0  # seconds
_BROKEN_TRIES = 2  # logins in a row without a known end, then a person must look


class WrongPin(Exception):
    """The token said no to the PIN."""


class Secret:
    """Text that no traceback, log or repr shows."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "Secret(…)"


class Pin:
    """Gives out the PIN for one login attempt at a time, or refuses to."""

    def __init__(
        self,
        uri: Pkcs11Uri,
        ask: Ask | None,
        state_dir: Path | None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._now = now
        self._uri = uri
        self._source = uri.pin_source
        self._ask = ask
        self._state_dir = state_dir
        self._here: dict[str, Unwritten] = {}  # per token, where there is no folder for it

    @contextmanager
    def attempt(
        self, token: TokenState, name: str, check: Callable[[], TokenState | None] = lambda: None
    ) -> Iterator[Secret]:
        """The PIN, for one login inside the block. WrongPin raised there is remembered for ever,
        other exceptions are no verdict on the PIN; if the process ends inside, that is known too.
        `check` is called last before, with nobody else logging in, and may refuse by raising; it
        returns what the token says now. Raises Locked if the PIN must not be tried."""
        pin = self._fetch(name)
        with self._memory(token) as memory:
            found, tag = memory.read(), memory.tag(pin.reveal())
            self._judged(found, tag, name, memory)  # what is known needs no question to the token
            token = check() or token
            before = self._judged(self._settled(found, token, name, memory), tag, name, memory)
            memory.write(before.trying(tag if self._lies_in_a_file else None, token.pin_tried))
            refused = ""
            try:
                yield pin
            except WrongPin as error:
                refused = str(error)
            except Exception:
                memory.write(before.without_verdict(self._now()))
                raise
            if refused:
                memory.write(before.failed(tag))
                self._make_way(name, memory)
                raise Locked(
                    f"{name} refused the PIN from {self._place}: {refused}",
                    hint=f"correct the PIN at its source; this one is not tried again{_at(memory)}",
                )
            memory.write(before.accepted())

    def marker(self, token: TokenState) -> Path | None:
        """The file that remembers the logins to `token`; whoever removes it vouches for the PIN."""
        if self._state_dir is None:
            return None
        # The token, not the way to it: another path of the module leads to the same PIN counter.
        name = hashlib.sha256(f"{token.label}\0{token.serial}".encode()).hexdigest()[:32]
        return self._state_dir / f"pin-{name}.json"

    def forget(self, token: TokenState) -> None:
        """A person says that the PIN is right, or has just changed it: start from nothing."""
        with self._memory(token) as memory:
            memory.write(Record())

    @contextmanager
    def _memory(self, token: TokenState) -> Iterator[Memory]:
        path = self.marker(token)
        if path is None:
            yield self._here.setdefault(f"{token.label}\0{token.serial}", Unwritten())
            return
        with open_marker(path) as marker:
            yield marker

    def _fetch(self, name: str) -> Secret:
        if self._uri.pin_value is not None:
            return Secret(self._uri.pin_value)
        return Secret(obtain(self._source, self._ask, f"the PIN of {name}"))

    def _settled(self, found: Record, token: TokenState, name: str, memory: Memory) -> Record:
        """`found`, where the token's counter tells how the login ended that nobody wrote the end of."""
        if not found.was_refused(token.pin_tried):
            return found
        if found.tried is None:
            raise Locked(
                f"the last login to {name} broke off, and the token counts a wrong PIN since; it is "
                "not tried again",
                hint=f"see that the PIN from {self._place} is right{_at(memory)}",
            )
        settled = found.failed(found.tried)
        memory.write(settled)
        return settled

    def _judged(self, before: Record, tag: str, name: str, memory: Memory) -> Record:
        """`before` as it bears on this PIN; Locked if it must not be tried."""
        if tag in before.refused:
            if (
                before.state == "failed"
            ):  # not for one that only looks alike: a change begins with ok
                self._make_way(name, memory)
            alike = "" if memory.path is None else " (or one that looks alike, as 1 in 256 do)"
            raise Locked(
                f"{name} refused this PIN from {self._place} before{alike}; it is not tried again",
                hint=f"correct the PIN at its source{_at(memory)}",
            )
        if before.tried not in (None, tag):
            return before.fresh()
        if before.broken >= _BROKEN_TRIES:
            raise Locked(
                f"{before.broken} logins to {name} broke off without an answer; the PIN may be "
                "wrong, and is not tried again",
                hint=f"see that the PIN from {self._place} is right{_at(memory)}",
            )
        self._check_pause(before, name)
        return before

    def _check_pause(self, before: Record, name: str) -> None:
        """A token that fails at every login may mean the PIN by it, and count in silence."""
        many = before.unclear - _UNCLEAR_TRIES
        pause = min(_FIRST_PAUSE * 2.0 ** min(many, 16), _LAST_PAUSE) if many >= 0 else 0.0
        left = pause - (self._now() - before.at)
        if 0.0 < left <= pause:  # a clock that was set back waits for nothing
            raise DeviceGone(
                f"{before.unclear} logins to {name} in a row failed without a word about the PIN",
                hint=f"the next one is in {left:.0f} s",
            )

    def _make_way(self, name: str, memory: Memory) -> None:
        """The token refused the PIN in the file. Where a change of PIN broke off, that was it: the
        new one beside takes its place, for the next login. Raises Locked then."""
        if not self._lies_in_a_file or not pinfile.succeed(secret_path(self._source)):
            return
        memory.write(Record())  # of the old PIN; the new one may look like any of those before
        raise Locked(
            f"{name} refused the PIN from {self._place}, where a change of PIN broke off; the new PIN "
            "has taken its place",
            hint="do it again: the next login is with the new PIN",
            retry=True,
        )

    @property
    def _lies_in_a_file(self) -> bool:
        """Beside a PIN in plain text a byte of its hash tells nothing new. Of one that is sealed or
        in somebody's head not even that is written before the token refused it."""
        return self._source.startswith("file:")

    @property
    def _place(self) -> str:
        return {ASK: "the answer", PIN_VALUE: "the vault URI"}.get(self._source, self._source)


def _at(memory: Memory) -> str:
    return f"; if it is right, remove {memory.path}" if memory.path else ""
