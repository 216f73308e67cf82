"""Changing the user PIN, so that neither a power cut nor a full disk loses it.

    log in with the old PIN, write FILE.new, C_SetPIN, FILE.new takes FILE's place, log in with it

See pinfile.py for what whoever finds both files does; the logins of a node do the same (pin.py)."""

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import pkcs11

from vault_backends.pkcs11 import pinfile
from vault_backends.pkcs11.raw import limits
from vault_backends.pkcs11.token import TokenLogin
from vault_backends.uri import Ask, Pkcs11Uri, obtain, secret_path
from vault_backends.vault import DeviceGone, Locked, Misconfigured, Unsupported, VaultError

# The token answered, and has still the old PIN.
_NO = (
    pkcs11.PinInvalid,
    pkcs11.PinLenRange,
    pkcs11.PinIncorrect,
    pkcs11.PinLocked,
    pkcs11.FunctionNotSupported,
    pkcs11.FunctionRejected,
    pkcs11.SessionReadOnly,
    pkcs11.TokenWriteProtected,
)
_YUBIHSM = (
    "the PIN of a YubiHSM 2 is an authentication key: yubihsm-shell -a change-authentication-key"
)


class NewPin(NamedTuple):
    """Where the new PIN comes from."""

    source: str | None
    """`file:`, `credential:` or `ask`; None to make a random one, which needs a PIN file."""
    ask_new: Ask
    """Asks a person for a PIN that is not in use yet, twice."""


class Outcome(Enum):
    CHANGED = "changed"
    SAME = "the PIN is that one already"
    FINISHED = "a change that broke off is finished"


def change_pin(uri: Pkcs11Uri, new: NewPin, ask: Ask | None, state_dir: Path | None) -> Outcome:
    """Change the user PIN of the token of `uri`, and the file of its pin-source with it. At most one
    login with each PIN."""
    path = _file(uri.pin_source)
    if new.source is None and path is None:
        raise Misconfigured(
            "a random PIN needs a place to be kept",
            hint="give pin-source=file:/path in the URI, or the new PIN by --new-pin-source",
        )
    once = _remembered(ask)
    login = TokenLogin(uri, once, state_dir)
    try:
        if path is not None and _finished(login, path):
            return Outcome.FINISHED
        outcome = _changed(login, path, new, once)
        if outcome is Outcome.CHANGED:
            login.vouch_for_pin()
        with login.logged_in(fresh=outcome is Outcome.CHANGED and path is not None):
            return outcome
    finally:
        login.close()


def _finished(login: TokenLogin, path: Path) -> bool:
    """Log in; whether that took the PIN of a change that broke off."""
    broken = pinfile.prepared(path) is not None
    try:
        with login.logged_in():
            return False
    except Locked:
        if not broken or pinfile.prepared(path) is not None:
            raise
    with login.logged_in(fresh=True):  # with the PIN that took its place
        return True


def _changed(login: TokenLogin, path: Path | None, new: NewPin, ask: Ask) -> Outcome:
    with login.logged_in() as session, login.token() as token:
        old = obtain(login.uri.pin_source, ask, f"the PIN of {login.name}")
        sizes = limits(login.module.library, token.slot.slot_id)
        if new.source is None:
            pin = pinfile.random_pin(sizes.shortest_pin, sizes.longest_pin)
        else:
            pin = obtain(new.source, new.ask_new, f"a new PIN for {login.name}")
        if not sizes.shortest_pin <= len(pin.encode()) <= (sizes.longest_pin or 255):
            raise Misconfigured(
                f"{login.name} takes PINs of {sizes.shortest_pin} to {sizes.longest_pin or 255} bytes",
                hint="nothing was changed; give a PIN of that length",
            )
        if pin == old:
            return Outcome.SAME
        if path is not None:
            pinfile.prepare(path, pin)
        _set(login, session, path, old, pin)
        if path is not None:
            pinfile.succeed(path)  # unless a login of the node did it meanwhile
        return Outcome.CHANGED


def _set(login: TokenLogin, session: Any, path: Path | None, old: str, pin: str) -> None:
    try:
        session.set_pin(old, pin)
    except _NO as error:
        if path is not None:
            pinfile.discard(path)
        if isinstance(error, pkcs11.FunctionNotSupported):
            hint = _YUBIHSM if login.profile.name == "yubihsm" else ""
            raise Unsupported(f"{login.name} cannot change its PIN this way", hint=hint) from None
        raise VaultError(
            f"{login.name} did not change its PIN ({type(error).__name__})",
            hint="the old PIN is still good",
        ) from None
    except pkcs11.PKCS11Error as error:  # it may have been done, or not
        login.drop()
        kept = f"{path} and {pinfile.successor(path)} hold both PINs; " if path else ""
        raise DeviceGone(
            f"{login.name} stopped answering while its PIN was changed ({type(error).__name__})",
            hint=f"{kept}the same command again finds out which one is good",
        ) from error


def _file(source: str) -> Path | None:
    return secret_path(source) if source.startswith("file:") else None


def _remembered(ask: Ask | None) -> Callable[[str], str | None]:
    """A person is asked for the old PIN once; the login and C_SetPIN both need it."""
    answers: list[str | None] = []

    def answer(prompt: str) -> str | None:
        if not answers:
            answers.append(ask(prompt) if ask is not None else None)
        return answers[0]

    return answer
