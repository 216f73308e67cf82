"""The commands inside a session. Each checks what the user may do, and what the object is for."""

import hmac
import os
from collections.abc import Callable
from typing import NamedTuple

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils

from tests.tokens.yubihsm.constants import (
    Algorithm,
    Capability,
    Command,
    DeviceError,
    Error,
    Type,
)
from tests.tokens.yubihsm.frames import LONGEST, Reader
from tests.tokens.yubihsm.store import GENERATED, LABEL_LENGTH, Object, Store


class Call(NamedTuple):
    """One command: on what store, by whom (the authentication key), with which fields."""

    store: Store
    user: Object
    fields: Reader

    def target(self, kind: Type, needs: Capability) -> Object:
        """The object whose id is the next field. It must be allowed to do this, not only the
        user."""
        found = self.store.get(kind, self.fields.number(2), self.user.domains)
        _allow(found.capabilities, needs)
        return found


def _allow(capabilities: int, needs: int) -> None:
    if needs & ~capabilities:
        raise DeviceError(Error.INSUFFICIENT_PERMISSIONS)


Run = Callable[[Call], bytes]
_COMMANDS: dict[int, tuple[Capability, Run]] = {}


_NOTHING = Capability(0)


def _command(number: Command, needs: Capability = _NOTHING) -> Callable[[Run], Run]:
    def register(run: Run) -> Run:
        _COMMANDS[number] = (needs, run)
        return run

    return register


def run(number: int, store: Store, user: Object, data: bytes) -> bytes:
    """The answer's data. DeviceError for everything the device refuses."""
    if number not in _COMMANDS:
        raise DeviceError(Error.INVALID_COMMAND)
    needs, act = _COMMANDS[number]
    _allow(user.capabilities, needs)
    fields = Reader(data)
    said = act(Call(store, user, fields))
    fields.end()
    return said


# --- objects


def _add(
    call: Call, kind: Type, allowed: tuple[Algorithm, ...], make: Callable[[Object], None]
) -> bytes:
    """Reads the fields all new objects begin with, lets `make` fill in the rest, and keeps it."""
    fields = call.fields
    object_id, text = fields.number(2), fields.take(LABEL_LENGTH)
    domains, capabilities, number = fields.number(2), fields.number(8), fields.number(1)
    if number not in allowed or not domains:
        raise DeviceError(Error.INVALID_DATA)
    _allow(call.user.domains, domains)
    _allow(call.user.delegated, capabilities)
    new = Object(object_id, kind, Algorithm(number), text, domains, capabilities, b"", 0)
    make(new)
    fields.end()
    call.store.add(new)
    return new.id.to_bytes(2)


@_command(Command.LIST_OBJECTS)
def _list_objects(call: Call) -> bytes:
    found = [one for one in call.store if one.domains & call.user.domains]
    while not call.fields.done():
        wanted = _filter(call.fields)
        found = [one for one in found if wanted(one)]
    return b"".join(one.id.to_bytes(2) + bytes([one.type, one.sequence]) for one in found)


def _filter(fields: Reader) -> Callable[[Object], bool]:
    lengths = {1: 2, 2: 1, 3: 2, 4: 8, 5: 1, 6: LABEL_LENGTH}
    tag = fields.number(1)
    if tag not in lengths:
        raise DeviceError(Error.INVALID_DATA)
    raw = fields.take(lengths[tag])
    number = int.from_bytes(raw)
    tests: dict[int, Callable[[Object], bool]] = {
        1: lambda one: one.id == number,
        2: lambda one: one.type == number,
        3: lambda one: bool(one.domains & number),
        4: lambda one: bool(one.capabilities & number),
        5: lambda one: one.algorithm == number,
        6: lambda one: one.label == raw,
    }
    return tests[tag]


@_command(Command.OBJECT_INFO)
def _object_info(call: Call) -> bytes:
    object_id, kind = call.fields.number(2), call.fields.number(1)
    return call.store.get(kind, object_id, call.user.domains).record()


_DELETES = {
    Type.OPAQUE: Capability.DELETE_OPAQUE,
    Type.AUTHENTICATION_KEY: Capability.DELETE_AUTHENTICATION_KEY,
    Type.ASYMMETRIC_KEY: Capability.DELETE_ASYMMETRIC_KEY,
    Type.HMAC_KEY: Capability.DELETE_HMAC_KEY,
}


@_command(Command.DELETE_OBJECT)
def _delete(call: Call) -> bytes:
    object_id, kind = call.fields.number(2), call.fields.number(1)
    found = call.store.get(kind, object_id, call.user.domains)
    _allow(call.user.capabilities, _DELETES[found.type])
    call.store.remove(found)
    return b""


@_command(Command.STORAGE_INFO)
def _storage(call: Call) -> bytes:
    free = call.store.free()
    return b"".join(number.to_bytes(2) for number in (256, free, 1024, 4 * free, 126))


@_command(Command.PUT_OPAQUE, Capability.PUT_OPAQUE)
def _put_opaque(call: Call) -> bytes:
    def fill(new: Object) -> None:
        new.secret = call.fields.rest()
        new.length = len(new.secret)

    return _add(call, Type.OPAQUE, (Algorithm.OPAQUE_DATA, Algorithm.OPAQUE_X509), fill)


@_command(Command.GET_OPAQUE, Capability.GET_OPAQUE)
def _get_opaque(call: Call) -> bytes:
    return bytes(call.target(Type.OPAQUE, _NOTHING).secret)


@_command(Command.PUT_AUTHENTICATION_KEY, Capability.PUT_AUTHENTICATION_KEY)
def _put_authentication_key(call: Call) -> bytes:
    def fill(new: Object) -> None:
        new.delegated = call.fields.number(8)
        _allow(call.user.delegated, new.delegated)
        new.secret, new.length = call.fields.take(32), 32

    allowed = (Algorithm.YUBICO_AES_AUTHENTICATION,)
    return _add(call, Type.AUTHENTICATION_KEY, allowed, fill)


@_command(Command.RESET_DEVICE, Capability.RESET_DEVICE)
def _reset(call: Call) -> bytes:
    call.store.reset()
    return b""


# --- keys


_MAKERS = {
    Algorithm.EC_P256: (lambda: ec.generate_private_key(ec.SECP256R1()), 32),
    Algorithm.EC_ED25519: (ed25519.Ed25519PrivateKey.generate, 32),
    Algorithm.RSA_2048: (lambda: rsa.generate_private_key(65537, 2048), 256),
}


@_command(Command.GENERATE_ASYMMETRIC_KEY, Capability.GENERATE_ASYMMETRIC_KEY)
def _generate_asymmetric(call: Call) -> bytes:
    def fill(new: Object) -> None:
        make, new.length = _MAKERS[new.algorithm]
        new.secret, new.origin = make(), GENERATED

    return _add(call, Type.ASYMMETRIC_KEY, tuple(_MAKERS), fill)


@_command(Command.PUBLIC_KEY)
def _public_key(call: Call) -> bytes:
    found = call.target(Type.ASYMMETRIC_KEY, _NOTHING)
    return bytes([found.algorithm]) + _public(found.secret.public_key())


def _public(key: object) -> bytes:
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key.public_bytes_raw()
    if isinstance(key, rsa.RSAPublicKey):
        return key.public_numbers().n.to_bytes(256)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    numbers = key.public_numbers()
    return numbers.x.to_bytes(32) + numbers.y.to_bytes(32)


def _only(found: Object, algorithm: Algorithm) -> Object:
    if found.algorithm is not algorithm:
        raise DeviceError(Error.INVALID_DATA)
    return found


@_command(Command.SIGN_EDDSA, Capability.SIGN_EDDSA)
def _sign_eddsa(call: Call) -> bytes:
    found = _only(call.target(Type.ASYMMETRIC_KEY, Capability.SIGN_EDDSA), Algorithm.EC_ED25519)
    return bytes(found.secret.sign(call.fields.rest()))


@_command(Command.SIGN_ECDSA, Capability.SIGN_ECDSA)
def _sign_ecdsa(call: Call) -> bytes:
    """DER; the digest is of the curve's length, or of SHA-1's."""
    found = _only(call.target(Type.ASYMMETRIC_KEY, Capability.SIGN_ECDSA), Algorithm.EC_P256)
    digest = call.fields.rest()
    used = {32: hashes.SHA256(), 20: hashes.SHA1()}.get(len(digest))
    if used is None:
        raise DeviceError(Error.WRONG_LENGTH)
    return bytes(found.secret.sign(digest, ec.ECDSA(utils.Prehashed(used))))


@_command(Command.DERIVE_ECDH, Capability.DERIVE_ECDH)
def _derive_ecdh(call: Call) -> bytes:
    found = _only(call.target(Type.ASYMMETRIC_KEY, Capability.DERIVE_ECDH), Algorithm.EC_P256)
    try:
        peer = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), call.fields.rest())
    except ValueError:
        raise DeviceError(Error.INVALID_DATA) from None
    return bytes(found.secret.exchange(ec.ECDH(), peer))


_MGF_HASHES = {Algorithm.MGF1_SHA1: hashes.SHA1(), Algorithm.MGF1_SHA256: hashes.SHA256()}
_LABEL_HASHES = {20: hashes.SHA1(), 32: hashes.SHA256()}


@_command(Command.DECRYPT_OAEP, Capability.DECRYPT_OAEP)
def _decrypt_oaep(call: Call) -> bytes:
    found = _only(call.target(Type.ASYMMETRIC_KEY, Capability.DECRYPT_OAEP), Algorithm.RSA_2048)
    mask = _MGF_HASHES.get(Algorithm(call.fields.number(1)))
    ciphertext, label_digest = call.fields.take(256), call.fields.rest()
    used = _LABEL_HASHES.get(len(label_digest))
    if mask is None or used is None:
        raise DeviceError(Error.INVALID_DATA)
    empty = hashes.Hash(used)
    if label_digest != empty.finalize():
        # The device takes the label's digest, `cryptography` the label: only the empty one works.
        raise DeviceError(Error.INVALID_DATA)
    try:
        way = padding.OAEP(padding.MGF1(mask), used, None)
        return bytes(found.secret.decrypt(ciphertext, way))
    except ValueError:
        raise DeviceError(Error.INVALID_DATA) from None


_HMACS = {
    Algorithm.HMAC_SHA1: ("sha1", 64),
    Algorithm.HMAC_SHA256: ("sha256", 64),
    Algorithm.HMAC_SHA384: ("sha384", 128),
    Algorithm.HMAC_SHA512: ("sha512", 128),
}


@_command(Command.GENERATE_HMAC_KEY, Capability.GENERATE_HMAC_KEY)
def _generate_hmac(call: Call) -> bytes:
    def fill(new: Object) -> None:
        new.length = _HMACS[new.algorithm][1]
        new.secret, new.origin = os.urandom(new.length), GENERATED

    return _add(call, Type.HMAC_KEY, tuple(_HMACS), fill)


@_command(Command.PUT_HMAC_KEY, Capability.PUT_HMAC_KEY)
def _put_hmac(call: Call) -> bytes:
    def fill(new: Object) -> None:
        new.secret = call.fields.rest()
        new.length = len(new.secret)
        if not 1 <= new.length <= _HMACS[new.algorithm][1]:
            raise DeviceError(Error.WRONG_LENGTH)

    return _add(call, Type.HMAC_KEY, tuple(_HMACS), fill)


def _mac(found: Object, data: bytes) -> bytes:
    return hmac.digest(found.secret, data, _HMACS[found.algorithm][0])


@_command(Command.SIGN_HMAC, Capability.SIGN_HMAC)
def _sign_hmac(call: Call) -> bytes:
    return _mac(call.target(Type.HMAC_KEY, Capability.SIGN_HMAC), call.fields.rest())


@_command(Command.VERIFY_HMAC, Capability.VERIFY_HMAC)
def _verify_hmac(call: Call) -> bytes:
    found = call.target(Type.HMAC_KEY, Capability.VERIFY_HMAC)
    given = call.fields.take(len(_mac(found, b"")))
    return bytes([hmac.compare_digest(given, _mac(found, call.fields.rest()))])


# --- the rest


@_command(Command.PSEUDO_RANDOM, Capability.GET_PSEUDO_RANDOM)
def _random(call: Call) -> bytes:
    length = call.fields.number(2)
    if length > LONGEST - 64:
        raise DeviceError(Error.WRONG_LENGTH)
    return os.urandom(length)


@_command(Command.ECHO)
def _echo(call: Call) -> bytes:
    return call.fields.rest()
