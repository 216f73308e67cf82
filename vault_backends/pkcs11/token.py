"""One token and the one login to it: finding the token by its URI, its PIN, its state, and what its
errors mean.

What tokens taught: sessions and objects die with the device; the only way back from a device that
went away is to finalise the library, start it and log in again; a wrong PIN is never tried
twice."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pkcs11
from pkcs11 import TokenFlag

from vault_backends.pkcs11.module import Module, module_at
from vault_backends.pkcs11.pin import Pin, WrongPin
from vault_backends.pkcs11.profiles import GENERIC, Profile, profile_for
from vault_backends.uri import Ask, Pkcs11Uri
from vault_backends.vault import (
    DeviceGone,
    Locked,
    Misconfigured,
    NotFound,
    Refused,
    TokenState,
    Unsupported,
    VaultError,
)

_WRONG_PIN = (
    pkcs11.PinIncorrect,
    pkcs11.PinInvalid,
    pkcs11.PinLenRange,
    pkcs11.PinExpired,
    pkcs11.ArgumentsBad,  # YubiHSM: not of the form its PINs have
)
# The token answered, and the answer is no; the session is as good as before.
_ANSWERS: tuple[tuple[tuple[type[Exception], ...], type[VaultError], str], ...] = (
    ((pkcs11.PinLocked,), Locked, "the PIN is locked"),
    ((pkcs11.UserPinNotInitialized,), Locked, "no user PIN was ever set"),
    (
        (pkcs11.MechanismInvalid, pkcs11.DomainParamsInvalid, pkcs11.FunctionNotSupported),
        Unsupported,
        "the token cannot do that",
    ),
    (
        (
            pkcs11.FunctionRejected,
            pkcs11.SessionReadOnly,
            pkcs11.TokenWriteProtected,
            pkcs11.AttributeReadOnly,
        ),
        Refused,
        "not permitted to this user",
    ),
    ((pkcs11.DataLenRange, pkcs11.DataInvalid), Refused, "the data is too long for the token"),
    (
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
# A return code python-pkcs11 has no exception for.
_KEY_FUNCTION_NOT_PERMITTED = "0x68"


class TokenLogin:
    """The token that `uri` names, and this process's only login to it, kept as long as it lasts.

    Several may name the same token: they share the session. Nothing is loaded from the device
    before it is needed."""

    def __init__(
        self, uri: Pkcs11Uri, ask: Ask | None = None, state_dir: Path | None = None
    ) -> None:
        self.uri = uri
        self.module: Module = module_at(uri.module_path, uri.parameters)
        self.module.users.add(self)
        self.profile: Profile = GENERIC
        self.state = TokenState(present=False)  # as last seen; stays to name the token in messages
        self.logins = 0  # C_Login calls with a PIN
        self._pin = Pin(uri.pin_source, ask, state_dir)
        self._closed = False
        self._generation = -1  # of the module, when the session was taken
        self._session: Any = None

    @property
    def name(self) -> str:
        """The token in words, for messages."""
        where = named(self.state) if self.state.label else self._wanted()
        return f"{where} in {self.module.path}"

    @property
    def generation(self) -> int:
        """Objects found under one generation are void under any other."""
        return self.module.generation

    @contextmanager
    def started(self) -> Iterator[None]:
        """The library is up, ours alone for the time, and its errors come out as vault errors."""
        if self._closed:
            raise VaultError(f"the vault of {self.name} is closed")
        with self.module.held():
            try:
                self.module.start()
                yield
            except pkcs11.PKCS11Error as error:
                raise self._translated(error) from error
            except DeviceGone:
                self.drop()
                raise

    @contextmanager
    def token(self) -> Iterator[Any]:
        """The token, without a login. NotFound if it never was there, DeviceGone if it was."""
        with self.started():
            yield self._find_token()

    @contextmanager
    def logged_in(self, *, fresh: bool = False) -> Iterator[Any]:
        """The one read-write session. `fresh` starts the library again first, and is the order to
        try a refused PIN once more."""
        with self.started():
            if fresh:
                self._pin.forget_refusal()
                self.drop()
            if self._session is None or self._generation != self.module.generation:
                self._log_in()
            yield self._session

    def renew(self) -> Any:
        """Inside logged_in(): start the library again and log in; the session from now on."""
        self.drop()
        self._log_in()
        return self._session

    def drop(self) -> None:
        """Everything the device gave us is void, also that of other vaults on this module."""
        self._session = None
        self.module.stop()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._session = None
            self.module.leave(self)

    def ask_state(self) -> TokenState:
        """What the token says without a PIN; an absent one is an answer, not an error."""
        try:
            with self.token() as token:
                return state_of(token)
        except (DeviceGone, NotFound):
            return self.state._replace(present=False)

    def probe(self) -> None:
        """A real operation without a PIN: token info and sessions come from files with some
        modules and succeed without the device, random bytes do not. DeviceGone or NotFound."""
        with self.token() as token:
            session = token.open()
            try:
                session.generate_random(64)
            except (pkcs11.RandomNoRNG, pkcs11.FunctionNotSupported):
                pass
            finally:
                session.close()  # has no login of its own, so it logs nobody out

    def view_is_good(self) -> bool:
        """Whether an empty search can be believed: still logged in, and the device still there."""
        try:
            there = state_of(self._session.token.slot.get_token()).serial == self.state.serial
        except pkcs11.PKCS11Error:
            return False
        known = not self.profile.stale_view and there
        return known and self.module.library.logged_in(self._session)

    # --- the login

    def _log_in(self) -> None:
        self._session = None
        self.module.start()
        token = self._find_token()
        slot = token.slot.slot_id
        if slot not in self.module.sessions:
            self.module.sessions[slot] = self._new_login(token)
        self._session = self.module.sessions[slot]
        self._generation = self.module.generation

    def _new_login(self, token: Any) -> Any:
        state = self.state
        if not token.flags & TokenFlag.LOGIN_REQUIRED:
            return token.open(rw=True)
        if state.pin_locked or state.pin_final_try:
            raise Locked(
                f"the PIN of {self.name} is locked"
                if state.pin_locked
                else f"{self.name} has one PIN try left, which is not for us to use",
                hint="log in once with the vendor's tool, or reset the PIN with the SO PIN",
            )
        try:
            return self._try_pin(token, f"{state.label} (serial {state.serial})")
        except pkcs11.UserAlreadyLoggedIn:  # by other code in this process; ours to share
            return token.open(rw=True)

    def _try_pin(self, token: Any, name: str) -> Any:
        with self._pin.attempt(os.path.realpath(self.module.path), name) as pin:
            try:
                self.logins += 1
                return token.open(rw=True, user_pin=pin)
            except pkcs11.UserAlreadyLoggedIn:  # also for a wrong PIN: no verdict
                raise
            except pkcs11.PKCS11Error as error:
                self._after_failed_login()
                if isinstance(error, _WRONG_PIN) or self._is_unknown_user(error):
                    raise WrongPin(type(error).__name__) from None
                raise

    def _is_unknown_user(self, error: pkcs11.PKCS11Error) -> bool:
        return self.profile.unknown_user_error and isinstance(error, pkcs11.ObjectHandleInvalid)

    def _after_failed_login(self) -> None:
        # python-pkcs11 leaks the session it opened; only stopping the library frees it.
        if not self.module.sessions:
            self.drop()

    # --- which token

    def _find_token(self) -> Any:
        self.profile = profile_for(self.module.library.manufacturer_id)
        there = self.module.tokens()
        found = [token for token in there if self._matches(token)]
        if len(found) == 1:
            self.state = state_of(found[0])
            return found[0]
        listed = "; ".join(named(state_of(token)) for token in there) or "none"
        if found:
            raise Misconfigured(
                f"{len(found)} tokens match the vault URI. Tokens in {self.module.path}: {listed}",
                hint="add token= or serial= to the URI",
            )
        if not self.module.sessions:
            self.module.stop()  # some modules look for tokens only while they start
        seen_before = bool(self.state.label or self.state.serial)
        lost = DeviceGone if seen_before else NotFound
        raise lost(
            f"there is no {self._wanted()} in {self.module.path}. Tokens there: {listed}",
            hint="plug the token in, initialise it, or correct the vault URI",
            retry=seen_before or self.profile.late_token,
        )

    def _matches(self, token: Any) -> bool:
        uri, state = self.uri, state_of(token)
        pairs = (
            (uri.token, state.label),
            (uri.serial, state.serial),
            (uri.manufacturer, state.manufacturer),
            (uri.model, state.model),
            (uri.slot_id, token.slot.slot_id),
        )
        return all(wanted is None or wanted == has for wanted, has in pairs)

    def _wanted(self) -> str:
        uri = self.uri
        parts = {
            "label": uri.token, "serial": uri.serial, "manufacturer": uri.manufacturer,
            "model": uri.model, "slot": uri.slot_id,
        }  # fmt: skip
        said = ", ".join(f"{name} {value!r}" for name, value in parts.items() if value is not None)
        return f"token with {said}" if said else "token"

    # --- what went wrong

    def _translated(self, error: pkcs11.PKCS11Error) -> VaultError:
        said = f"{type(error).__name__}: {error}".rstrip(": ")
        for errors, ours, text in _ANSWERS:
            if isinstance(error, errors):
                return ours(f"{self.name}: {text} ({said})")
        if _KEY_FUNCTION_NOT_PERMITTED in str(error).split():
            return Refused(f"{self.name}: the key may not be used for this ({said})")
        # All the rest means that the session is of no use any more: device errors, sessions that
        # end or stay busy, memory of the device, handles of objects that went away.
        self.drop()
        return DeviceGone(
            f"{self.name} stopped answering ({said})",
            hint="is the token plugged in? The next call starts over",
        )


def state_of(token: Any) -> TokenState:
    """What a token says of itself, its padding stripped."""
    flags = token.flags
    return TokenState(
        present=True,
        label=token.label,
        # Padding differs: spaces by the standard, NUL with tpm2-pkcs11.
        serial=token.serial.rstrip(b"\0 ").decode(errors="replace"),
        manufacturer=token.manufacturer_id,
        model=token.model,
        pin_tried=bool(flags & TokenFlag.USER_PIN_COUNT_LOW),
        pin_final_try=bool(flags & TokenFlag.USER_PIN_FINAL_TRY),
        pin_locked=bool(flags & TokenFlag.USER_PIN_LOCKED),
    )


def named(state: TokenState) -> str:
    return f"token {state.label!r} (serial {state.serial})"
