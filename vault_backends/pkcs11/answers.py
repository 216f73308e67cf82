"""What the return codes of PKCS#11 mean to a vault, and whether the session survives them."""

from typing import NamedTuple

import pkcs11

from vault_backends.vault import DeviceGone, Locked, Refused, Unsupported, VaultError

# Return codes python-pkcs11 has no exception for.
_KEY_FUNCTION_NOT_PERMITTED = "0x68"

WRONG_PIN = (
    pkcs11.PinIncorrect,
    pkcs11.PinInvalid,
    pkcs11.PinLenRange,
    pkcs11.ArgumentsBad,  # YubiHSM: not of the form its PINs have
)


class _Answer(NamedTuple):
    errors: tuple[type[pkcs11.PKCS11Error], ...]
    ours: type[VaultError]
    text: str
    hint: str = ""


# The token answered, and the answer is no; the session is as good as before.
_ANSWERS = (
    _Answer(
        (pkcs11.PinLocked,),
        Locked,
        "the PIN is locked",
        "set a new PIN with the SO PIN, or, for a TPM, wait for the end of its lockout or clear it "
        "(tpm2_dictionarylockout --clear-lockout)",
    ),
    _Answer(
        (pkcs11.PinExpired,),
        Locked,
        "the PIN has expired and must be changed",
        "change it with ockam-edge hsm change-pin or the vendor's tool",
    ),
    _Answer(
        (pkcs11.UserPinNotInitialized,),
        Locked,
        "no user PIN was ever set",
        "initialise the token with ockam-edge hsm init or the vendor's tool",
    ),
    _Answer(
        (pkcs11.MechanismInvalid, pkcs11.DomainParamsInvalid, pkcs11.FunctionNotSupported),
        Unsupported,
        "the token cannot do that",
    ),
    _Answer(
        (
            pkcs11.FunctionRejected,
            pkcs11.SessionReadOnly,
            pkcs11.TokenWriteProtected,
            pkcs11.AttributeReadOnly,
        ),
        Refused,
        "not permitted to this user",
    ),
    _Answer(
        (pkcs11.DataLenRange, pkcs11.DataInvalid), Refused, "the data is too long for the token"
    ),
    _Answer(
        (
            pkcs11.AttributeValueInvalid,
            pkcs11.AttributeTypeInvalid,
            pkcs11.TemplateInconsistent,
            pkcs11.TemplateIncomplete,
        ),
        Refused,
        "the token does not accept such a key",
    ),
)

# The token has no room left; starting over frees what a session of ours holds, not what others do.
_FULL = (pkcs11.SessionCount, pkcs11.DeviceMemory)


def answer(error: pkcs11.PKCS11Error, name: str) -> VaultError:
    """What `error`, of the token called `name`, is to the caller. DeviceGone means that the session
    is of no use any more: the device failed, sessions ended or stay busy, the login was lost,
    memory ran out, or an object went away."""
    said = f"{type(error).__name__}: {error}".rstrip(": ")
    for errors, ours, text, hint in _ANSWERS:
        if isinstance(error, errors):
            return ours(f"{name}: {text} ({said})", hint=hint)
    if _KEY_FUNCTION_NOT_PERMITTED in str(error).split():
        return Refused(f"{name}: the key may not be used for this ({said})")
    if isinstance(error, _FULL):
        return DeviceGone(
            f"{name} has no session or memory left ({said})",
            hint="end other programs that use the token; the next call starts over",
        )
    return DeviceGone(
        f"{name} stopped answering ({said})",
        hint="is the token plugged in? The next call starts over",
    )
