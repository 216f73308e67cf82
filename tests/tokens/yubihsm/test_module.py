"""Our backend over Yubico's real module with the simulated device behind it: what no row of the
matrix shows. Debian 12 has no such module; `trixie.sh` runs this in a Debian 13 root."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.tokens.yubihsm.device import SESSIONS
from tests.tokens.yubihsm.environment import MODULE
from tests.tokens.yubihsm.simulator import Simulator
from vault_backends import open_vault
from vault_backends.pkcs11 import module
from vault_backends.pkcs11.vault import Pkcs11Vault
from vault_backends.vault import DeviceGone, Key, Kind, Locked, Refused

pytestmark = pytest.mark.skipif(
    not MODULE.exists(),
    reason="YUBICO'S PKCS#11 MODULE IS NOT INSTALLED (Debian 13: yubihsm-pkcs11): not tested here",
)
RUNTIME = "sign-eddsa,sign-ecdsa,derive-ecdh,decrypt-oaep,get-pseudo-random"
Open = Callable[..., Pkcs11Vault]


@pytest.fixture
def simulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulator]:
    made = Simulator(f"0002:runtime password:{RUNTIME}")
    module.stop_all()  # the module reads its configuration while it starts
    made.configure(tmp_path / "yubihsm_pkcs11.conf")
    monkeypatch.setenv("YUBIHSM_PKCS11_CONF", str(tmp_path / "yubihsm_pkcs11.conf"))
    yield made
    module.stop_all()
    made.end()


@pytest.fixture
def open_one(simulator: Simulator, tmp_path: Path) -> Iterator[Open]:
    vaults: list[Pkcs11Vault] = []

    def opened(pin: str = "0001password") -> Pkcs11Vault:
        path = tmp_path / f"pin{len(vaults)}"
        path.write_text(pin + "\n")
        path.chmod(0o600)
        uri = f"pkcs11:token=YubiHSM?module-path={MODULE}&pin-source=file:{path}"
        vault = open_vault(uri, state_dir=tmp_path / "state")
        assert isinstance(vault, Pkcs11Vault)
        vaults.append(vault)
        return vault

    yield opened
    for one in vaults:
        one.close()


@pytest.fixture
def vault(open_one: Open) -> Pkcs11Vault:
    return open_one()


@pytest.fixture
def key(vault: Pkcs11Vault) -> Key:
    return vault.generate(Kind.ED25519, "identity")


def test_a_key_is_one_object_and_its_id_two_bytes(vault: Pkcs11Vault, simulator: Simulator) -> None:
    for kind in Kind:
        key = vault.generate(kind, f"test-{kind}")
        assert len(bytes.fromhex(vault.describe(key)["id"])) == 2
        vault.delete(key)
    assert simulator.counted("PUT_OPAQUE") == 0


def test_labels_of_40_bytes(vault: Pkcs11Vault) -> None:
    key = vault.generate(Kind.P256, "x" * 40)
    assert list(vault.keys()) == [key]
    with pytest.raises(Exception, match="label is 1 to 40"):
        vault.generate(Kind.P256, "x" * 41)


def test_closing_gives_the_session_back(open_one: Open, simulator: Simulator) -> None:
    for _ in range(SESSIONS + 4):
        vault = open_one()
        list(vault.keys())
        vault.close()
        assert simulator.report()["sessions"] == 0


def test_reopening_gives_the_session_back(
    vault: Pkcs11Vault, key: Key, simulator: Simulator
) -> None:
    for _ in range(SESSIONS + 4):
        vault.reopen()
    assert vault.sign(key, b"x")
    assert simulator.report()["sessions"] == 1


def test_probe_without_a_login_asks_the_device(vault: Pkcs11Vault, simulator: Simulator) -> None:
    vault.probe()
    before = simulator.counted("DEVICE_INFO")
    vault.probe()
    assert simulator.counted("DEVICE_INFO") > before
    assert simulator.counted("CREATE_SESSION") == 0
    for state in ("no-device", "down"):
        simulator.order(connector=state)
        with pytest.raises(DeviceGone):
            vault.probe()
        simulator.order(connector="up")
        vault.probe()
    assert vault.logins == 0


@pytest.mark.parametrize("state", ["no-device", "down"])
def test_connector_away_and_back(
    vault: Pkcs11Vault, key: Key, simulator: Simulator, state: str
) -> None:
    simulator.order(connector=state)
    for _ in range(2):
        with pytest.raises(DeviceGone):
            vault.sign(key, b"x")
        with pytest.raises(DeviceGone):
            vault.probe()
    assert not vault.state().present
    tries = vault.logins
    assert tries == 1  # no PIN is tried on a device that does not answer
    simulator.order(connector="up")
    vault.probe()
    assert vault.sign(key, b"x")
    assert vault.logins == tries + 1


@pytest.mark.parametrize(
    "pin", ["0001wrong password", "0009password", "00", "zzzzpassword"], ids=lambda pin: pin[:5]
)
def test_a_wrong_pin_is_tried_once(open_one: Open, simulator: Simulator, pin: str) -> None:
    vault = open_one(pin)
    for _ in range(3):
        with pytest.raises(Locked):
            list(vault.keys())
    assert vault.logins == 1
    assert simulator.counted("CREATE_SESSION") <= 1


def test_a_user_who_may_only_sign(open_one: Open, vault: Pkcs11Vault, key: Key) -> None:
    public = vault.public(key)
    vault.close()
    user = open_one("0002runtime password")
    assert user.public(key) == public
    assert len(user.sign(key, b"x")) == 64
    with pytest.raises(Refused):
        user.generate(Kind.ED25519, "another")
    with pytest.raises(Refused):
        user.delete(key)
    user.probe()
    assert len(user.sign(key, b"x")) == 64
    assert user.logins == 1


def test_long_messages_are_refused_before_the_module_trips(
    vault: Pkcs11Vault, key: Key, simulator: Simulator
) -> None:
    assert vault.sign(key, b"x" * 2000)
    for length in (2001, 3125, 3200, 5000):
        with pytest.raises(Refused, match="at most 2000 bytes"):
            vault.sign(key, b"x" * length)
    assert vault.sign(key, b"x")
    assert vault.logins == 1
    p256 = vault.generate(Kind.P256, "p256")
    assert vault.sign(p256, b"x" * 100_000)


def test_slow_device(vault: Pkcs11Vault, key: Key, simulator: Simulator) -> None:
    simulator.order(slow=0.5)
    assert vault.sign(key, b"x")
    assert vault.logins == 1
