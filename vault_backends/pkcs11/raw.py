"""The two calls that python-pkcs11 has no words for: all of CK_TOKEN_INFO, and C_InitToken."""

import ctypes
from typing import Any, NamedTuple

import pkcs11

from vault_backends.vault import Misconfigured

# Places in CK_FUNCTION_LIST (PKCS#11 2.40, section 5), counted in pointers.
_GET_TOKEN_INFO, _INIT_TOKEN = 7, 10
_LABEL = 32  # bytes of a token's label, padded with blanks
_NOT_SAID = (0, ctypes.c_ulong(-1).value)  # CK_EFFECTIVELY_INFINITE, CK_UNAVAILABLE_INFORMATION


class _TokenInfo(ctypes.Structure):
    _fields_ = [
        ("label", ctypes.c_char * 32),
        ("manufacturer", ctypes.c_char * 32),
        ("model", ctypes.c_char * 16),
        ("serial", ctypes.c_char * 16),
        ("flags", ctypes.c_ulong),
        ("max_sessions", ctypes.c_ulong),
        ("sessions", ctypes.c_ulong),
        ("max_rw_sessions", ctypes.c_ulong),
        ("rw_sessions", ctypes.c_ulong),
        ("longest_pin", ctypes.c_ulong),
        ("shortest_pin", ctypes.c_ulong),
        ("public_memory", ctypes.c_ulong * 4),
        ("versions", ctypes.c_ubyte * 4),
        ("time", ctypes.c_char * 16),
    ]


class Limits(NamedTuple):
    """What a token says of its sessions and PINs; None where it does not say or has no limit."""

    sessions: int | None
    max_sessions: int | None
    shortest_pin: int
    longest_pin: int | None


def limits(library: Any, slot: int) -> Limits:
    """Raises pkcs11.GeneralError where the token does not answer."""
    info = _TokenInfo()
    call = library.function(_GET_TOKEN_INFO, ctypes.c_ulong, ctypes.c_void_p)
    _answer("C_GetTokenInfo", call(slot, ctypes.addressof(info)))
    return Limits(
        None if info.sessions == _NOT_SAID[1] else info.sessions,
        None if info.max_sessions in _NOT_SAID else info.max_sessions,
        info.shortest_pin,
        None if info.longest_pin in _NOT_SAID else info.longest_pin,
    )


def init_token(library: Any, slot: int, so_pin: str, label: str) -> None:
    """Initialise the token in `slot`, which empties it: the caller has looked at its flags."""
    name = label.encode()
    if len(name) > _LABEL or not label.isprintable() or not label.strip():
        raise Misconfigured(
            f"a token's label is 1 to {_LABEL} bytes of printable text, not {label[:80]!r}"
        )
    pin = so_pin.encode()
    call = library.function(
        _INIT_TOKEN, ctypes.c_ulong, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p
    )
    _answer("C_InitToken", call(slot, pin, len(pin), name.ljust(_LABEL)))


_NAMED = {
    0x54: pkcs11.FunctionNotSupported,
    0x200: pkcs11.FunctionRejected,
    0xA0: pkcs11.PinIncorrect,
    0xA1: pkcs11.PinInvalid,
    0xA2: pkcs11.PinLenRange,
    0xA4: pkcs11.PinLocked,
    0xB6: pkcs11.SessionExists,
    0xE0: pkcs11.TokenNotPresent,
    0xE2: pkcs11.TokenWriteProtected,
}


def _answer(function: str, code: int) -> None:
    if code:
        raise _NAMED.get(code, pkcs11.GeneralError)(f"{function} answered 0x{code:x}")
