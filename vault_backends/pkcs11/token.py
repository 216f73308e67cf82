"""One token and the one login to it: finding the token by its URI, its PIN, its state, and the way
back when it went away.

What tokens taught: sessions and objects die with the device; the only way back from a device that
went away is to finalise the library, start it and log in again; a wrong PIN is never tried
twice. So nothing logs in before the device has answered a question that needs no PIN."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pkcs11
from pkcs11 import TokenFlag

from vault_backends.pkcs11.answers import WRONG_PIN, answer
from vault_backends.pkcs11.module import Module, module_at
from vault_backends.pkcs11.paths import find_module
from vault_backends.pkcs11.pin import Pin, WrongPin
from vault_backends.pkcs11.profiles import GENERIC, Profile, profile_for
from vault_backends.pkcs11.which import ambiguous, matching, named, state_of, wanted
from vault_backends.uri import Ask, Pkcs11Uri
from vault_backends.vault import DeviceGone, Locked, NotFound, Refused, TokenState, VaultError

__all__ = ["TokenLogin", "state_of"]


class TokenLogin:
    """The token that `uri` names, and this process's only login to it, kept as long as it lasts.

    Several may name the same token: they share the session. Nothing is loaded from the device
    before it is needed."""

    def __init__(
        self, uri: Pkcs11Uri, ask: Ask | None = None, state_dir: Path | None = None
    ) -> None:
        self.uri = uri
        path = uri.module_path or find_module(uri.module_name or "")
        self.module: Module = module_at(path, uri.parameters)
        self.module.users.add(self)
        self.profile: Profile = GENERIC
        self.state = TokenState(present=False)  # as last seen; stays to name the token in messages
        self.logins = 0  # C_Login calls with a PIN
        self.serial = ""  # where set, no other token is given the PIN
        self._pin = Pin(uri, ask, state_dir)
        self._closed = False
        self._generation = -1  # of the module, when the session was taken
        self._session: Any = None

    @property
    def name(self) -> str:
        """The token in words, for messages."""
        where = named(self.state) if self.state.label else wanted(self.uri)
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
                ours = answer(error, self.name)
            except DeviceGone:
                self.drop()
                raise
            else:
                return
            if isinstance(ours, DeviceGone):
                self.drop()
            raise ours from None  # what it says of the cause is enough

    @contextmanager
    def token(self) -> Iterator[Any]:
        """The token, without a login. NotFound if it never was there, DeviceGone if it was."""
        with self.started():
            yield self._find_token()

    @contextmanager
    def logged_in(self, *, fresh: bool = False) -> Iterator[Any]:
        """The one read-write session. `fresh` starts the library again first."""
        with self.started():
            if fresh:
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

    @property
    def pin_marker(self) -> Path | None:
        """The file that remembers how logins to this token ended, once the token was seen."""
        return self._pin.marker(self.state)

    def vouch_for_pin(self) -> None:
        """A person says that the PIN is right, or has just set it: what the token refused before is
        forgotten, and may be tried again. Never for a program to decide."""
        with self.token():
            self._pin.forget(self.state)

    def ask_state(self) -> TokenState:
        """What the token says without a PIN; an absent one is an answer, not an error."""
        try:
            with self.token() as token:
                return state_of(token)
        except (DeviceGone, NotFound):
            return self.state._replace(present=False)

    def probe(self) -> None:
        """Ask the device for something real, without a PIN. DeviceGone or NotFound if it does not
        answer."""
        with self.token() as token:
            if not _probe(token) and not self.module.sessions:
                # YubiHSM's module asks the device only once before a login: while it starts.
                self.module.stop()
                self.module.start()
                self._find_token()

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
        if self.serial and self.state.serial != self.serial:
            raise Refused(
                f"{self.name} is another token than the one with serial {self.serial}",
                hint="the identity was made in that one; plug it in",
            )
        slot = token.slot.slot_id
        if slot not in self.module.sessions:
            _probe(token)
            self.module.sessions[slot] = self._new_login(token)
        self._session = self.module.sessions[slot]
        self._generation = self.module.generation

    def _new_login(self, token: Any) -> Any:
        if not token.flags & TokenFlag.LOGIN_REQUIRED:
            return token.open(rw=True)
        try:
            return self._try_pin(token)
        except pkcs11.UserAlreadyLoggedIn:  # by other code in this process; ours to share
            return token.open(rw=True)

    def _try_pin(self, token: Any) -> Any:
        with self._pin.attempt(self.state, named(self.state), self._check_flags) as pin:
            wrong = ""
            try:
                self.logins += 1
                return token.open(rw=True, user_pin=pin.reveal())
            except pkcs11.UserAlreadyLoggedIn:  # also for a wrong PIN: no verdict
                raise
            except pkcs11.PKCS11Error as error:
                if not (self._is_verdict(error) or self._was_counted(token)):
                    self._after_failed_login()
                    raise
                wrong = type(error).__name__
            self._after_failed_login()
            raise WrongPin(wrong)

    def _check_flags(self) -> TokenState:
        """What the token says now; Locked if it says that the PIN must not be tried. Asked anew: while
        we waited for our turn others may have tried theirs."""
        token = self._find_token()
        state, flags = self.state, token.flags
        if state.pin_locked:
            raise Locked(
                f"the PIN of {self.name} is locked",
                hint="set a new PIN with the SO PIN (ockam-edge hsm, or the vendor's tool)",
            )
        if state.pin_final_try:
            raise Locked(
                f"{self.name} has one PIN try left, which is not for us to use",
                hint="log in once with the vendor's tool, or set a new PIN with the SO PIN",
            )
        if flags & TokenFlag.USER_PIN_TO_BE_CHANGED:
            raise Locked(
                f"the PIN of {self.name} must be changed before it can be used",
                hint="change it with ockam-edge hsm change-pin or the vendor's tool",
            )
        return state

    def _is_verdict(self, error: pkcs11.PKCS11Error) -> bool:
        """Whether the token refused the PIN itself."""
        unknown_user = self.profile.unknown_user_error and isinstance(
            error, pkcs11.ObjectHandleInvalid
        )
        return unknown_user or isinstance(error, WRONG_PIN)

    def _was_counted(self, token: Any) -> bool:
        """Whether the token counts a wrong PIN that it did not count before we tried, whatever the
        code was that it answered with."""
        try:
            now = state_of(token.slot.get_token())
        except pkcs11.PKCS11Error:
            return False
        return now.pin_tried and not self.state.pin_tried

    def _after_failed_login(self) -> None:
        # python-pkcs11 leaks the session it opened; only stopping the library frees it.
        if not self.module.sessions:
            self.drop()

    # --- which token

    def _find_token(self) -> Any:
        library = self.module.library
        self.profile = profile_for(library.manufacturer_id, library.library_description)
        there = self.module.tokens()
        found = matching(self.uri, there)
        if len(found) == 1:
            self.state = state_of(found[0])
            return found[0]
        if found:
            raise ambiguous(self.uri, found, self.module.path)
        if not self.module.sessions:
            self.module.stop()  # some modules look for tokens only while they start
        seen_before = bool(self.state.label or self.state.serial)
        listed = "; ".join(named(state_of(token)) for token in there) or "none"
        lost = DeviceGone if seen_before else NotFound
        raise lost(
            f"there is no {wanted(self.uri)} in {self.module.path}. Tokens there: {listed}",
            hint="plug the token in, initialise it, or correct the vault URI",
            retry=seen_before or self.profile.late_token,
        )


def _probe(token: Any) -> bool:
    """A real operation without a PIN: token info and sessions come from files with some modules and
    succeed without the device, random bytes do not. False: this token (YubiHSM) has none without a
    login, and the device was not asked."""
    session = token.open()
    try:
        session.generate_random(64)
    except (pkcs11.RandomNoRNG, pkcs11.FunctionNotSupported):
        pass
    except pkcs11.UserNotLoggedIn:
        return False
    finally:
        session.close()  # has no login of its own, so it logs nobody out
    return True
