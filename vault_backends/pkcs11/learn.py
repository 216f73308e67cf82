"""What a token is really like: a row for profiles.py, found out by trying.

Every key made here is a throwaway with a label of its own, and is destroyed at the end, whatever
happens. No wrong PIN is tried and nothing is unplugged, so a few fields stay as the row has them."""

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pkcs11
from pkcs11 import Attribute, Mechanism, ObjectClass
from pkcs11.constants import DEFAULT as OMIT

from vault_backends.pkcs11 import points
from vault_backends.pkcs11.objects import WAYS, destroy, read, search
from vault_backends.pkcs11.profiles import (
    ED25519_NAME,
    ED25519_OID,
    GENERIC,
    P256_OID,
    ROWS,
    Profile,
)
from vault_backends.pkcs11.sealing import SUITES, Suite
from vault_backends.pkcs11.survey import answer_with, in_child, private_output
from vault_backends.pkcs11.token import TokenLogin
from vault_backends.uri import Ask, Pkcs11Uri, obtain, parse, unparse
from vault_backends.vault import DeviceGone, Kind, Locked, VaultError

PREFIX = "ockam-edge-probe"
NOT_TRIED = ("name", "makers", "describes", "modules", "tried", "late_token", "unknown_user_error")
"""Fields of a row that no trial finds out."""
_OMITS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    ((), ()),
    (("ENCRYPT", "WRAP", "VERIFY"), ("DECRYPT", "UNWRAP", "DERIVE")),
)
_IDS, _LABELS = (20, 2, 1), (255, 64, 40, 32)
_MANY = 4  # keys that more than one signs with; a small TPM has room for two or three


@dataclass
class Learnt:
    """What was found out. `row` has the fields that were; the rest is told in `facts`."""

    profile: Profile
    """The built-in row."""
    row: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)
    skipped: tuple[str, ...] = ()
    """Fields that were not tried, beside NOT_TRIED: on a small device it would harm."""

    @property
    def found(self) -> Profile:
        return replace(self.profile, **self.row)

    def differences(self) -> dict[str, tuple[Any, Any]]:
        """Field -> (the built-in row, what was found)."""
        pairs = {name: (getattr(self.profile, name), value) for name, value in self.row.items()}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def learn(
    uri: Pkcs11Uri, ask: Ask | None, state_dir: Path | None, said: Callable[[str], None]
) -> Learnt:
    """Try the token of `uri` with throwaway keys. `said` is told what is being tried."""
    answers: dict[str, str] = {}

    def once(prompt: str) -> str | None:
        if "pin" not in answers and ask is not None and (answer := ask(prompt)):
            answers["pin"] = answer
        return answers.get("pin")

    trial = _Trial(TokenLogin(uri, once, state_dir), once, said)
    try:
        return trial.run()
    finally:
        trial.close()


class _Trial:
    def __init__(self, login: TokenLogin, ask: Ask, said: Callable[[str], None]) -> None:
        self.login, self.ask, self.said = login, ask, said
        self.label = f"{PREFIX}-{os.urandom(4).hex()}"
        self.count = 0

    def run(self) -> Learnt:
        with self.login.logged_in():
            self.learnt = Learnt(self._named())
        row, facts = self.learnt.row, self.learnt.facts
        with self.login.token() as token:
            mechanisms = token.slot.get_mechanisms()
        facts["mechanisms"] = sorted(str(getattr(one, "name", one)) for one in mechanisms)
        self._kinds(row, facts)
        if not row["kinds"]:
            return self.learnt
        if self.learnt.profile.few_objects:
            self.learnt.skipped += ("one_generation", "few_objects")
        else:
            self._note(row, "one_generation", self._one_generation)
            self._note(row, "few_objects", self._few_objects)
        for name, trial in (
            ("id_length", self._id_length),
            ("longest_label", self._longest_label),
            ("attributes_prove", self._attributes_prove),
            ("stale_view", self._stale_view),
        ):
            self._note(row, name, trial)
        for name, fact in (
            ("point", self._point),
            ("ECDSA_SHA256", self._ecdsa_sha256),
            ("session_objects", self._session_objects),
            ("duplicate_ids", self._duplicate_ids),
            ("attributes", self._attributes),
        ):
            self._note(facts, name, fact)
        self._suites(row, facts)
        return self.learnt

    def _named(self) -> Profile:
        """The built-in row; for a family that has none, an empty one with its name."""
        if self.login.profile is not GENERIC:
            return self.login.profile
        maker = self.login.module.library.manufacturer_id.lower()
        path = self.login.module.path
        name = Path(path).name.removeprefix("lib").partition(".so")[0]
        return replace(GENERIC, name=name, makers=(maker,), modules=(path,))

    def close(self) -> None:
        """Nothing of ours stays. Raises VaultError where it could not be made sure of."""
        try:
            if self.count:
                self._sweep()
        finally:
            self.login.close()

    def _sweep(self) -> None:
        with self.login.logged_in(fresh=True) as session:
            for what in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY, ObjectClass.SECRET_KEY):
                for one in search(session, what):
                    if (read(one, Attribute.LABEL) or "").startswith(self.label):
                        destroy(one)

    # --- one trial

    def _note(self, into: dict[str, Any], name: str, trial: Callable[[], Any]) -> None:
        """The answer of one trial, which starts with an empty token and leaves none of its keys."""
        self.said(name)
        try:
            value = trial()
        except (VaultError, pkcs11.PKCS11Error) as error:
            if isinstance(error, Locked):
                raise
            self.learnt.troubles.append(f"{name}: {type(error).__name__}: {error}")
            self.login.drop()
            value = None
        self._sweep()
        if value is not None:
            into[name] = value

    def _works(self, trial: Callable[[], Any]) -> bool:
        """Whether a step goes through. Starts the library again where it did not."""
        try:
            with self.login.logged_in():
                trial()
        except (VaultError, pkcs11.PKCS11Error) as error:
            if isinstance(error, Locked):
                raise
            self.login.drop()
            return False
        return True

    def _make(
        self,
        kind: Kind,
        *,
        key_id: bytes | None = None,
        label: str | None = None,
        store: bool = True,
        row: dict[str, Any] | None = None,
        curve: bytes | None = None,
    ) -> str:
        """A new pair, by the row as it is known by now; its label."""
        known = self.learnt.row if row is None else row
        self.count += 1
        name = label or f"{self.label}-{self.count}"
        way = WAYS[kind]
        curves = known.get("ed25519_curves") or (ED25519_NAME,)
        parameters = {
            Attribute.EC_PARAMS: curve or (curves[0] if kind is Kind.ED25519 else P256_OID)
        }
        public: dict[Attribute, Any] = {Attribute.VERIFY: True}
        public |= {Attribute[n]: OMIT for n in known["omit_public"]}
        private: dict[Attribute, Any] = {Attribute.SIGN: True, Attribute.SENSITIVE: True}
        private |= {Attribute.EXTRACTABLE: False}
        private |= {Attribute[n]: OMIT for n in known["omit_private"]}
        ours = key_id or os.urandom(known.get("id_length", self.learnt.profile.id_length))
        with self.login.logged_in() as session:
            session.create_domain_parameters(
                way.key_type, parameters, local=True
            ).generate_keypair(
                id=ours, label=name, store=store, mechanism=way.generate, capabilities=0,
                public_template=public | parameters, private_template=private,
            )  # fmt: skip
            if known.get("one_generation", self.learnt.profile.one_generation) and store:
                self.login.drop()
        return name

    def _found(self, what: ObjectClass, name: str) -> Any:
        with self.login.logged_in() as session:
            found = [one for one in search(session, what) if read(one, Attribute.LABEL) == name]
        if not found:
            raise DeviceGone(f"the throwaway key {name} is not to be seen")
        return found[0]

    def _signs(self, kind: Kind, name: str) -> bool:
        """Whether the key signs, by the software's judgement."""
        data = os.urandom(32)
        with self.login.logged_in():
            public = points.point(
                kind, self._found(ObjectClass.PUBLIC_KEY, name)[Attribute.EC_POINT]
            )
            message = data if kind is Kind.ED25519 else sha256(data).digest()
            private = self._found(ObjectClass.PRIVATE_KEY, name)
            signed = points.signature(kind, private.sign(message, mechanism=WAYS[kind].sign))
        return public is not None and points.verifies(kind, public, data, signed)

    # --- the questions

    def _kinds(self, row: dict[str, Any], facts: dict[str, Any]) -> None:
        kinds: set[Kind] = set()
        row |= {"omit_public": (), "omit_private": ()}
        profile = self.learnt.profile
        # A template that it trips over fills a small device for good: there, only the row's own.
        others = () if profile.few_objects else _OMITS
        for public, private in dict.fromkeys(
            ((profile.omit_public, profile.omit_private), *others)
        ):
            self.said("p256")
            known = {"omit_public": public, "omit_private": private}
            if self._signing(Kind.P256, known):
                kinds.add(Kind.P256)
                row |= known
                break
        self.said("ed25519")
        curves = tuple(
            curve
            for curve in (ED25519_NAME, ED25519_OID)
            if self._signing(Kind.ED25519, row, curve=curve)
        )
        if curves:
            kinds.add(Kind.ED25519)
            row["ed25519_curves"] = curves
        row["kinds"] = frozenset(kinds)
        facts["kinds"] = sorted(kind.value for kind in kinds)
        self.kind = Kind.P256 if Kind.P256 in kinds else Kind.ED25519

    def _signing(self, kind: Kind, row: dict[str, Any], curve: bytes | None = None) -> bool:
        name = ""

        def trial() -> None:
            nonlocal name
            name = self._make(kind, row=row, curve=curve)

        worked = self._works(trial)
        signs = False
        if worked:
            with suppress(VaultError, pkcs11.PKCS11Error):
                signs = self._signs(kind, name)
        self._sweep()
        return signs

    def _id_length(self) -> int:
        for length in _IDS:
            key_id = os.urandom(length)
            names: list[str] = []
            make = partial(self._make, self.kind, key_id=key_id)
            if self._works(lambda: names.append(make())) and key_id == read(  # noqa: B023
                self._found(ObjectClass.PRIVATE_KEY, names[0]), Attribute.ID
            ):
                return length
            self._sweep()
        return 0

    def _longest_label(self) -> int:
        for length in _LABELS:
            label = f"{self.label}-".ljust(length, "x")
            if self._works(partial(self._make, self.kind, label=label)):
                with suppress(DeviceGone):
                    self._found(ObjectClass.PRIVATE_KEY, label)
                    return length
            self._sweep()
        return 0

    def _one_generation(self) -> bool:
        row = self.learnt.row | {"one_generation": False}
        self.login.drop()
        return not self._works(lambda: [self._make(self.kind, row=row) for _ in range(3)])

    def _few_objects(self) -> bool:
        names = [self._make(self.kind) for _ in range(_MANY)]
        self.login.drop()
        return not self._works(lambda: [self._signs(self.kind, name) for name in names])

    def _attributes_prove(self) -> bool:
        private = self._found(ObjectClass.PRIVATE_KEY, self._make(self.kind))

        def weaken() -> None:
            private[Attribute.EXTRACTABLE] = True

        return not self._works(weaken)

    def _stale_view(self) -> bool:
        """Another process makes a key: do we see it without starting again?"""
        label = f"{self.label}-other"
        with self.login.logged_in() as session:
            search(session, ObjectClass.PRIVATE_KEY)
        pin = obtain(self.login.uri.pin_source, self.ask, f"the PIN of {self.login.name}")
        uri = unparse(replace(self.login.uri, pin_source="ask"))
        told = in_child(__name__, [], stdin=json.dumps({"uri": uri, "pin": pin, "label": label}))
        if "error" in told:
            raise VaultError(f"a second process could not make a key: {told['error']}")
        with self.login.logged_in() as session:
            seen = search(session, ObjectClass.PRIVATE_KEY, label=label)
        with self.login.logged_in(fresh=True):
            self._found(ObjectClass.PRIVATE_KEY, label)
        return not seen

    def _point(self) -> str:
        public = self._found(ObjectClass.PUBLIC_KEY, self._make(self.kind))
        value = read(public, Attribute.EC_POINT) or b""
        bare = points.point(self.kind, value) == value
        return "raw" if bare else "der" if points.point(self.kind, value) else value.hex()

    def _ecdsa_sha256(self) -> bool | None:
        if self.kind is not Kind.P256:
            return None
        name, data = self._make(Kind.P256), os.urandom(40)
        signed: list[bytes] = []
        private = self._found(ObjectClass.PRIVATE_KEY, name)
        public = points.point(
            self.kind, read(self._found(ObjectClass.PUBLIC_KEY, name), Attribute.EC_POINT) or b""
        )
        if not self._works(
            lambda: signed.append(private.sign(data, mechanism=Mechanism.ECDSA_SHA256))
        ):
            return False
        return points.verifies(
            self.kind, public or b"", data, points.signature(self.kind, signed[0])
        )

    def _session_objects(self) -> bool:
        return self._works(lambda: self._make(self.kind, store=False))

    def _duplicate_ids(self) -> bool:
        key_id = os.urandom(self.learnt.row.get("id_length") or 2)
        self._make(self.kind, key_id=key_id)
        return self._works(lambda: self._make(self.kind, key_id=key_id))

    def _attributes(self) -> dict[str, Any]:
        private = self._found(ObjectClass.PRIVATE_KEY, self._make(self.kind))
        names = ("SENSITIVE", "EXTRACTABLE", "ALWAYS_SENSITIVE", "NEVER_EXTRACTABLE", "LOCAL")
        return {name: read(private, Attribute[name]) for name in names}

    def _suites(self, row: dict[str, Any], facts: dict[str, Any]) -> None:
        """The seal suites that work, and whether a key to derive with needs DECRYPT too."""
        working = []
        for suite in SUITES:
            self.said(suite.name)
            for decrypt in (False, True) if suite.name == "ecdh-p256" else (None,):
                known = row if decrypt is None else row | {"derive_is_decrypt": decrypt}
                if self._seals(suite, replace(self.learnt.profile, **known)):
                    working.append(suite.name)
                    row |= {} if decrypt is None else {"derive_is_decrypt": decrypt}
                    break
        facts["seal_suites"] = working

    def _seals(self, suite: Suite, profile: Profile) -> bool:
        key_id, name = os.urandom(profile.id_length or 2), f"{self.label}-{suite.name}"
        opened: list[bool] = []

        def trial() -> None:
            with self.login.logged_in() as session:
                suite.generate(session, key_id, profile, name)
            if profile.one_generation:
                self.login.drop()
            public = suite.public(self._found(ObjectClass.PUBLIC_KEY, name)) or b""
            header, shared = suite.encapsulate(public)
            private = self._found(ObjectClass.PRIVATE_KEY, name)
            with self.login.logged_in():
                opened.append(suite.decapsulate(private, header) == shared)

        with suppress(ValueError):  # the token shows no public key to seal for
            self._works(trial)
        self._sweep()
        return opened == [True]


def row_text(row: Profile) -> str:
    """The row as one pastes it into profiles.py: what differs from the standard. The paths of a row
    that is there already are left as they are."""
    if any(one.name == row.name for one in ROWS):
        row = replace(row, modules=())
    names = {ED25519_NAME: "ED25519_NAME", ED25519_OID: "ED25519_OID"}

    def text(value: Any) -> str:
        if isinstance(value, frozenset):
            return "frozenset({" + ", ".join(f"Kind.{one.name}" for one in sorted(value)) + "})"
        if isinstance(value, tuple):
            inner = [
                names.get(one, repr(one)) if isinstance(one, bytes) else repr(one) for one in value
            ]
            return "(" + ", ".join(inner) + ("," if len(inner) == 1 else "") + ")"
        return repr(value)

    lines = [
        f"    {one.name}={text(getattr(row, one.name))},"
        for one in fields(row)
        if one.name in ("name", "makers") or getattr(row, one.name) != getattr(GENERIC, one.name)
    ]
    return "Profile(\n" + "\n".join(lines) + "\n)"


def child() -> None:
    """Make one key in a process of its own. Told by standard input, since a PIN is part of it."""
    from vault_backends.pkcs11.vault import Pkcs11Vault  # noqa: PLC0415

    out, told = private_output(), json.load(sys.stdin)
    uri = parse(told["uri"])
    assert isinstance(uri, Pkcs11Uri)
    try:
        vault = Pkcs11Vault(uri, lambda _: str(told["pin"]))
        try:
            vault.generate(min(vault.kinds, key=lambda kind: kind is not Kind.P256), told["label"])
        finally:
            vault.close()
    except VaultError as error:
        return answer_with({"error": str(error)}, out)
    return answer_with({}, out)
