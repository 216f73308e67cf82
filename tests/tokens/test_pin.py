"""The PIN: a wrong one is tried once, ever; the shim counts the logins, and the TPM its own tries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tokens.cells import scenario
from tests.tokens.checks import check
from tests.tokens.environments import Environment
from tests.tokens.holder import Crashed, Holder
from tests.tokens.shim import Shim
from tests.tokens.tpm import Tpm
from vault_backends.pkcs11.marker import open_marker
from vault_backends.vault import DeviceGone, Kind, Locked

COUNT_LOW, FINAL_TRY, LOCKED = 0x10000, 0x20000, 0x40000
"""CKF_USER_PIN_…"""


class Attempts:
    """Processes that use the token, each with the same memory of the PIN."""

    def __init__(self, token: Environment, shim: Shim, folder: Path) -> None:
        self._token, self.shim = token, shim
        self.file = folder / "given-pin"
        self._state = folder / "state"
        with Holder(token.uri(), token.variables, prefix=token.prefix) as vault:
            if not vault.keys():  # an empty list is not believed at once, which costs a login
                vault.generate(next(iter(token.kinds)), "some")
        token.clean()
        self.uri = token.uri(module=shim.path, pin_source=f"file:{self.file}")

    def give(self, pin: str) -> None:
        new = self.file.with_name("new-pin")
        new.write_text(f"{pin}\n")
        new.chmod(0o600)
        new.replace(self.file)

    def process(self) -> Holder:
        self._token.clean()
        return Holder(
            self.uri, self._token.variables, state_dir=self._state, prefix=self._token.prefix
        )

    def use(self) -> None:
        """What a process meets that needs the PIN."""
        with self.process() as vault:
            vault.ask("keys")

    def refused(self, match: str = "PIN|login") -> None:
        with pytest.raises(Locked, match=match):
            self.use()

    def correct(self, pin: str) -> None:
        """Give the right PIN after a wrong one. One in 256 looks to the memory like the refused one,
        and is refused for that: then there is nothing to see here."""
        for path in self._state.glob("pin-*.json"):
            with open_marker(path) as memory:
                if memory.tag(pin) in memory.read().refused:
                    pytest.skip("the right PIN happens to look like the wrong one (1 in 256)")
        self.give(pin)

    @property
    def logins(self) -> int:
        return self.shim.count("C_Login")


@pytest.fixture
def attempts(token: Environment, shim: Shim, tmp_path: Path) -> Attempts:
    return Attempts(token, shim, tmp_path)


@scenario(
    "a wrong PIN: 1 login in 4 processes, until it is corrected", quick=("softhsm-ed25519", "swtpm")
)
def test_wrong_pin_once(token: Environment, attempts: Attempts) -> None:
    before = token.wrong_pins() if isinstance(token, Tpm) else None
    attempts.give(token.wrong_pin())
    for _ in range(4):
        attempts.refused("PIN")
    assert attempts.logins == 1
    if isinstance(token, Tpm):
        assert token.wrong_pins() == (before or 0) + 1
        token.clear_lockout()
    attempts.correct(token.pin)
    attempts.use()
    assert attempts.logins == 2


@scenario("a wrong PIN in one process asked ten times: 1 login")
def test_wrong_pin_asked_again(token: Environment, attempts: Attempts) -> None:
    attempts.give(token.wrong_pin())
    with attempts.process() as vault:
        for _ in range(10):
            with pytest.raises(Locked):
                vault.ask("keys")
    assert attempts.logins == 1
    _forgive(token)


@scenario("a wrong PIN in two processes at the same moment: 1 login", quick=("softhsm-ed25519",))
def test_two_processes(token: Environment, attempts: Attempts) -> None:
    attempts.give(token.wrong_pin())
    attempts.shim.on("C_Login", "delay", 500, always=True)
    with attempts.process() as first, attempts.process() as second:
        for vault in (first, second):
            vault.tell("keys")
        for vault in (first, second):
            with pytest.raises(Locked):
                vault.answer()
    assert attempts.logins == 1
    _forgive(token)


@scenario(
    "power cut in the login, the PIN is wrong: none more if the token counts, else one",
    quick=("softhsm-ed25519",),
)
def test_crash_in_login_with_a_wrong_pin(token: Environment, attempts: Attempts) -> None:
    attempts.give(token.wrong_pin())
    attempts.shim.on("C_Login", "crash-after")
    with pytest.raises(Crashed):
        attempts.use()
    attempts.shim.calm()
    with attempts.process() as vault:
        counted = vault.ask("state")["pin_tried"]
    for _ in range(3):
        attempts.refused()
    assert attempts.logins == (1 if counted else 2)
    _forgive(token)


@scenario("power cut in the login, the PIN is right: the next process works")
def test_crash_in_login_with_the_right_pin(token: Environment, attempts: Attempts) -> None:
    attempts.give(token.pin)
    attempts.shim.on("C_Login", "crash")
    with pytest.raises(Crashed):
        attempts.use()
    attempts.use()
    assert attempts.logins == 2


@scenario("two power cuts in the login: no third login")
def test_crash_in_each_login(token: Environment, attempts: Attempts) -> None:
    attempts.give(token.pin)
    attempts.shim.on("C_Login", "crash", always=True)
    for _ in range(2):
        with pytest.raises(Crashed):
            attempts.use()
    for _ in range(2):
        attempts.refused()
    assert attempts.logins == 2


@scenario("flags say locked: no login")
def test_locked(token: Environment, attempts: Attempts) -> None:
    attempts.give(token.pin)
    attempts.shim.on("C_GetTokenInfo", "flags", LOCKED, always=True)
    attempts.refused("locked")
    assert attempts.logins == 0


@scenario("flags say final try: no login", quick=("softhsm-ed25519",))
def test_final_try(token: Environment, attempts: Attempts) -> None:
    attempts.give(token.pin)
    attempts.shim.on("C_GetTokenInfo", "flags", FINAL_TRY | COUNT_LOW, always=True)
    attempts.refused("one PIN try left")
    assert attempts.logins == 0
    attempts.shim.calm()
    attempts.use()


@scenario(
    "after a power cut in the login, flags say a wrong PIN was entered: no login on final try"
)
def test_crash_then_final_try(token: Environment, attempts: Attempts) -> None:
    attempts.give(token.wrong_pin())
    attempts.shim.on("C_Login", "crash-after")
    with pytest.raises(Crashed):
        attempts.use()
    attempts.shim.on("C_GetTokenInfo", "flags", FINAL_TRY, always=True)
    attempts.refused()
    assert attempts.logins == 1
    _forgive(token)


@scenario("the module answers a login with an error that says nothing of the PIN: it is not blamed")
def test_error_in_login(token: Environment, attempts: Attempts, kind: Kind, label: str) -> None:
    attempts.give(token.pin)
    attempts.shim.on("C_Login", "rv", 0x30)
    with attempts.process() as vault:
        with pytest.raises(DeviceGone):
            vault.ask("keys")
        key = vault.generate(kind, label)
        check(kind, vault.public(key), vault.sign(key, b"x"), b"x")
        vault.delete(key)


@scenario(
    "the TPM's lockout: the right PIN is refused without blame, and works once it is over",
    only=("swtpm", "abrmd"),
)
def test_tpm_lockout(fresh: Environment, make_shim: Callable[[Path], Shim], tmp_path: Path) -> None:
    assert isinstance(fresh, Tpm)
    limits = ["--max-tries=1", "--recovery-time=600", "--lockout-recovery-time=600"]
    fresh.tpm_tool("tpm2_dictionarylockout", "--setup-parameters", *limits)
    attempts = Attempts(fresh, make_shim(fresh.module), tmp_path)
    attempts.give(fresh.wrong_pin())
    attempts.refused()
    attempts.correct(fresh.pin)
    attempts.refused("locked")
    fresh.clear_lockout()
    attempts.use()
    assert attempts.logins == 3


def _forgive(token: Environment) -> None:
    if isinstance(token, Tpm):
        token.clear_lockout()
