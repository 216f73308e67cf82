"""Keys in a PKCS#11 token: the six methods over one login that lasts as long as the process.

What tokens taught (and the rules that follow): sessions and objects die with the device, so they
are looked up again after each new start; an empty search does not mean that a key is absent; a
signature counts only after software has verified it; a wrong PIN is never tried twice; the only
way back from a device that went away is to finalise the library, start it and log in again."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass, TokenFlag
from pkcs11.constants import DEFAULT as OMIT

from vault_backends.pkcs11 import points
from vault_backends.pkcs11.module import Module, module_at
from vault_backends.pkcs11.pin import Pin, WrongPin
from vault_backends.pkcs11.profiles import GENERIC, P256_OID, profile_for
from vault_backends.uri import Ask, Pkcs11Uri
from vault_backends.vault import (
    DeviceGone,
    Exists,
    Key,
    Kind,
    Locked,
    Misconfigured,
    NotFound,
    Refused,
    TokenState,
    Unsupported,
    Vault,
    VaultError,
    check_label,
)


def open(uri: Pkcs11Uri, ask: Ask | None, state_dir: Path | None) -> Vault:
    return Pkcs11Vault(uri, ask, state_dir)


class _Way(NamedTuple):
    """How one kind of key is made and used."""

    key_type: KeyType
    generate: Mechanism
    sign: Mechanism


# P-256 hashes in software everywhere: not every token has ECDSA_SHA256, and all have plain ECDSA.
_WAYS = {
    Kind.ED25519: _Way(KeyType.EC_EDWARDS, Mechanism.EC_EDWARDS_KEY_PAIR_GEN, Mechanism.EDDSA),
    Kind.P256: _Way(KeyType.EC, Mechanism.EC_KEY_PAIR_GEN, Mechanism.ECDSA),
}

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
# Return codes python-pkcs11 has no exception for.
_CURVE_NOT_SUPPORTED, _KEY_FUNCTION_NOT_PERMITTED = "0x140", "0x68"

_DESCRIBED = {
    "extractable": Attribute.EXTRACTABLE,
    "sensitive": Attribute.SENSITIVE,
    "always_sensitive": Attribute.ALWAYS_SENSITIVE,
    "never_extractable": Attribute.NEVER_EXTRACTABLE,
    "local": Attribute.LOCAL,
    "private": Attribute.PRIVATE,
}


class _Held(NamedTuple):
    """A key found on the token: good for one generation of the module."""

    private: Any
    public: bytes


class Pkcs11Vault:
    """One token, as its URI describes it."""

    def __init__(
        self, uri: Pkcs11Uri, ask: Ask | None = None, state_dir: Path | None = None
    ) -> None:
        self.logins = 0  # C_Login calls with a PIN
        self.signs = 0  # signatures asked of the token
        self._uri = uri
        self._pin = Pin(uri.pin_source, ask, state_dir)
        self._module: Module = module_at(uri.module_path, uri.parameters)
        self._module.users.add(self)
        self._closed = False
        self._generation = -1  # of the module, when the session was taken
        self._session: Any = None
        self._state = TokenState(present=False)  # as last seen; stays to name the token in messages
        self._profile = GENERIC
        self._kinds: frozenset[Kind] | None = None
        self._held: dict[Key, _Held] = {}
        self._pinned: dict[Key, bytes] = {}

    # --- the six methods

    @property
    def kinds(self) -> frozenset[Kind]:
        if self._kinds is None:
            with self._token() as token:
                self._kinds = self._profile.kinds & _kinds_of(token.slot.get_mechanisms())
        return self._kinds

    def generate(self, kind: Kind, label: str) -> Key:
        key = Key(kind, label)
        with self._logged_in():
            check_label(label, self._profile.longest_label)
            if kind not in self.kinds:
                raise Unsupported(f"{self._name()} cannot hold {kind} keys")
            if self._uri.object not in (None, label):
                raise Misconfigured(f"the vault URI says object={self._uri.object}, not {label!r}")
            key_id = self._uri.id or points.key_id(label, self._profile.id_length)
            self._check_free(label, key_id)
            self._make(kind, label, key_id)
        with self._logged_in():  # again: some tokens were started anew after the generation
            self._hold(key)
        return key

    def keys(self) -> Iterator[Key]:
        with self._logged_in():
            found = self._objects(ObjectClass.PRIVATE_KEY)
            if not found and not self._view_is_good():
                self._reopen()
                found = self._objects(ObjectClass.PRIVATE_KEY)
            named = [(_kind_of(one), _read(one, Attribute.LABEL)) for one in found]
        return iter([Key(kind, label) for kind, label in named if kind and label])

    def public(self, key: Key) -> bytes:
        with self._logged_in():
            return self._hold(key).public

    def sign(self, key: Key, data: bytes) -> bytes:
        data = bytes(data)  # python-pkcs11 takes any other buffer for a multi-part message
        with self._logged_in():
            held = self._hold(key)
            message = data if key.kind is Kind.ED25519 else hashlib.sha256(data).digest()
            self.signs += 1
            answer = held.private.sign(message, mechanism=_WAYS[key.kind].sign)
        signed = points.signature(key.kind, answer)
        if not points.verifies(key.kind, held.public, data, signed):
            raise Refused(
                f"{self._name()} gave a signature with key {key.label!r} that does not verify",
                hint="the token or its module is faulty, or the key was exchanged",
            )
        return signed

    def delete(self, key: Key) -> None:
        with self._logged_in():
            # Also what is left of a pair after a power cut in the middle of making or deleting it.
            found = self._pair(key)
            if not found:
                raise self._no_key(key)
            for one in found:
                _destroy(one)
            self._held.pop(key, None)
            self._pinned.pop(key, None)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._lose()
            self._module.leave(self)

    # --- what only tokens can do

    def state(self) -> TokenState:
        """What the token says without a PIN; an absent one is an answer, not an error."""
        try:
            with self._token() as token:
                return _state_of(token)
        except (DeviceGone, NotFound):
            return self._state._replace(present=False)

    def probe(self) -> None:
        """A real operation without a PIN: token info and sessions come from files with some
        modules and succeed without the device, random bytes do not."""
        with self._token() as token:
            session = token.open()
            try:
                session.generate_random(64)
            except (pkcs11.RandomNoRNG, pkcs11.FunctionNotSupported):
                pass
            finally:
                session.close()  # has no login of its own, so it logs nobody out

    def reopen(self) -> None:
        """Start the library again and log in; the order to try once more, after a refused PIN
        too."""
        with self._logged_in(fresh=True):
            pass

    def pin(self, key: Key, public: bytes) -> None:
        """From now on `key` must have this public key, whatever the token says."""
        self._pinned[key] = public
        self._held.pop(key, None)

    def describe(self, key: Key) -> dict[str, Any]:
        with self._logged_in():
            private = self._hold(key).private
            key_id = _read(private, Attribute.ID) or b""
            said = {name: _read(private, one) for name, one in _DESCRIBED.items()}
        return {
            "vault": "pkcs11",
            "token": self._state.label,
            "serial": self._state.serial,
            "manufacturer": self._state.manufacturer,
            "model": self._state.model,
            "module": self._module.path,
            "profile": self._profile.name,
            "kind": key.kind.value,
            "label": key.label,
            "id": key_id.hex(),
            **said,
            # With tpm2-pkcs11 the attributes are rows in a database that anyone with the PIN can
            # edit.
            "attributes_prove": self._profile.attributes_prove,
        }

    # --- module, token, login

    @contextmanager
    def _started(self) -> Iterator[None]:
        """The library is up, ours alone for the time, and its errors come out as vault errors."""
        if self._closed:
            raise VaultError(f"the vault of {self._name()} is closed")
        with self._module.held():
            try:
                self._module.start()
                yield
            except pkcs11.PKCS11Error as error:
                raise self._translated(error) from error
            except DeviceGone:
                self._drop()
                raise

    @contextmanager
    def _token(self) -> Iterator[Any]:
        with self._started():
            yield self._find_token()

    @contextmanager
    def _logged_in(self, *, fresh: bool = False) -> Iterator[None]:
        with self._started():
            if fresh:
                self._pin.forget_refusal()
                self._drop()
            if self._session is None or self._generation != self._module.generation:
                self._log_in()
            yield

    def _log_in(self) -> None:
        self._lose()
        self._module.start()
        token = self._find_token()
        slot = token.slot.slot_id
        if slot not in self._module.sessions:
            self._module.sessions[slot] = self._new_login(token)
        self._session = self._module.sessions[slot]
        self._generation = self._module.generation

    def _new_login(self, token: Any) -> Any:
        state = self._state
        if not token.flags & TokenFlag.LOGIN_REQUIRED:
            return token.open(rw=True)
        if state.pin_locked or state.pin_final_try:
            raise Locked(
                f"the PIN of {self._name()} is locked"
                if state.pin_locked
                else f"{self._name()} has one PIN try left, which is not for us to use",
                hint="log in once with the vendor's tool, or reset the PIN with the SO PIN",
            )
        try:
            return self._try_pin(token, f"{state.label} (serial {state.serial})")
        except pkcs11.UserAlreadyLoggedIn:  # by other code in this process; ours to share
            return token.open(rw=True)

    def _try_pin(self, token: Any, name: str) -> Any:
        with self._pin.attempt(os.path.realpath(self._module.path), name) as pin:
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
        return self._profile.unknown_user_error and isinstance(error, pkcs11.ObjectHandleInvalid)

    def _after_failed_login(self) -> None:
        # python-pkcs11 leaks the session it opened; only stopping the library frees it.
        if not self._module.sessions:
            self._drop()

    def _find_token(self) -> Any:
        self._profile = profile_for(self._module.library.manufacturer_id)
        there = self._module.tokens()
        found = [token for token in there if self._matches(token)]
        if len(found) == 1:
            self._state = _state_of(found[0])
            return found[0]
        listed = "; ".join(_named(_state_of(token)) for token in there) or "none"
        if found:
            raise Misconfigured(
                f"{len(found)} tokens match the vault URI. Tokens in {self._module.path}: {listed}",
                hint="add token= or serial= to the URI",
            )
        if not self._module.sessions:
            self._module.stop()  # some modules look for tokens only while they start
        seen_before = bool(self._state.label or self._state.serial)
        lost = DeviceGone if seen_before else NotFound
        raise lost(
            f"there is no {self._wanted()} in {self._module.path}. Tokens there: {listed}",
            hint="plug the token in, initialise it, or correct the vault URI",
            retry=seen_before or self._profile.late_token,
        )

    def _matches(self, token: Any) -> bool:
        uri, state = self._uri, _state_of(token)
        pairs = (
            (uri.token, state.label),
            (uri.serial, state.serial),
            (uri.manufacturer, state.manufacturer),
            (uri.model, state.model),
            (uri.slot_id, token.slot.slot_id),
        )
        return all(wanted is None or wanted == has for wanted, has in pairs)

    def _wanted(self) -> str:
        uri = self._uri
        parts = {
            "label": uri.token, "serial": uri.serial, "manufacturer": uri.manufacturer,
            "model": uri.model, "slot": uri.slot_id,
        }  # fmt: skip
        said = ", ".join(f"{name} {value!r}" for name, value in parts.items() if value is not None)
        return f"token with {said}" if said else "token"

    def _name(self) -> str:
        where = _named(self._state) if self._state.label else self._wanted()
        return f"{where} in {self._module.path}"

    def _lose(self) -> None:
        self._session = None
        self._held.clear()

    def _drop(self) -> None:
        """Everything the device gave us is void, also that of other vaults on this module."""
        self._lose()
        self._module.stop()

    def _reopen(self) -> None:
        self._drop()
        self._log_in()

    def _translated(self, error: pkcs11.PKCS11Error) -> VaultError:
        said = f"{type(error).__name__}: {error}".rstrip(": ")
        for errors, ours, text in _ANSWERS:
            if isinstance(error, errors):
                return ours(f"{self._name()}: {text} ({said})")
        if _KEY_FUNCTION_NOT_PERMITTED in str(error).split():
            return Refused(f"{self._name()}: the key may not be used for this ({said})")
        # All the rest means that the session is of no use any more: device errors, sessions that
        # end or stay busy, memory of the device, handles of objects that went away.
        self._drop()
        return DeviceGone(
            f"{self._name()} stopped answering ({said})",
            hint="is the token plugged in? The next call starts over",
        )

    # --- objects

    def _objects(self, what: ObjectClass, **wanted: Any) -> list[Any]:
        """Search by class and id or label alone: tokens disagree about everything else. Always the
        whole list, since an unfinished search blocks the session."""
        template: dict[Attribute, Any] = {Attribute.CLASS: what}
        if self._uri.object is not None:
            template[Attribute.LABEL] = self._uri.object
        if self._uri.id is not None:
            template[Attribute.ID] = self._uri.id
        template |= {Attribute[name.upper()]: value for name, value in wanted.items()}
        return list(self._session.get_objects(template))

    def _hold(self, key: Key) -> _Held:
        if key not in self._held:
            found = self._find(key)
            if not found and not (key not in self._pinned and self._view_is_good()):
                self._reopen()
                found = self._find(key)
            if not found:
                raise self._no_key(key)
            self._held[key] = self._checked(key, found)
        return self._held[key]

    def _find(self, key: Key) -> list[Any]:
        if self._uri.object not in (None, key.label):
            return []
        found = self._objects(ObjectClass.PRIVATE_KEY, label=key.label)
        return [one for one in found if _kind_of(one) is key.kind]

    def _view_is_good(self) -> bool:
        """Whether an empty search can be believed: still logged in, and the device still there."""
        try:
            there = _state_of(self._session.token.slot.get_token()).serial == self._state.serial
        except pkcs11.PKCS11Error:
            return False
        known = not self._profile.stale_view and there
        return known and self._module.library.logged_in(self._session)

    def _checked(self, key: Key, found: list[Any]) -> _Held:
        if len(found) > 1:
            ids = ", ".join(_hex(_read(one, Attribute.ID)) for one in found)
            raise Misconfigured(
                f"{self._name()} has {len(found)} {key.kind} keys {key.label!r}, with ids {ids}",
                hint="add id= to the vault URI, or delete the wrong one",
            )
        private = found[0]
        if _read(private, Attribute.EXTRACTABLE) or _read(private, Attribute.SENSITIVE) is False:
            raise Refused(
                f"key {key.label!r} can be read out of {self._name()}",
                hint="generate a new key inside the token",
            )
        public = self._public_of(key, private)
        if self._pinned.setdefault(key, public) != public:
            raise Refused(
                f"{self._name()} holds another key {key.label!r} than before",
                hint="the token or the key was exchanged; the identity cannot go on with it",
            )
        return _Held(private, public)

    def _public_of(self, key: Key, private: Any) -> bytes:
        key_id = _read(private, Attribute.ID)
        near = {"id": key_id} if key_id else {"label": key.label}
        values = {
            points.point(key.kind, _read(one, Attribute.EC_POINT) or b"")
            for one in self._objects(ObjectClass.PUBLIC_KEY, **near)
            if _kind_of(one) is key.kind
        }
        values.discard(None)
        if not values and key in self._pinned:
            return self._pinned[key]
        if len(values) != 1:
            raise Refused(
                f"{self._name()} has {len(values) or 'no'} public keys for {key.label!r}",
                hint="delete the key and generate it again",
            )
        return values.pop() or b""

    def _check_free(self, label: str, key_id: bytes) -> None:
        """An empty search must be one to believe in, or a second key would get the name of the
        first."""
        if not self._view_is_good():
            self._reopen()
        for what in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY):
            if self._objects(what, label=label):
                raise Exists(f"{self._name()} has a key {label!r} already")
            if self._objects(what, id=key_id):
                raise Exists(f"{self._name()} has a key with id {key_id.hex()} already")

    def _make(self, kind: Kind, label: str, key_id: bytes) -> None:
        way, profile = _WAYS[kind], self._profile
        public = {Attribute.VERIFY: True} | {Attribute[n]: OMIT for n in profile.omit_public}
        private = {
            Attribute.SIGN: True,
            Attribute.SENSITIVE: True,
            Attribute.EXTRACTABLE: False,
        } | {Attribute[n]: OMIT for n in profile.omit_private}
        curves = profile.ed25519_curves if kind is Kind.ED25519 else (P256_OID,)
        for curve in curves:
            try:
                self._session.create_domain_parameters(
                    way.key_type, {Attribute.EC_PARAMS: curve}, local=True
                ).generate_keypair(
                    id=key_id,
                    label=label,
                    store=True,
                    mechanism=way.generate,
                    capabilities=0,
                    public_template=public | {Attribute.EC_PARAMS: curve},
                    private_template=private,
                )
                break
            except pkcs11.PKCS11Error as error:
                if curve is curves[-1] or not _is_about_curve(error):
                    raise
        if profile.one_generation:
            self._drop()

    def _pair(self, key: Key) -> list[Any]:
        """What there is of `key`, the private part first: without it the rest is of no use to
        anyone."""
        private = self._find(key)
        if len(private) > 1:
            self._checked(key, private)
        key_id = _read(private[0], Attribute.ID) if private else None
        near = {"id": key_id} if key_id else {"label": key.label}
        public = self._objects(ObjectClass.PUBLIC_KEY, **near)
        return private + [one for one in public if _kind_of(one) is key.kind]

    def _no_key(self, key: Key) -> NotFound:
        return NotFound(
            f"{self._name()} has no {key.kind} key {key.label!r}",
            hint="was it deleted, or is this another token than the one it was made in?",
        )


def _state_of(token: Any) -> TokenState:
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


def _named(state: TokenState) -> str:
    return f"token {state.label!r} (serial {state.serial})"


def _kinds_of(mechanisms: set[Any]) -> frozenset[Kind]:
    return frozenset(kind for kind, way in _WAYS.items() if {way.generate, way.sign} <= mechanisms)


def _read(found: Any, attribute: Attribute) -> Any:
    """An attribute, or None where the token has none to show (ValueError: "unavailable")."""
    try:
        return found[attribute]
    except (pkcs11.AttributeTypeInvalid, pkcs11.AttributeSensitive, ValueError):
        return None


def _kind_of(found: Any) -> Kind | None:
    """None for every key that is not ours to use, also of types python-pkcs11 has no name for."""
    kind = points.curve(_read(found, Attribute.EC_PARAMS) or b"")
    return kind if kind and _read(found, Attribute.KEY_TYPE) == _WAYS[kind].key_type else None


def _hex(value: bytes | None) -> str:
    return value.hex() if value else "(none)"


def _destroy(found: Any) -> None:
    # On YubiHSM the pair is one object, and went with its first part.
    with suppress(pkcs11.ObjectHandleInvalid):
        found.destroy()


def _is_about_curve(error: pkcs11.PKCS11Error) -> bool:
    return _CURVE_NOT_SUPPORTED in str(error) or isinstance(
        error, pkcs11.DomainParamsInvalid | pkcs11.AttributeValueInvalid
    )
