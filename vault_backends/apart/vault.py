"""ApartVault: a vault whose work is done by another process, which may crash, hang or be started anew.

See docs/decisions/0011-token-apart.md.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import NoneType
from typing import Any, TypeVar

from vault_backends import vault as vaults
from vault_backends.apart.log import Log
from vault_backends.apart.process import Ask, Process
from vault_backends.pkcs11 import points
from vault_backends.uri import Pkcs11Uri, parse
from vault_backends.vault import DeviceGone, Key, Kind, Refused, TokenState, VaultError

log = logging.getLogger("vault_backends.apart")
T = TypeVar("T")

LIMITS = {"generate": 300.0, "provision": 300.0, "probe": 10.0, "state": 10.0, "sign": 10.0}
"""Seconds to wait for an answer. An RSA key is found by trying; a slow chip signs in a second, and a
call that hangs keeps the token from coming back for as long as this."""
LIMIT = 30.0
STARTS, START_EVERY = 3, 10.0
"""Starts in a row, and seconds for one more: an interpreter costs 0.1 s and more of the processor."""
TRIES, RELOAD_EVERY = 2, 20.0
"""Calls in a row that a process may answer with DeviceGone, and seconds. Then another one takes over:
some modules recover only when they are loaded anew."""

ERRORS = {
    cls.__name__: cls
    for cls in vars(vaults).values()
    if isinstance(cls, type) and issubclass(cls, VaultError)
}


class ApartVault:
    """Vault, Token, Attests and Seals, where the vault in the other process is."""

    def __init__(
        self,
        uri: str,
        ask: Ask | None = None,
        *,
        state_dir: Path | None = None,
        limits: dict[str, float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises what the vault raises while it is opened."""
        self.logins = 0
        """C_Login calls with a PIN, over all lives of the process."""
        self.starts = 0
        self.seen = TokenState(present=False)
        """The token as it was last seen; the next process knows by it that there was one."""
        self.process: Process | None = None
        parsed = parse(uri, allow_pin_value=True)
        assert isinstance(parsed, Pkcs11Uri)
        self.module = parsed.module_path or str(parsed.module_name)
        self._uri, self._ask = uri, ask
        self._limits = LIMITS | (limits or {})
        self._clock = clock
        self._allowed, self._looked = float(STARTS), clock()
        self._reloaded = -RELOAD_EVERY
        self._lock = threading.Lock()
        self._closed = False
        self._gone = 0
        self._counted = 0
        self._log = Log(log)
        self._pinned: dict[Key, bytes] = {}  # outlasts the process, as a key should
        self._told: dict[Key, tuple[bytes, str]] = {}
        # The memory of a refused PIN must outlast a process that crashed.
        self._folder = TemporaryDirectory("vault") if state_dir is None else None
        self._state_dir = str(state_dir) if self._folder is None else self._folder.name
        try:
            with self._lock:
                self._running()
        except BaseException:
            self.close()
            raise

    # --- the six methods

    @property
    def kinds(self) -> frozenset[Kind]:
        said = self._call("kinds", of=list)
        return frozenset(self._sense("kinds", lambda: [Kind(kind) for kind in said]))

    def generate(self, kind: Kind, label: str) -> Key:
        self._call("generate", kind.value, label)
        return Key(kind, label)

    def keys(self) -> Iterator[Key]:
        said = self._call("keys", of=list)
        return iter(
            self._sense("keys", lambda: [Key(Kind(kind), _text(label)) for kind, label in said])
        )

    def public(self, key: Key) -> bytes:
        public: bytes = self._call("public", *_named(key), of=bytes)
        if self._pinned.get(key, public) != public:
            raise Refused(
                f"{self.module} holds another key {key.label!r} than before",
                hint="the token or the key was exchanged; the identity cannot go on with it",
            )
        if key not in self._pinned:
            self._signed(key, public, points.SELF_TEST + os.urandom(32))
            self._pinned[key] = public
        return public

    def sign(self, key: Key, data: bytes) -> bytes:
        return self._signed(key, self._pinned.get(key) or self.public(key), bytes(data))

    def _signed(self, key: Key, public: bytes, data: bytes) -> bytes:
        """Verified here, with the key as it was first seen: the other process is not trusted."""
        signed: bytes = self._call("sign", *_named(key), data, of=bytes)
        if not points.verifies(key.kind, public, data, signed):
            raise Refused(
                f"{self.module} gave a signature with key {key.label!r} that does not verify",
                hint="the token or its module is faulty, or the key was exchanged",
            )
        return signed

    def delete(self, key: Key) -> None:
        self._call("delete", *_named(key))
        self._pinned.pop(key, None)
        self._told.pop(key, None)

    def close(self) -> None:
        """End the process; it finalises the module first."""
        with self._lock:
            self._closed = True
            self._end()
            if self._folder is not None:
                self._folder.cleanup()

    # --- what only some can do

    def pin(self, key: Key, public: bytes, serial: str = "") -> None:
        """As Pkcs11Vault.pin(); each new process is told again."""
        self._pinned[key] = public
        self._told[key] = public, serial
        self._call("pin", *_named(key), public, serial)

    def provision(self) -> str:
        suite: str = self._call("provision", of=str)
        return suite

    def describe(self, key: Key) -> dict[str, Any]:
        described: dict[str, Any] = self._call("describe", *_named(key), of=dict)
        return described

    def seal(self, secret: bytes, aad: bytes) -> bytes:
        answer: bytes = self._call("seal", bytes(secret), bytes(aad), of=bytes)
        return answer

    def unseal(self, blob: bytes, aad: bytes) -> bytes:
        answer: bytes = self._call("unseal", bytes(blob), bytes(aad), of=bytes)
        return answer

    def state(self) -> TokenState:
        return _state(self._call("state", of=list))

    def probe(self) -> None:
        self._call("probe")

    def reopen(self) -> None:
        self._call("reopen")

    # --- asking

    def _call(self, call: str, *given: Any, of: type = NoneType) -> Any:
        """The answer, which is an `of`."""
        with self._lock:
            if self._closed:
                raise VaultError(f"the vault in {self.module} is closed")
            try:
                answer = self._asked(self._running(), call, *given, of=of)
            except DeviceGone:
                self._gone += 1
                raise
            self._gone = 0
            return answer

    def _asked(self, process: Process, call: str, *given: Any, of: type = NoneType) -> Any:
        try:
            said = process.ask(call, list(given), self._limits.get(call, LIMIT), self._ask)
        except VaultError:
            if not process.alive():
                self.process = None
            raise
        except BaseException:  # of the person: half a conversation is of no use
            self._end()
            raise
        self._note(said)
        if (error := _error(said)) is not None:
            raise error
        if not isinstance(said.get("gives", self), of):
            raise self._mad(f"no {of.__name__} from {call!r}")
        return said["gives"]

    def _sense(self, call: str, made: Callable[[], list[T]]) -> list[T]:
        """What an answer means, if anything."""
        try:
            return made()
        except (TypeError, ValueError):
            with self._lock:
                raise self._mad(f"nonsense from {call!r}") from None

    def _mad(self, what: str) -> DeviceGone:
        self._end()
        return DeviceGone(
            f"the process of {self.module} is out of its mind: {what}",
            hint="it was ended; the next call starts a new one",
        )

    def _note(self, said: dict[str, Any]) -> None:
        lines, logins = said.get("said"), said.get("logins")
        if isinstance(lines, list):
            self._log.write(self.module, [str(line) for line in lines[:50]])
        if isinstance(logins, int):
            self.logins += max(0, logins - self._counted)
            self._counted = logins
        if isinstance(said.get("token"), list):
            self.seen = _state(said["token"])

    # --- the process

    def _running(self) -> Process:
        process = self.process
        if process is not None and process.alive():
            if not self._is_stuck():
                return process
            log.debug("%s does not recover; it is loaded anew", self.module)
            self._reloaded = self._clock()
        elif not self._may_start():
            raise DeviceGone(
                f"{self.module} ended {STARTS} times in a row",
                hint=f"it is started again within {START_EVERY:g} seconds",
            )
        self._end()
        return self._started()

    def _is_stuck(self) -> bool:
        return self._gone >= TRIES and self._clock() - self._reloaded >= RELOAD_EVERY

    def _may_start(self) -> bool:
        now = self._clock()
        self._allowed = min(STARTS, self._allowed + (now - self._looked) / START_EVERY)
        self._looked = now
        return self._allowed >= 1

    def _started(self) -> Process:
        self._allowed = max(0.0, self._allowed - 1)
        self.starts += 1
        self._gone = self._counted = 0
        self.process = process = Process()
        try:
            self._asked(process, "open", self._uri, self._state_dir, list(self.seen))
            for key, (public, serial) in self._told.items():
                self._asked(process, "pin", *_named(key), public, serial)
        except BaseException:
            self._end()
            raise
        return process

    def _end(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.end()


def _named(key: Key) -> tuple[str, str]:
    return key.kind.value, key.label


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _state(said: list[Any]) -> TokenState:
    present, label, serial, manufacturer, model, *flags = [*said, *[""] * 8][:8]
    named = str(label), str(serial), str(manufacturer), str(model)
    return TokenState(bool(present), *named, *map(bool, flags))


def _error(said: dict[str, Any]) -> VaultError | None:
    """The error of the other process, as the class that it was."""
    told = said.get("error")
    if not isinstance(told, list) or len(told) != 3:
        return None
    name, message, hint = (str(text)[:2000] for text in told)
    return ERRORS.get(name, VaultError)(message, hint=hint, retry=said.get("retry") is True)
