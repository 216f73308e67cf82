"""The vault's one thread, and presentations that are there before they are needed."""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from edge import keyring as module
from edge.channel.noise import public_key
from edge.errors import StateError, TrustError
from edge.identity.history import KEY_LIFETIME, ChangeHistory, create
from edge.identity.keys import KeyKind, PublicKey
from edge.keyring import Keyring, Presenter, present
from tests.people import NOW, WEEK, SoftKey, ed25519, p256, seed
from vault_backends.vault import DeviceGone, Key, Kind

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

    def open_vault(uri: str, ask: object, *, state_dir: object) -> FakeVault:
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
        first = await keeper.start()
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
        keeper = presenter(keyring, vault, clock)
        first = await keeper.start()
        vault.failure = DeviceGone("the token is gone")

        def comes_back() -> None:
            if len(clock.slept) == 10:
                assert keeper.current == first
                vault.failure = None

        clock.after = comes_back
        await until(lambda: keeper.current.attestation != first.attestation)
        await keeper.close()
        assert clock.slept[2:10] == [1, 2, 4, 8, 16, 32, 60, 60]
        vault.failure = None

    with caplog.at_level(logging.WARNING):
        with_keyring(work)
    assert "'main'" in caplog.messages[0]
    assert "the token is gone" in caplog.messages[0]


def test_a_rotation_is_adopted(vault: FakeVault) -> None:
    async def work(keyring: Keyring) -> None:
        keeper = presenter(keyring, vault, Clock(), lifetime=WEEK)
        before = await keeper.start()
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
        kept = await presenter(keyring, vault, clock).start()
        before, vault.failure = keyring.signatures, DeviceGone("gone")
        keeper = presenter(keyring, vault, clock)
        assert await keeper.start(kept) == kept
        assert keyring.signatures == before
        vault.failure = None
        await until(lambda: keeper.current.attestation != kept.attestation)
        await keeper.close()

    with_keyring(work)
