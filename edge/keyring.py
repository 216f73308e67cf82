"""The one thread of a vault, and what it is needed for: presentations, made ahead of handshakes.

A token may take a second to sign, be locked, or be gone. Nothing in a handshake waits for it: the
attestation is made before, with one signature, and renewed well before it expires (02 §4.4). While the
token is away the attestation goes on being presented; when it has expired too, new channels are
refused with that reason, and those that are open stay.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edge.channel.handshake import Presentation
from edge.channel.noise import public_key
from edge.errors import EdgeError, StateError, TrustError
from edge.events import event
from edge.identity.history import ChangeHistory
from edge.identity.keys import KeyKind, PublicKey, Sign
from edge.identity.purpose import attest_channel_key
from edge.tasks import end, keep_running
from edge.token import State, TokenWatch, utc
from vault_backends import open_vault
from vault_backends.uri import Pkcs11Uri, parse, secret_path
from vault_backends.vault import Key, Token, TokenState, Vault, VaultError

log = logging.getLogger(__name__)

Ask = Callable[[str], str | None]
T = TypeVar("T")


class Unattested(EdgeError):
    """There is no valid attestation of ours, so that no channel can be opened now."""

    retry = True


class Keyring:
    """An open vault and the only thread that calls it."""

    def __init__(
        self, vault: Vault, thread: ThreadPoolExecutor, watch: TokenWatch | None = None
    ) -> None:
        self.vault = vault
        self.watch = watch
        """Over a token, where one is to be watched."""
        self.signatures = 0
        """How many signatures were asked for; a handshake asks for none."""
        self.signing_seconds = 0.0
        """What those took together; `signing_failed` counts those that came to nothing."""
        self.signing_failed = 0
        self._thread = thread
        self._public: dict[Key, PublicKey] = {}

    @classmethod
    async def open(
        cls, uri: str, ask: Ask | None = None, *, state_dir: Path | None = None, apart: bool = False
    ) -> Self:
        """Open the vault that `uri` names, in the thread that it will stay in. `apart`: a token's
        code runs in a process of its own, and the token is watched."""
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vault")
        try:
            opening = partial(open_vault, uri, ask, state_dir=state_dir, apart=apart)
            vault = await asyncio.get_running_loop().run_in_executor(thread, opening)
        except BaseException:
            thread.shutdown(wait=False)
            raise
        keyring = cls(vault, thread)
        if apart and isinstance(vault, Token):
            keyring.watch = _watch(uri, vault, keyring)
            keyring.watch.start()
        return keyring

    async def run(self, work: Callable[..., T], *args: object) -> T:
        """Call `work` in the vault's thread."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)
        except VaultError as error:
            if self.watch is not None:
                self.watch.failed(error)
            raise

    @property
    def logins(self) -> int:
        """How often a PIN was given to a token; no connection adds to it."""
        return int(getattr(self.vault, "logins", 0))

    def described(self) -> dict[str, Any]:
        """What is known of the vault without asking it, for people and programs."""
        counted = {"state": State.PRESENT.value, "signatures": self.signatures}
        if self.watch is None:
            return counted
        seen: TokenState = getattr(self.vault, "seen", TokenState(present=False))
        return {
            **counted,
            "logins": self.logins,
            "pin": pin_state(seen),
            "module": getattr(self.vault, "module", None),
            "token": seen.label or None,
            "serial": seen.serial or None,
            **self.watch.described(),
        }

    async def public(self, key: Key) -> PublicKey:
        return await self.run(self._public_of, key)

    async def sign(self, key: Key, data: bytes) -> bytes:
        """64 bytes over the message `data`, verified."""
        return await self.run(self.signer(key), data)

    def signer(self, key: Key) -> Sign:
        """A Sign for code that runs in the vault's thread, by run()."""
        return partial(self._sign, key)

    async def close(self) -> None:
        """Close the vault, after what its thread was asked for before."""
        if self.watch is not None:
            await self.watch.close()
        try:
            await self.run(self.vault.close)
        finally:
            self._thread.shutdown(wait=False)

    def _public_of(self, key: Key) -> PublicKey:
        if key not in self._public:
            self._public[key] = PublicKey(KeyKind(key.kind.value), self.vault.public(key))
        return self._public[key]

    def _sign(self, key: Key, data: bytes) -> bytes:
        self.signatures += 1
        began = time.monotonic()
        try:
            signature = self.vault.sign(key, data)
        except VaultError:
            self.signing_failed += 1
            raise
        finally:
            self.signing_seconds += time.monotonic() - began
        if not self._public_of(key).verify(signature, data):
            raise TrustError(f"the vault made a bad signature with the key {key.label!r}")
        return signature


def pin_state(seen: TokenState) -> str:
    """What a token says of its PIN: ok, tried (a wrong one was entered), last-try, or locked."""
    if seen.pin_locked:
        return "locked"
    if seen.pin_final_try:
        return "last-try"
    return "tried" if seen.pin_tried else "ok"


def _watch(uri: str, token: Token, keyring: Keyring) -> TokenWatch:
    parsed = parse(uri)
    assert isinstance(parsed, Pkcs11Uri)
    label = f"token {parsed.token!r}" if parsed.token else "the token"
    name = f"{label} in {parsed.module_path or parsed.module_name}"
    return TokenWatch(token, keyring.run, name=name, pin=partial(_stamp, parsed.pin_source))


def _stamp(source: str) -> tuple[int, ...] | None:
    """Which state of its file a PIN is in. None where no file has it, or none is there."""
    if not source.startswith(("file:", "credential:")):
        return None
    try:
        found = secret_path(source).stat()
    except (OSError, VaultError):
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


async def present(
    keyring: Keyring,
    key: Key,
    history: ChangeHistory,
    *,
    now: int,
    lifetime: int,
    x25519: bytes | None = None,
) -> Presentation:
    """How the owner of `history` presents itself: an X25519 key, fresh unless it is given, attested
    by one signature of the identity key `key`."""
    secret = x25519 or X25519PrivateKey.generate().private_bytes_raw()
    attest = partial(attest_channel_key, now=now, lifetime=lifetime)
    attestation = await keyring.run(attest, history, public_key(secret), keyring.signer(key))
    return Presentation(history, attestation, secret)


class Presenter:
    """Keeps a valid Presentation of one identity: renewed when two thirds of its life are over.
    While the vault fails the old one stays. A token that is away is waited for by its watch; any
    other vault is asked again after 1 to 60 seconds."""

    FIRST_PAUSE, LAST_PAUSE = 1.0, 60.0
    LONGEST_SLEEP = 30.0
    """The clock is looked at again after this long, since it may have been set."""

    def __init__(
        self,
        keyring: Keyring,
        key: Key,
        history: ChangeHistory,
        *,
        clock: Callable[[], int],
        lifetime: int,
        secret: bytes | None = None,
        made: Callable[[Presentation], None] = lambda presentation: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        check: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`secret` is the X25519 key to attest, else each presentation has a fresh one; `made` is
        told of every new presentation, to keep it; `check` is asked before a token that came back is
        used."""
        self.history = history
        self.credential: bytes | None = None
        """What to present along with the attestation, as it arrived."""
        self._keyring = keyring
        self._key = key
        self._clock = clock
        self._lifetime = lifetime
        self.secret = secret
        self._tell = made
        self._sleep = sleep
        self._check = check
        self._current: Presentation | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def current(self) -> Presentation:
        """What to hand to a handshake now. Raises Unattested."""
        if self._task is None and self._current is None:
            raise StateError("the presenter has not been started")
        if self._current is None or self._clock() >= self._current.attestation.expires_at:
            raise Unattested(self._why(), hint="see it: ockam-edge node show")
        if self._current.credential is not self.credential:
            self._current = self._current._replace(credential=self.credential)
        return self._current

    @property
    def valid_until(self) -> int | None:
        """Until when the last attestation can be presented; None if there is none."""
        return None if self._current is None else self._current.attestation.expires_at

    @property
    def created_at(self) -> int | None:
        return None if self._current is None else self._current.attestation.created_at

    async def start(
        self, presentation: Presentation | None = None, *, wait: bool = False
    ) -> Presentation | None:
        """Make the first presentation, which may fail as the vault does, or take the one that is
        given; and keep it renewed. `wait` for a token that is away, and present nothing meanwhile."""
        self._current = presentation or self._current
        watch = self._keyring.watch
        try:
            if presentation is None and not (wait and watch and not watch.present):
                await self._renew()
        except VaultError:
            if not wait or watch is None or watch.state is not State.GONE:
                raise
        if watch is not None:
            watch.recover, watch.outlook = self._recover, self._outlook
        self._task = keep_running(self._keep(), f"present {self.history.identifier}")
        return self._current

    async def adopt(self, key: Key, history: ChangeHistory) -> None:
        """Present the rotated `history` from now on; the old key's attestation is worth nothing any
        more (02 §3.5). If the vault fails, nothing changes."""
        self._current = await self._made(key, history)
        self._key, self.history = key, history
        self._tell(self._current)

    async def close(self) -> None:
        watch = self._keyring.watch
        if watch is not None and watch.recover == self._recover:
            watch.recover = None
        task, self._task = self._task, None
        await end(task)

    async def _renew(self) -> None:
        key, history = self._key, self.history
        made = await self._made(key, history)
        if history is self.history:  # not rotated meanwhile
            self._current = made
            self._tell(made)

    async def _made(self, key: Key, history: ChangeHistory) -> Presentation:
        now = self._clock()
        return await present(
            self._keyring, key, history, now=now, lifetime=self._lifetime, x25519=self.secret
        )

    async def _keep(self) -> None:
        while True:
            while (wait := self._renewal_in()) > 0:
                await self._sleep(min(wait, self.LONGEST_SLEEP))
            await self._renew_stubbornly()

    def _renewal_in(self) -> float:
        """Seconds until two thirds of the attestation's life are over; at least a second after it
        was made, however short the life."""
        if self._current is None:
            return 0
        attestation = self._current.attestation
        life = attestation.expires_at - attestation.created_at
        return attestation.created_at + max(life * 2 // 3, 1) - self._clock()

    async def _renew_stubbornly(self) -> None:
        watch, pause, said = self._keyring.watch, self.FIRST_PAUSE, ""
        while True:
            if watch is not None and not watch.present:
                await watch.back()  # it has renewed
                return None
            try:
                return await self._renew()
            except (EdgeError, VaultError) as error:
                if watch is not None:
                    watch.unusable(error)
                    continue
                if str(error) != said or pause >= self.LAST_PAUSE:
                    said = str(error)
                    log.warning(
                        "cannot renew the attestation of %s with the key %r: %s%s",
                        self.history.identifier,
                        self._key.label,
                        error,
                        self._outlook(),
                        extra=event("attestation-failed", error),
                    )
            await self._sleep(pause)
            pause = min(2 * pause, self.LAST_PAUSE)

    async def _recover(self) -> None:
        if self._check is not None:
            await self._check()
        await self._renew()

    def _outlook(self) -> str:
        until = self.valid_until
        if until is None or self._clock() >= until:
            return "; new channels are refused, open ones stay"
        return f"; new channels are possible until {utc(until)}"

    def _why(self) -> str:
        until, watch = self.valid_until, self._keyring.watch
        lost = "has not been attested yet" if until is None else f"was attested until {utc(until)}"
        why = f"no channel can be opened: our key {lost}"
        if watch is not None and not watch.present:
            why += f", and {watch.name} is {watch.state} since {utc(watch.since)}"
        return why
