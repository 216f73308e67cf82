"""Keys in a PKCS#11 token: the six methods over one login that lasts as long as the process.

The rules that tokens taught: objects are looked up again after each new start of the library; an
empty search does not mean that a key is absent; a signature counts only after software has
verified it."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pkcs11
from pkcs11 import Attribute, ObjectClass
from pkcs11.constants import DEFAULT as OMIT

from vault_backends.pkcs11 import points
from vault_backends.pkcs11.objects import SEAL_LABEL, WAYS, destroy, kind_of, kinds_of, read, search
from vault_backends.pkcs11.profiles import P256_OID
from vault_backends.pkcs11.token import TokenLogin
from vault_backends.uri import Ask, Pkcs11Uri, unparse
from vault_backends.vault import (
    Exists,
    Key,
    Kind,
    Misconfigured,
    NotFound,
    Refused,
    TokenState,
    Unsupported,
    Vault,
    check_label,
)

if TYPE_CHECKING:
    from vault_backends.pkcs11.sealing import Sealing


def open(uri: Pkcs11Uri, ask: Ask | None, state_dir: Path | None) -> Vault:
    return Pkcs11Vault(uri, ask, state_dir)


# Not the beginning of anything that an identity signs.
# A return code python-pkcs11 has no exception for.
_CURVE_NOT_SUPPORTED = "0x140"

_DESCRIBED = {
    "extractable": Attribute.EXTRACTABLE,
    "sensitive": Attribute.SENSITIVE,
    "always_sensitive": Attribute.ALWAYS_SENSITIVE,
    "never_extractable": Attribute.NEVER_EXTRACTABLE,
    "local": Attribute.LOCAL,
    "private": Attribute.PRIVATE,
}


class _Held(NamedTuple):
    """A key found on the token: good for one generation of the login."""

    private: Any
    public: bytes


class Pkcs11Vault:
    """One token, as its URI describes it."""

    def __init__(
        self, uri: Pkcs11Uri, ask: Ask | None = None, state_dir: Path | None = None
    ) -> None:
        self.login = TokenLogin(uri, ask, state_dir)
        self.signs = 0  # signatures asked of the token
        self.verifies = True  # its own signatures; apart, the process that asked does
        self._kinds: frozenset[Kind] | None = None
        self._found: dict[Key, _Held] = {}
        self._found_in = -1  # the generation of the login that the keys were found in
        self._pinned: dict[Key, bytes] = {}
        self._proven: set[Key] = set()  # signed with in this process, and it verified

    @property
    def logins(self) -> int:
        return self.login.logins

    # --- the six methods

    @property
    def kinds(self) -> frozenset[Kind]:
        if self._kinds is None:
            with self.login.token() as token:
                self._kinds = self.login.profile.kinds & kinds_of(token.slot.get_mechanisms())
        return self._kinds

    def generate(self, kind: Kind, label: str) -> Key:
        key, login = Key(kind, label), self.login
        with login.logged_in() as session:
            check_label(label, login.profile.longest_label)
            if kind not in self.kinds:
                raise Unsupported(f"{login.name} cannot hold {kind} keys")
            if login.uri.object not in (None, label):
                raise Misconfigured(f"the vault URI says object={login.uri.object}, not {label!r}")
            key_id = login.uri.id or points.key_id(label, login.profile.id_length)
            seen = session if login.view_is_good() else login.renew()
            self._check_free(seen, label, key_id)
            self._make(seen, kind, label, key_id)
        with login.logged_in() as session:  # again: some tokens were started anew meanwhile
            self._hold(session, key)
        return key

    def keys(self) -> Iterator[Key]:
        with self.login.logged_in() as session:
            found = self._search(session, ObjectClass.PRIVATE_KEY)
            if not found and not self.login.view_is_good():
                found = self._search(self.login.renew(), ObjectClass.PRIVATE_KEY)
            labels = [(kind_of(one), read(one, Attribute.LABEL)) for one in found]
        return iter(
            [Key(kind, label) for kind, label in labels if kind and label and label != SEAL_LABEL]
        )

    def public(self, key: Key) -> bytes:
        """The public half. At first use of a key it proves itself by a signature, which is not of
        anything: a token may hold a public object that belongs to no private one."""
        with self.login.logged_in() as session:
            held = self._hold(session, key)
            if self.verifies and key not in self._proven:
                held = self._signed(session, key, points.SELF_TEST + os.urandom(32))[0]
            return held.public

    def sign(self, key: Key, data: bytes) -> bytes:
        data = bytes(data)  # python-pkcs11 takes any other buffer for a multi-part message
        with self.login.logged_in() as session:
            return self._signed(session, key, data)[1]

    def _signed(self, session: Any, key: Key, data: bytes) -> tuple[_Held, bytes]:
        """The key and its signature, verified."""
        held = self._hold(session, key)
        message = data if key.kind is Kind.ED25519 else hashlib.sha256(data).digest()
        self._check_length(key, message)
        self.signs += 1
        try:
            answer = held.private.sign(message, mechanism=WAYS[key.kind].sign)
        except (pkcs11.GeneralError, pkcs11.DeviceMemory):
            if not self.login.profile.few_objects:
                raise
            # Full of other keys of ours: starting over makes room for this one.
            held = self._hold(self.login.renew(), key)
            answer = held.private.sign(message, mechanism=WAYS[key.kind].sign)
        signed = points.signature(key.kind, answer)
        if self.verifies and not points.verifies(key.kind, held.public, data, signed):
            self._proven.discard(key)
            raise Refused(
                f"{self.login.name} gave a signature with key {key.label!r} that does not verify",
                hint="the token or its module is faulty, or the key was exchanged",
            )
        self._proven.add(key)
        return held, signed

    def _check_length(self, key: Key, message: bytes) -> None:
        longest = self.login.profile.longest_ed25519
        if key.kind is Kind.ED25519 and longest is not None and len(message) > longest:
            raise Refused(
                f"{self.login.name} signs at most {longest} bytes with Ed25519, not {len(message)}"
            )

    def delete(self, key: Key) -> None:
        with self.login.logged_in() as session:
            # Also what is left of a pair after a power cut in the middle of making or deleting it.
            found = self._pair(session, key)
            if not found:
                raise self._no_key(key)
            for one in found:
                destroy(one)
            self._found.pop(key, None)
            self._pinned.pop(key, None)
            self._proven.discard(key)

    def close(self) -> None:
        self._found.clear()
        self.login.close()

    # --- other secrets

    def provision(self) -> str:
        return self.sealing.provision()

    @cached_property
    def sealing(self) -> "Sealing":
        from vault_backends.pkcs11.sealing import Sealing  # noqa: PLC0415  (8 MB)

        return Sealing(self.login)

    def seal(self, secret: bytes, aad: bytes) -> bytes:
        return self.sealing.seal(secret, aad)

    def unseal(self, blob: bytes, aad: bytes) -> bytes:
        return self.sealing.unseal(blob, aad)

    # --- what only tokens can do

    def state(self) -> TokenState:
        return self.login.ask_state()

    def probe(self) -> None:
        self.login.probe()

    def reopen(self) -> None:
        """Start the library again and log in. Not with a PIN that was refused."""
        with self.login.logged_in(fresh=True):
            pass

    def pin(self, key: Key, public: bytes, serial: str = "") -> None:
        """From now on `key` must have this public key, whatever the token says. With `serial` a
        token with another serial number is refused before it is given the PIN."""
        self._pinned[key] = public
        self.login.serial = serial or self.login.serial
        self._found.pop(key, None)

    def describe(self, key: Key) -> dict[str, Any]:
        with self.login.logged_in() as session:
            private = self._hold(session, key).private
            key_id = read(private, Attribute.ID) or b""
            said = {name: read(private, one) for name, one in _DESCRIBED.items()}
        state, profile = self.login.state, self.login.profile
        return {
            "vault": "pkcs11",
            "token": state.label,
            "serial": state.serial,
            "manufacturer": state.manufacturer,
            "model": state.model,
            "module": self.login.module.path,
            "profile": profile.name,
            "kind": key.kind.value,
            "label": key.label,
            "id": key_id.hex(),
            **said,
            # With tpm2-pkcs11 the attributes are rows in a database that anyone with the PIN can
            # edit.
            "attributes_prove": profile.attributes_prove,
        }

    # --- objects

    def _search(self, session: Any, what: ObjectClass, **wanted: Any) -> list[Any]:
        """What the URI lets us see of these objects."""
        uri = self.login.uri
        named = {"label": uri.object, "id": uri.id}
        seen = {name: value for name, value in named.items() if value is not None}
        return search(session, what, **(seen | wanted))

    def _hold(self, session: Any, key: Key) -> _Held:
        if self._found_in != self.login.generation:
            self._found.clear()
            self._found_in = self.login.generation
        if key not in self._found:
            self._found[key] = self._look_up(session, key)
        return self._found[key]

    def _look_up(self, session: Any, key: Key) -> _Held:
        found = self._find(session, key)
        if not found and (key in self._pinned or not self.login.view_is_good()):
            session = self.login.renew()
            self._found.clear()
            self._found_in = self.login.generation
            found = self._find(session, key)
        if not found:
            raise self._no_key(key)
        return self._checked(session, key, found)

    def _find(self, session: Any, key: Key) -> list[Any]:
        if self.login.uri.object not in (None, key.label):
            return []
        found = self._search(session, ObjectClass.PRIVATE_KEY, label=key.label)
        return [one for one in found if kind_of(one) is key.kind]

    def _checked(self, session: Any, key: Key, found: list[Any]) -> _Held:
        private = self._only(key, found)
        if read(private, Attribute.EXTRACTABLE) or read(private, Attribute.SENSITIVE) is False:
            raise Refused(
                f"key {key.label!r} can be read out of {self.login.name}",
                hint="generate a new key inside the token",
            )
        public = self._public_of(session, key, private)
        if self._pinned.setdefault(key, public) != public:
            raise Refused(
                f"{self.login.name} holds another key {key.label!r} than before",
                hint="the token or the key was exchanged; the identity cannot go on with it",
            )
        return _Held(private, public)

    def _only(self, key: Key, found: list[Any]) -> Any:
        if len(found) > 1:
            ids = [read(one, Attribute.ID) for one in found]
            uri = replace(self.login.uri, object=key.label)
            typed = "".join(f"\n  {unparse(replace(uri, id=one))}" for one in ids if one)
            raise Misconfigured(
                f"{self.login.name} has {len(found)} {key.kind} keys {key.label!r}, with ids "
                + ", ".join(one.hex() if one else "(none)" for one in ids),
                hint=f"delete the wrong one, or name one of them:{typed}",
            )
        return found[0]

    def _public_of(self, session: Any, key: Key, private: Any) -> bytes:
        values = {
            points.point(key.kind, read(one, Attribute.EC_POINT) or b"")
            for one in self._public_objects(session, key, private)
        }
        values.discard(None)
        if not values and key in self._pinned:
            return self._pinned[key]
        if len(values) != 1:
            raise Refused(
                f"{self.login.name} has {len(values) or 'no'} public keys for {key.label!r}",
                hint="delete the key and generate it again",
            )
        return values.pop() or b""

    def _public_objects(self, session: Any, key: Key, private: Any | None) -> list[Any]:
        key_id = read(private, Attribute.ID) if private is not None else None
        near = {"id": key_id} if key_id else {"label": key.label}
        found = self._search(session, ObjectClass.PUBLIC_KEY, **near)
        return [one for one in found if kind_of(one) is key.kind]

    def _check_free(self, session: Any, label: str, key_id: bytes) -> None:
        """Exists if label or id is taken. The view must be good: an empty search that is not to be
        believed would give a second key the name of the first."""
        for what in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY):
            if self._search(session, what, label=label):
                raise Exists(f"{self.login.name} has a key {label!r} already")
            if self._search(session, what, id=key_id):
                raise Exists(f"{self.login.name} has a key with id {key_id.hex()} already")

    def _make(self, session: Any, kind: Kind, label: str, key_id: bytes) -> None:
        way, profile = WAYS[kind], self.login.profile
        public = {Attribute.VERIFY: True} | {Attribute[n]: OMIT for n in profile.omit_public}
        private = {
            Attribute.SIGN: True,
            Attribute.SENSITIVE: True,
            Attribute.EXTRACTABLE: False,
        } | {Attribute[n]: OMIT for n in profile.omit_private}
        curves = profile.ed25519_curves if kind is Kind.ED25519 else (P256_OID,)
        for curve in curves:
            try:
                session.create_domain_parameters(
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
            self.login.drop()

    def _pair(self, session: Any, key: Key) -> list[Any]:
        """What there is of `key`, the private part first: without it the rest is of no use to
        anyone."""
        private = self._find(session, key)
        if private:
            self._only(key, private)
        return private + self._public_objects(session, key, private[0] if private else None)

    def _no_key(self, key: Key) -> NotFound:
        return NotFound(
            f"{self.login.name} has no {key.kind} key {key.label!r}",
            hint="was it deleted, or is this another token than the one it was made in?",
        )


def _is_about_curve(error: pkcs11.PKCS11Error) -> bool:
    return _CURVE_NOT_SUPPORTED in str(error) or isinstance(
        error, pkcs11.DomainParamsInvalid | pkcs11.AttributeValueInvalid
    )
