"""The encrypted session between host and device, the device's half: SCP03 with CMAC chaining.

Source: "Session" in Yubico's user guide, GlobalPlatform Card Specification 2.2 Amendment D."""

import hmac

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.cmac import CMAC
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

from tests.tokens.yubihsm.constants import Command, DeviceError, Error
from tests.tokens.yubihsm.frames import Frame

_CARD, _HOST, _S_ENC, _S_MAC, _S_RMAC = 0x00, 0x01, 0x04, 0x06, 0x07
MAC_LENGTH = 8  # of 16, on the wire


def keys_of(password: str) -> bytes:
    """The 32 bytes K-ENC | K-MAC of an authentication key with this password."""
    kdf = PBKDF2HMAC(hashes.SHA256(), 32, b"Yubico", 10_000)
    return kdf.derive(password.encode())


def cmac(key: bytes, data: bytes) -> bytes:
    mac = CMAC(algorithms.AES(key))
    mac.update(data)
    return mac.finalize()


def derive(key: bytes, what: int, context: bytes, bits: int) -> bytes:
    """Up to 128 bits, which is one block of the counter-mode KDF of SP 800-108."""
    block = bytes(11) + bytes([what, 0]) + bits.to_bytes(2) + b"\1" + context
    return cmac(key, block)[: bits // 8]


class Channel:
    """One session's keys, counter and chain of MACs. `keys` is K-ENC | K-MAC."""

    def __init__(self, keys: bytes, host_challenge: bytes, card_challenge: bytes) -> None:
        context = host_challenge + card_challenge
        self._enc = derive(keys[:16], _S_ENC, context, 128)
        self._mac = derive(keys[16:], _S_MAC, context, 128)
        self._rmac = derive(keys[16:], _S_RMAC, context, 128)
        self.card_cryptogram = derive(self._mac, _CARD, context, 64)
        self._host_cryptogram = derive(self._mac, _HOST, context, 64)
        self._chain = bytes(16)
        self._counter = 0
        self.authenticated = False

    def authenticate(self, frame: Frame) -> None:
        """Session id, host cryptogram, MAC. AUTHENTICATION_FAILED unless both are right."""
        body = self._checked(frame)
        if not hmac.compare_digest(body[1:], self._host_cryptogram):
            raise DeviceError(Error.AUTHENTICATION_FAILED)
        self._counter = 1
        self.authenticated = True

    def open(self, frame: Frame) -> bytes:
        """The frame inside a session message."""
        body = self._checked(frame)[1:]
        if not body or len(body) % 16:
            raise DeviceError(Error.WRONG_LENGTH)
        decryptor = Cipher(algorithms.AES(self._enc), modes.CBC(self._iv())).decryptor()
        padded = (decryptor.update(body) + decryptor.finalize()).rstrip(b"\0")
        if not padded.endswith(b"\x80"):
            raise DeviceError(Error.INVALID_DATA)
        return padded[:-1]

    def seal(self, session: int, inner: bytes) -> Frame:
        """The answer to the message opened last; closes its turn of the counter."""
        padded = inner + b"\x80"
        padded += bytes(-len(padded) % 16)
        encryptor = Cipher(algorithms.AES(self._enc), modes.CBC(self._iv())).encryptor()
        body = bytes([session]) + encryptor.update(padded) + encryptor.finalize()
        self._counter += 1
        command = Command.SESSION_MESSAGE | 0x80
        mac = cmac(self._rmac, self._chain + _covered(command, body))
        return Frame(command, body + mac[:MAC_LENGTH])

    def _checked(self, frame: Frame) -> bytes:
        body, mac = frame.data[:-MAC_LENGTH], frame.data[-MAC_LENGTH:]
        whole = cmac(self._mac, self._chain + _covered(frame.command, body))
        if not hmac.compare_digest(whole[:MAC_LENGTH], mac):
            raise DeviceError(Error.AUTHENTICATION_FAILED)
        self._chain = whole
        return body

    def _iv(self) -> bytes:
        encryptor = Cipher(algorithms.AES(self._enc), modes.ECB()).encryptor()
        return encryptor.update(self._counter.to_bytes(16)) + encryptor.finalize()


def _covered(command: int, body: bytes) -> bytes:
    """What a MAC covers: the header, whose length counts the MAC, and the body."""
    return bytes([command]) + (len(body) + MAC_LENGTH).to_bytes(2) + body
