"""The simulated device, as Yubico's own Python library sees it, and frame by frame where that
library would never say such a thing."""

import os
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding

from tests.tokens.yubihsm.channel import MAC_LENGTH, Channel, cmac, keys_of
from tests.tokens.yubihsm.connector import Connector
from tests.tokens.yubihsm.constants import Capability, Command, Error
from tests.tokens.yubihsm.device import SESSIONS, Device
from tests.tokens.yubihsm.frames import Frame

yubihsm = pytest.importorskip(
    "yubihsm", reason="YUBICO'S LIBRARY IS NOT INSTALLED (pip install 'yubihsm[http]')"
)
from yubihsm.defs import ALGORITHM, CAPABILITY, ERROR, OBJECT, ORIGIN  # noqa: E402
from yubihsm.exceptions import YubiHsmAuthenticationError, YubiHsmDeviceError  # noqa: E402
from yubihsm.objects import (  # noqa: E402
    AsymmetricKey,
    AuthenticationKey,
    HmacKey,
    Opaque,
)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def device(clock: Clock) -> Device:
    return Device(clock=clock)


@pytest.fixture
def connector(device: Device) -> Iterator[Connector]:
    made = Connector(device)
    made.up()
    yield made
    made.down()


@pytest.fixture
def hsm(connector: Connector) -> "Iterator[yubihsm.YubiHsm]":
    connected = yubihsm.YubiHsm.connect(f"http://127.0.0.1:{connector.port}")
    yield connected
    connected.close()


@pytest.fixture
def session(hsm):
    return hsm.create_session_derived(1, "password")


def refuses(code: ERROR):
    return pytest.raises(YubiHsmDeviceError, match=code.name)


def test_says_what_it_is(hsm, device: Device) -> None:
    said = hsm.get_device_info()
    assert said.version == (2, 4, 0)
    assert said.serial == device.serial
    assert {ALGORITHM.EC_ED25519, ALGORITHM.EC_P256} <= said.supported_algorithms
    assert said.part_number == "SIMULATED"


def test_ed25519(session) -> None:
    key = AsymmetricKey.generate(
        session, 0x1234, "identity", 0xFFFF, CAPABILITY.SIGN_EDDSA, ALGORITHM.EC_ED25519
    )
    for data in (b"", b"data", b"x" * 2000):
        key.get_public_key().verify(key.sign_eddsa(data), data)


def test_p256(session) -> None:
    able = CAPABILITY.SIGN_ECDSA | CAPABILITY.DERIVE_ECDH
    key = AsymmetricKey.generate(session, 0, "identity", 0xFFFF, able, ALGORITHM.EC_P256)
    public = key.get_public_key()
    public.verify(key.sign_ecdsa(b"data"), b"data", ec.ECDSA(hashes.SHA256()))
    mine = ec.generate_private_key(ec.SECP256R1())
    assert key.derive_ecdh(mine.public_key()) == mine.exchange(ec.ECDH(), public)


@pytest.mark.parametrize("used", [hashes.SHA1(), hashes.SHA256()], ids=lambda used: used.name)
def test_rsa_oaep(session, used) -> None:
    key = AsymmetricKey.generate(
        session, 0, "seal", 0xFFFF, CAPABILITY.DECRYPT_OAEP, ALGORITHM.RSA_2048
    )
    way = padding.OAEP(padding.MGF1(used), used, None)
    sealed = key.get_public_key().encrypt(b"secret", way)
    assert key.decrypt_oaep(sealed, hash=used, mgf_hash=used) == b"secret"
    with refuses(ERROR.INVALID_DATA):
        key.decrypt_oaep(os.urandom(255) + b"\0", hash=used, mgf_hash=used)


def test_hmac(session) -> None:
    able = CAPABILITY.SIGN_HMAC | CAPABILITY.VERIFY_HMAC
    made = HmacKey.generate(session, 0, "made", 0xFFFF, able, ALGORITHM.HMAC_SHA256)
    mac = made.sign_hmac(b"data")
    assert made.verify_hmac(mac, b"data")
    assert not made.verify_hmac(mac, b"other")
    put = HmacKey.put(session, 0, "put", 0xFFFF, able, b"key", ALGORITHM.HMAC_SHA256)
    expected = "5031fe3d989c6d1537a013fa6e739da23463fdaec3b70137d828e36ace221bd0"
    assert put.sign_hmac(b"data").hex() == expected


def test_opaque(session) -> None:
    kept = Opaque.put(session, 0, "note", 1, CAPABILITY.NONE, ALGORITHM.OPAQUE_DATA, b"\x80data\0")
    assert kept.get() == b"\x80data\0"


@pytest.mark.parametrize("length", [0, 1, 64, 2000])
def test_random(session, length: int) -> None:
    found = session.get_pseudo_random(length)
    assert len(found) == length
    assert length < 64 or found != session.get_pseudo_random(length)


def test_object_info_and_list(session) -> None:
    key = AsymmetricKey.generate(
        session, 0x0102, "my key", 0b101, CAPABILITY.SIGN_EDDSA, ALGORITHM.EC_ED25519
    )
    said = key.get_info()
    assert (said.id, said.label, said.domains) == (0x0102, "my key", 0b101)
    assert (said.object_type, said.origin) == (OBJECT.ASYMMETRIC_KEY, ORIGIN.GENERATED)
    assert said.capabilities == CAPABILITY.SIGN_EDDSA
    Opaque.put(session, 9, "note", 2, CAPABILITY.NONE, ALGORITHM.OPAQUE_DATA, b"x")

    def found(**wanted) -> set[int]:
        return {one.id for one in session.list_objects(**wanted)}

    assert found() == {1, 9, key.id}
    assert found(object_type=OBJECT.OPAQUE) == {9}
    assert found(object_id=key.id) == {key.id}
    assert found(label="my key") == {key.id}
    assert found(domains=0b100) == {1, key.id}
    assert found(algorithm=ALGORITHM.OPAQUE_DATA) == {9}
    assert found(capabilities=CAPABILITY.SIGN_EDDSA, object_type=OBJECT.ASYMMETRIC_KEY) == {key.id}


def test_ids_are_taken_and_free_again(session) -> None:
    def make() -> AsymmetricKey:
        return AsymmetricKey.generate(
            session, 7, "", 1, CAPABILITY.SIGN_EDDSA, ALGORITHM.EC_ED25519
        )

    first = make()
    assert first.get_info().sequence == 0
    with refuses(ERROR.OBJECT_EXISTS):
        make()
    Opaque.put(session, 7, "", 1, CAPABILITY.NONE, ALGORITHM.OPAQUE_DATA, b"same id, other type")
    first.delete()
    with refuses(ERROR.OBJECT_NOT_FOUND):
        first.get_public_key()
    assert make().get_info().sequence == 1


def test_storage_fills_up(session) -> None:
    with refuses(ERROR.STORAGE_FAILED):
        for _ in range(300):
            Opaque.put(session, 0, "", 1, CAPABILITY.NONE, ALGORITHM.OPAQUE_DATA, b"x")
    assert len(session.list_objects()) == 256


# --- who may do what


def test_users_have_capabilities(hsm, session, device: Device) -> None:
    key = AsymmetricKey.generate(
        session, 0, "", 0xFFFF, CAPABILITY.SIGN_EDDSA, ALGORITHM.EC_ED25519
    )
    device.store.add_authentication_key(2, "second password", capabilities=Capability.SIGN_EDDSA)
    user = hsm.create_session_derived(2, "second password")
    theirs = AsymmetricKey(user, key.id)
    key.get_public_key().verify(theirs.sign_eddsa(b"x"), b"x")
    for forbidden in (
        theirs.delete,
        lambda: user.get_pseudo_random(8),
        lambda: Opaque.put(user, 0, "", 1, CAPABILITY.NONE, ALGORITHM.OPAQUE_DATA, b"x"),
        lambda: AsymmetricKey.generate(user, 0, "", 1, CAPABILITY.SIGN_EDDSA, ALGORITHM.EC_ED25519),
    ):
        with refuses(ERROR.INSUFFICIENT_PERMISSIONS):
            forbidden()


def test_keys_have_capabilities(session) -> None:
    key = AsymmetricKey.generate(session, 0, "", 1, CAPABILITY.DERIVE_ECDH, ALGORITHM.EC_P256)
    with refuses(ERROR.INSUFFICIENT_PERMISSIONS):
        key.sign_ecdsa(b"x")


def test_nobody_gives_more_than_was_delegated_to_them(hsm, device: Device) -> None:
    device.store.add_authentication_key(2, "maker password", delegated=Capability.SIGN_ECDSA)
    user = hsm.create_session_derived(2, "maker password")
    AsymmetricKey.generate(user, 0, "", 1, CAPABILITY.SIGN_ECDSA, ALGORITHM.EC_P256)
    more = CAPABILITY.SIGN_ECDSA | CAPABILITY.DERIVE_ECDH
    with refuses(ERROR.INSUFFICIENT_PERMISSIONS):
        AsymmetricKey.generate(user, 0, "", 1, more, ALGORITHM.EC_P256)
    with refuses(ERROR.INSUFFICIENT_PERMISSIONS):
        AuthenticationKey.put_derived(user, 0, "", 1, CAPABILITY.NONE, more, "another password")


def test_domains_keep_users_apart(hsm, session, device: Device) -> None:
    key = AsymmetricKey.generate(session, 5, "", 1, CAPABILITY.SIGN_EDDSA, ALGORITHM.EC_ED25519)
    device.store.add_authentication_key(2, "other domain", domains=2)
    user = hsm.create_session_derived(2, "other domain")
    assert key.id not in [one.id for one in user.list_objects()]
    for act in (AsymmetricKey(user, 5).get_info, AsymmetricKey(user, 5).delete):
        with refuses(ERROR.OBJECT_NOT_FOUND):
            act()


def test_a_new_user(hsm, session) -> None:
    AuthenticationKey.put_derived(
        session, 3, "new", 0xFFFF, CAPABILITY.GET_PSEUDO_RANDOM, CAPABILITY.NONE, "new password"
    )
    assert len(hsm.create_session_derived(3, "new password").get_pseudo_random(8)) == 8


def test_reset_leaves_the_factory_key(connector: Connector, session) -> None:
    AsymmetricKey.generate(session, 5, "", 1, CAPABILITY.SIGN_EDDSA, ALGORITHM.EC_ED25519)
    session.reset_device()
    assert connector.device.sessions == 0
    hsm = yubihsm.YubiHsm.connect(f"http://127.0.0.1:{connector.port}")
    again = hsm.create_session_derived(1, "password")
    assert [(one.object_type, one.id) for one in again.list_objects()] == [
        (OBJECT.AUTHENTICATION_KEY, 1)
    ]


# --- sessions


def test_wrong_password_and_unknown_user(hsm) -> None:
    with pytest.raises(YubiHsmAuthenticationError):  # the library sees it before the device does
        hsm.create_session_derived(1, "passw0rd")
    with refuses(ERROR.OBJECT_NOT_FOUND):
        hsm.create_session_derived(9, "password")


def test_sixteen_sessions_and_no_more(hsm) -> None:
    sessions = [hsm.create_session_derived(1, "password") for _ in range(SESSIONS)]
    assert {one.sid for one in sessions} == set(range(SESSIONS))
    with refuses(ERROR.SESSIONS_FULL):
        hsm.create_session_derived(1, "password")
    sessions[3].close()
    assert hsm.create_session_derived(1, "password").sid == 3


def test_others_take_sessions(hsm, device: Device) -> None:
    device.take(SESSIONS)
    with refuses(ERROR.SESSIONS_FULL):
        hsm.create_session_derived(1, "password")
    device.take(0)
    hsm.create_session_derived(1, "password")


def test_idle_sessions_end(session, clock: Clock, device: Device) -> None:
    for clock.now in (29, 58):
        session.get_pseudo_random(8)
    clock.now = 89
    assert device.sessions == 0
    with refuses(ERROR.INVALID_SESSION):
        session.get_pseudo_random(8)


def test_reboot_ends_sessions_and_keeps_objects(hsm, session, device: Device) -> None:
    key = AsymmetricKey.generate(session, 5, "", 1, CAPABILITY.SIGN_EDDSA, ALGORITHM.EC_ED25519)
    device.reboot()
    with refuses(ERROR.INVALID_SESSION):
        key.sign_eddsa(b"x")
    again = hsm.create_session_derived(1, "password")
    assert AsymmetricKey(again, 5).sign_eddsa(b"x")


# --- frame by frame


class Host:
    """The other half of a session, for saying things wrong."""

    def __init__(self, device: Device) -> None:
        self.device = device
        challenge = os.urandom(8)
        said = self.ask(Command.CREATE_SESSION, b"\0\1" + challenge)
        self.number, card_challenge = said[3], said[4:12]
        self.channel = Channel(keys_of("password"), challenge, card_challenge)
        assert said[12:] == self.channel.card_cryptogram

    def ask(self, command: int, data: bytes) -> bytes:
        return self.device.exchange(Frame(command, data).encode())

    def authentication(self) -> bytes:
        """The data of a good one."""
        body = bytes([self.number]) + self.channel._host_cryptogram
        covered = bytes([Command.AUTHENTICATE_SESSION]) + (len(body) + MAC_LENGTH).to_bytes(2)
        return body + cmac(self.channel._mac, bytes(16) + covered + body)[:MAC_LENGTH]


def failed(said: bytes) -> Error:
    assert said[:3] == b"\x7f\0\1", said
    return Error(said[3])


@pytest.mark.parametrize(
    "raw", [b"", b"\1", b"\1\0", b"\1\0\5abc", b"\1\0\1ab", b"\1\xff\xff" + bytes(0xFFFF)]
)
def test_broken_frames(device: Device, raw: bytes) -> None:
    assert failed(device.exchange(raw)) is Error.WRONG_LENGTH


def test_echo_and_unknown_commands(device: Device) -> None:
    assert device.exchange(b"\1\0\2hi") == b"\x81\0\2hi"
    assert failed(device.exchange(b"\x33\0\0")) is Error.INVALID_COMMAND
    assert device.counted == {"ECHO": 1, "0x33": 1, "INVALID_COMMAND": 1}


def test_every_bit_of_an_authentication_counts(device: Device) -> None:
    good = Host(device).authentication()
    device.reboot()
    for place in range(1, len(good)):
        host = Host(device)
        changed = bytearray(host.authentication())
        changed[place] ^= 1
        said = host.ask(Command.AUTHENTICATE_SESSION, bytes(changed))
        assert failed(said) is Error.AUTHENTICATION_FAILED
        said = host.ask(Command.AUTHENTICATE_SESSION, host.authentication())
        assert failed(said) is Error.INVALID_SESSION  # it is gone
    host = Host(device)
    assert host.ask(Command.AUTHENTICATE_SESSION, host.authentication()) == b"\x84\0\0"


def test_no_message_before_authentication(device: Device) -> None:
    host = Host(device)
    said = host.ask(Command.SESSION_MESSAGE, bytes([host.number]) + bytes(24))
    assert failed(said) is Error.INVALID_SESSION


def test_messages_that_were_changed_or_sent_before(connector: Connector, session) -> None:
    sent: list[bytes] = []
    exchange = connector.device.exchange
    connector.device.exchange = lambda raw: (sent.append(raw), exchange(raw))[1]  # type: ignore[method-assign]
    session.get_pseudo_random(8)
    assert failed(exchange(sent[0])) is Error.AUTHENTICATION_FAILED
    changed = sent[0][:-1] + bytes([sent[0][-1] ^ 1])
    assert failed(exchange(changed)) is Error.AUTHENTICATION_FAILED
    assert len(session.get_pseudo_random(8)) == 8  # and the session goes on


def test_derivation_is_that_of_the_reference(device: Device) -> None:
    """K-ENC of the factory key, as Yubico's guide prints it."""
    assert keys_of("password").hex().startswith("090b47dbed595654901dee1cc655e420")
