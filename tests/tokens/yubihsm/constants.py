"""The numbers of the YubiHSM 2: commands, errors, kinds of objects, algorithms, capabilities.

Source: https://docs.yubico.com/hardware/yubihsm-2/hsm-2-user-guide/ (command, algorithm and
capability references). Only what the simulator knows; a device knows more."""

from enum import IntEnum, IntFlag


class Command(IntEnum):
    ECHO = 0x01
    CREATE_SESSION = 0x03
    AUTHENTICATE_SESSION = 0x04
    SESSION_MESSAGE = 0x05
    DEVICE_INFO = 0x06
    RESET_DEVICE = 0x08
    CLOSE_SESSION = 0x40
    STORAGE_INFO = 0x41
    PUT_OPAQUE = 0x42
    GET_OPAQUE = 0x43
    PUT_AUTHENTICATION_KEY = 0x44
    GENERATE_ASYMMETRIC_KEY = 0x46
    LIST_OBJECTS = 0x48
    OBJECT_INFO = 0x4E
    PSEUDO_RANDOM = 0x51
    PUT_HMAC_KEY = 0x52
    SIGN_HMAC = 0x53
    PUBLIC_KEY = 0x54
    SIGN_ECDSA = 0x56
    DERIVE_ECDH = 0x57
    DELETE_OBJECT = 0x58
    DECRYPT_OAEP = 0x59
    GENERATE_HMAC_KEY = 0x5A
    VERIFY_HMAC = 0x5C
    SIGN_EDDSA = 0x6A
    ERROR = 0x7F


class Error(IntEnum):
    INVALID_COMMAND = 0x01
    INVALID_DATA = 0x02
    INVALID_SESSION = 0x03
    AUTHENTICATION_FAILED = 0x04
    SESSIONS_FULL = 0x05
    SESSION_FAILED = 0x06
    STORAGE_FAILED = 0x07
    WRONG_LENGTH = 0x08
    INSUFFICIENT_PERMISSIONS = 0x09
    OBJECT_NOT_FOUND = 0x0B
    INVALID_ID = 0x0C
    OBJECT_EXISTS = 0x11


class DeviceError(Exception):
    """The device's answer is this error."""

    def __init__(self, code: Error) -> None:
        super().__init__(code.name)
        self.code = code


class Type(IntEnum):
    OPAQUE = 1
    AUTHENTICATION_KEY = 2
    ASYMMETRIC_KEY = 3
    HMAC_KEY = 5


class Algorithm(IntEnum):
    RSA_2048 = 9
    EC_P256 = 12
    HMAC_SHA1 = 19
    HMAC_SHA256 = 20
    HMAC_SHA384 = 21
    HMAC_SHA512 = 22
    EC_ECDSA_SHA1 = 23
    EC_ECDH = 24
    OAEP_SHA1 = 25
    OAEP_SHA256 = 26
    OPAQUE_DATA = 30
    OPAQUE_X509 = 31
    MGF1_SHA1 = 32
    MGF1_SHA256 = 33
    YUBICO_AES_AUTHENTICATION = 38
    EC_ECDSA_SHA256 = 43
    EC_ED25519 = 46


class Capability(IntFlag):
    GET_OPAQUE = 1 << 0x00
    PUT_OPAQUE = 1 << 0x01
    PUT_AUTHENTICATION_KEY = 1 << 0x02
    GENERATE_ASYMMETRIC_KEY = 1 << 0x04
    SIGN_ECDSA = 1 << 0x07
    SIGN_EDDSA = 1 << 0x08
    DECRYPT_OAEP = 1 << 0x0A
    DERIVE_ECDH = 1 << 0x0B
    GET_PSEUDO_RANDOM = 1 << 0x13
    PUT_HMAC_KEY = 1 << 0x14
    GENERATE_HMAC_KEY = 1 << 0x15
    SIGN_HMAC = 1 << 0x16
    VERIFY_HMAC = 1 << 0x17
    RESET_DEVICE = 1 << 0x1C
    DELETE_OPAQUE = 1 << 0x27
    DELETE_AUTHENTICATION_KEY = 1 << 0x28
    DELETE_ASYMMETRIC_KEY = 1 << 0x29
    DELETE_HMAC_KEY = 1 << 0x2B


ALL_CAPABILITIES = (1 << 56) - 1  # of the factory key; also those that have no name above
ALL_DOMAINS = 0xFFFF
