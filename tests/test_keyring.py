"""The vault's one thread, and presentations that are there before they are needed."""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge import keyring as module
from edge.channel.noise import public_key
from edge.errors import StateError, TrustError
from edge.identity.history import KEY_LIFETIME, ChangeHistory, create
from edge.identity.keys import KeyKind, PublicKey
from edge.keyring import Keyring, Presenter, Unattested, present
from edge.token import State, TokenWatch
from tests.people import NOW, WEEK, SoftKey, ed25519, p256, seed
from vault_backends.vault import DeviceGone, Key, Kind, Locked, Refused, TokenState

ED, P = Key(Kind.ED25519, "main"), Key(Kind.P256, "token")


class FakeVault:
    """Keys in memory; notes which thread calls, and fails when told to."""

    kinds = frozenset(Kind)

    def __init__(self) -> None:
        self.made: dict[Key, SoftKey] = {ED: ed25519(seed("ed")), P: p256(seed("p"))}
        self.threads: set[str] = set()
        self.failure: Exception | None = None
        self.closed = False

    def _called(self) -> None:
        self.threads.add(threading.current_thread().name)
        if self.failure:
            raise self.failure

    def generate(self, kind: Kind, label: str) -> Key:
        raise NotImplementedError

    def keys(self) -> Iterator[Key]:
        return iter(self.made)

    def public(self, key: Key) -> bytes:
        self._called()
        return self.made[key].public.value

    def sign(self, key: Key, data: bytes) -> bytes:
        self._called()
        return self.made[key].sign(data)

    def delete(self, key: Key) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._called()
        self.closed = True


@pytest.fixture
def vault(monkeypatch: pytest.MonkeyPatch) -> FakeVault:
    fake = FakeVault()

    def open_vault(uri: str, ask: object, *, state_dir: object, apart: bool) -> FakeVault:
        fake._called()
        return fake

    monkeypatch.setattr(module, "open_vault", open_vault)
    return fake


def with_keyring(work: Callable[[Keyring], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        keyring = await Keyring.open("fake:")
        try:
            await work(keyring)
        finally:
            await keyring.close()

    asyncio.run(main())


def identity(vault: FakeVault, key: Key = ED) -> ChangeHistory:
    soft = vault.made[key]
    return create(soft.public, soft.sign, valid_from=NOW, valid_until=NOW + KEY_LIFETIME)


def test_one_thread_for_everything(vault: FakeVault) -> None:
    async def work(keyring: Keyring) -> None:
        for key in (ED, P):
            signature = await keyring.sign(key, bytes(32))
            public = await keyring.public(key)
            assert public == PublicKey(KeyKind(key.kind.value), vault.made[key].public.value)
            assert public.verify(signature, bytes(32))
        assert await keyring.run(divmod, 7, 2) == (3, 1)
        assert keyring.signatures == 2

    with_keyring(work)
    assert vault.closed
    assert len(vault.threads) == 1
    assert "vault" in vault.threads.pop()


def test_a_vault_that_does_not_open(vault: FakeVault) -> None:
    vault.failure = DeviceGone("gone")
    with pytest.raises(DeviceGone):
        asyncio.run(Keyring.open("fake:"))


def test_a_bad_signature_is_not_handed_out(vault: FakeVault) -> None:
    async def work(keyring: Keyring) -> None:
        vault.made[ED] = SoftKey(vault.made[ED].public, vault.made[P].sign)
        with pytest.raises(TrustError, match="main"):
            await keyring.sign(ED, bytes(32))

    with_keyring(work)


@pytest.mark.parametrize("key", [ED, P])
def test_a_presentation_costs_one_signature(vault: FakeVault, key: Key) -> None:
    async def work(keyring: Keyring) -> None:
        history = identity(vault, key)
        made = await present(keyring, key, history, now=NOW, lifetime=WEEK)
        made.attestation.verify(history, NOW)
        assert made.attestation.channel_key == public_key(made.secret)
        assert keyring.signatures == 1
        again = await present(keyring, key, history, now=NOW, lifetime=WEEK)
        assert again.secret != made.secret
        given = await present(keyring, key, history, now=NOW, lifetime=WEEK, x25519=made.secret)
        assert given.secret == made.secret

    with_keyring(work)


class Clock:
    """A clock that runs only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = float(NOW)
        self.slept: list[float] = []
        self.after: Callable[[], None] = lambda: None

    def __call__(self) -> int:
        return int(self.now)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        self.after()
        await asyncio.sleep(0)


def presenter(keyring: Keyring, vault: FakeVault, clock: Clock, lifetime: int = 90) -> Presenter:
    return Presenter(
        keyring, ED, identity(vault), clock=clock, lifetime=lifetime, sleep=clock.sleep
    )


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.001)


def test_it_renews_at_two_thirds(vault: FakeVault) -> None:
    async def work(keyring: Keyring) -> None:
        clock = Clock()
        keeper = presenter(keyring, vault, clock)
        with pytest.raises(StateError):
            _ = keeper.current
        await keeper.start()
        first = keeper.current
        await until(lambda: keeper.current.attestation != first.attestation)
        await keeper.close()
        await keeper.close()
        assert clock.slept[:2] == [30, 30]
        second = keeper.current
        assert second.attestation.created_at >= NOW + 60
        assert second.secret != first.secret
        keeper.credential = b"credential"
        assert keeper.current.credential == b"credential"

    with_keyring(work)


def test_the_old_one_stays_while_the_vault_fails(
    vault: FakeVault, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(keyring: Keyring) -> None:
        clock = Clock()
        keeper = presenter(keyring, vault, clock, lifetime=600)
        await keeper.start()
        first = keeper.current
        vault.failure = DeviceGone("the token is gone")

        def comes_back() -> None:
            if len(clock.slept) == 22:
                assert keeper.current == first
                vault.failure = None

        clock.after = comes_back
        await until(lambda: keeper.current.attestation != first.attestation)
        await keeper.close()
        assert clock.slept[14:22] == [1, 2, 4, 8, 16, 32, 60, 60]
        vault.failure = None

    with caplog.at_level(logging.WARNING):
        with_keyring(work)
    assert "'main'" in caplog.messages[0]
    assert "the token is gone" in caplog.messages[0]


def test_a_rotation_is_adopted(vault: FakeVault) -> None:
    async def work(keyring: Keyring) -> None:
        keeper = presenter(keyring, vault, Clock(), lifetime=WEEK)
        await keeper.start()
        before = keeper.current
        old, new = vault.made[ED], vault.made[P]
        history = keeper.history.rotated(
            new.public, new.sign, old.sign, valid_from=NOW, valid_until=NOW + KEY_LIFETIME
        )
        vault.failure = DeviceGone("gone")
        with pytest.raises(DeviceGone):
            await keeper.adopt(P, history)
        assert keeper.current == before
        vault.failure = None
        adoption = asyncio.create_task(keeper.adopt(P, history))
        await asyncio.sleep(0)
        await keeper._renew()  # begun before the rotation is done, ends after it
        await adoption
        keeper.current.attestation.verify(history, NOW + WEEK // 2)
        assert keeper.current.history is history
        await keeper.close()

    with_keyring(work)


def test_a_kept_key_is_attested_again_and_told_of(vault: FakeVault) -> None:
    async def work(keyring: Keyring) -> None:
        clock, told = Clock(), []
        secret = seed("kept")
        keeper = Presenter(
            keyring, ED, identity(vault), clock=clock, lifetime=90, secret=secret,
            made=told.append, sleep=clock.sleep,
        )  # fmt: skip
        first = await keeper.start()
        await until(lambda: len(told) > 1)
        await keeper.close()
        assert told[0] == first
        assert {one.secret for one in told} == {secret}
        assert told[1].attestation != first.attestation

    with_keyring(work)


def test_it_starts_with_what_was_kept_while_the_vault_fails(vault: FakeVault) -> None:
    async def work(keyring: Keyring) -> None:
        clock = Clock()
        first = presenter(keyring, vault, clock)
        kept = await first.start()
        await first.close()
        before, vault.failure = keyring.signatures, DeviceGone("gone")
        keeper = presenter(keyring, vault, clock)
        assert await keeper.start(kept) == kept
        assert keyring.signatures == before
        vault.failure = None
        await until(lambda: keeper.current.attestation != kept.attestation)
        await keeper.close()

    with_keyring(work)


def test_an_attestation_that_expired_is_not_presented(vault: FakeVault) -> None:
    async def work(keyring: Keyring) -> None:
        clock = Clock()
        keeper = presenter(keyring, vault, clock)
        await keeper.start()
        vault.failure = DeviceGone("the token is gone")
        clock.now = NOW + 89
        assert keeper.current
        clock.now = NOW + 90
        with pytest.raises(Unattested, match="was attested until"):
            _ = keeper.current
        await keeper.close()
        vault.failure = None

    with_keyring(work)


# --- over a token


class FakeToken(FakeVault):
    """It counts what it is asked, and fails by kind of call."""

    def __init__(self) -> None:
        super().__init__()
        self.away: Exception | None = None
        self.probes = 0
        self.signs = 0

    def probe(self) -> None:
        self.probes += 1
        if self.away:
            raise self.away

    def state(self) -> TokenState:
        return TokenState(present=self.away is None)

    def reopen(self) -> None:
        raise NotImplementedError

    def sign(self, key: Key, data: bytes) -> bytes:
        self.signs += 1
        if self.away:
            raise self.away
        return super().sign(key, data)


class Watched:
    """A keyring over a fake token, a presenter, and a watch in a hurry."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.token = FakeToken()
        self.pin: object = 1
        monkeypatch.setattr(module, "open_vault", lambda uri, ask, *, state_dir, apart: self.token)
        monkeypatch.setattr(module, "_stamp", lambda source: self.pin)
        monkeypatch.setattr(TokenWatch, "PROBE", 0.01)
        monkeypatch.setattr(TokenWatch, "LOOK", 0.01)
        monkeypatch.setattr(TokenWatch, "FIRST_PAUSE", 0.01)
        monkeypatch.setattr(TokenWatch, "LAST_PAUSE", 0.05)

    def run(self, work: Callable[[Keyring, Presenter], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            uri = "pkcs11:token=edge?module-path=/lib/x.so&pin-source=file:/pin"
            keyring = await Keyring.open(uri, apart=True)
            keeper = presenter(keyring, self.token, Clock(), lifetime=WEEK)
            try:
                async with asyncio.timeout(20):
                    await work(keyring, keeper)
            finally:
                await keeper.close()
                await keyring.close()

        asyncio.run(main())


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def test_a_token_goes_and_comes_back(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    async def work(keyring: Keyring, keeper: Presenter) -> None:
        token, watch = watched.token, keyring.watch
        assert watch is not None
        await keeper.start()
        first = keeper.current
        token.away = DeviceGone("pulled out", hint="plug it in")
        await until(lambda: not watch.present)
        assert watch.described()["state"] == "gone"
        assert watch.described()["error"] == "pulled out"
        assert watch.described()["hint"] == "plug it in"
        assert keeper.current == first
        probes, signs = token.probes, token.signs
        await until(lambda: token.probes > probes + 20)
        assert token.signs == signs  # nobody logs in without a probe that succeeds
        token.away = None
        await watch.back()
        assert token.signs == signs + 1
        assert keeper.current != first
        assert watch.described()["error"] is None

    with caplog.at_level(logging.WARNING):
        watched.run(work)
    gone, back = caplog.messages
    assert "is gone: pulled out (plug it in)" in gone
    assert "new channels are possible until" in gone
    assert "is back" in back


def test_while_it_stays_away_a_line_a_minute(
    watched: Watched, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(keyring: Keyring, keeper: Presenter) -> None:
        watched.token.away = DeviceGone("away")
        await until(lambda: watched.token.probes > 30)

    monkeypatch.setattr(TokenWatch, "SAY", 0.1)
    with caplog.at_level(logging.WARNING):
        watched.run(work)
    assert 2 <= len(caplog.messages) < watched.token.probes / 2


def test_started_without_the_token(watched: Watched) -> None:
    async def work(keyring: Keyring, keeper: Presenter) -> None:
        token, watch = watched.token, keyring.watch
        assert watch is not None
        token.away = DeviceGone("not there yet")
        with pytest.raises(DeviceGone):
            await keeper.start()
        assert await watch.absent()
        await keeper.start(wait=True)
        assert keeper.valid_until is None
        with pytest.raises(Unattested, match=r"has not been attested yet, and .* is gone since"):
            _ = keeper.current
        token.away = None
        await until(lambda: keeper.valid_until is not None)
        assert keeper.current

    watched.run(work)


@pytest.mark.parametrize("error", [Locked("wrong PIN"), Refused("another key")])
def test_only_an_absent_token_is_waited_for(watched: Watched, error: Exception) -> None:
    async def work(keyring: Keyring, keeper: Presenter) -> None:
        watched.token.failure = error
        with pytest.raises(type(error)):
            await keeper.start(wait=True)
        watched.token.failure = None

    watched.run(work)


def test_a_locked_pin_is_left_alone_until_it_is_another_one(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(keyring: Keyring, keeper: Presenter) -> None:
        token, watch = watched.token, keyring.watch
        assert watch is not None
        await keeper.start()
        token.failure = Locked("the PIN was refused")
        with pytest.raises(Locked):
            await keyring.sign(ED, b"x")
        assert watch.state is State.LOCKED
        probes, signs = token.probes, token.signs
        await asyncio.sleep(0.3)
        assert (token.probes, token.signs) == (probes, signs)
        watched.pin = 2  # and still not right
        await until(lambda: token.signs > signs)
        signs = token.signs
        await asyncio.sleep(0.2)
        assert token.signs == signs
        token.failure = None
        watched.pin = 3
        await watch.back()

    with caplog.at_level(logging.WARNING):
        watched.run(work)
    assert [m for m in caplog.messages if "is back" not in m] == [caplog.messages[0]]
    assert "is locked: the PIN was refused" in caplog.messages[0]


def test_a_token_that_answers_with_another_key(watched: Watched) -> None:
    async def work(keyring: Keyring, keeper: Presenter) -> None:
        token, watch = watched.token, keyring.watch
        assert watch is not None
        await keeper.start()
        token.away = DeviceGone("away")
        await until(lambda: not watch.present)
        token.failure, token.away = Refused("another key"), None
        await until(lambda: watch.state is State.REFUSED)
        token.failure = None
        await watch.back()

    watched.run(work)


def test_it_is_checked_before_it_is_used_again(watched: Watched) -> None:
    async def work(keyring: Keyring, keeper: Presenter) -> None:
        token, watch = watched.token, keyring.watch
        assert watch is not None
        refusal: list[Exception] = [Refused("another token")]

        async def check() -> None:
            if refusal:
                raise refusal[0]

        keeper._check = check
        await keeper.start()
        signs = token.signs
        token.away = DeviceGone("away")
        await until(lambda: not watch.present)
        token.away = None
        await until(lambda: watch.state is State.REFUSED)
        assert token.signs == signs
        refusal.clear()
        await watch.back()

    watched.run(work)


def test_the_stamp_of_a_pin(tmp_path: Path) -> None:
    file = tmp_path / "pin"
    assert module._stamp(f"file:{file}") is None
    assert module._stamp("ask") is None
    assert module._stamp("credential:none") is None
    file.write_text("1234")
    first = module._stamp(f"file:{file}")
    assert first is not None
    file.write_text("12345")
    assert module._stamp(f"file:{file}") != first
