"""Making a token ready: its label, its SO PIN, its user PIN. Never over one that is in use.

    C_InitToken, log in as SO, C_InitPIN, log in as user

A power cut in between leaves a token that has our label and no user PIN; the same command again
finds it by that and goes on with the SO PIN, and with nothing else."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pkcs11
from pkcs11 import TokenFlag

from vault_backends.pkcs11 import pinfile
from vault_backends.pkcs11.admin import exact
from vault_backends.pkcs11.module import Module, module_at
from vault_backends.pkcs11.pin import Pin, WrongPin
from vault_backends.pkcs11.profiles import profile_for
from vault_backends.pkcs11.raw import Limits, init_token, limits
from vault_backends.pkcs11.token import TokenLogin
from vault_backends.pkcs11.which import named, state_of
from vault_backends.uri import ASK, Ask, Pkcs11Uri, obtain, unparse
from vault_backends.vault import (
    Exists,
    Locked,
    Misconfigured,
    NotFound,
    TokenState,
    Unsupported,
    VaultError,
)

NOTES = {
    "softhsm": ("SoftHSM keeps keys in files that open with the PIN: for tests, not for secrets.",),
    "tpm2-pkcs11": (
        "The keys are in the store of tpm2-pkcs11 ($TPM2_PKCS11_STORE, /etc/tpm2_pkcs11 or "
        "~/.tpm2_pkcs11), sealed by this TPM: it must survive updates; back it up.",
        "The TPM counts wrong PINs of all its users together and then locks everybody out. Allow "
        "more tries than its default, e.g. tpm2_dictionarylockout --setup-parameters "
        "--max-tries=32 --recovery-time=600 --lockout-recovery-time=600, and set a lockout "
        "password: tpm2_changeauth -c lockout file:/path.",
    ),
}
_YUBIHSM = (
    "keep the factory key 1 only until you have made your own: yubihsm-shell "
    "-a put-authentication-key -i 2 -l edge -d 1 -c "
    "sign-eddsa,sign-ecdsa,generate-asymmetric-key,delete-asymmetric-key,get-pseudo-random "
    "--new-password -; the PIN is then 0002 and the password; then delete key 1"
)


class Sources(NamedTuple):
    """Where the PINs come from. A `file:` that is not there is made, where `generate` says so."""

    so_pin: str
    pin: str
    generate: bool
    ask_new: Callable[[str], str | None]
    """Asks a person for a PIN that is not in use yet, twice."""


class Initialised(NamedTuple):
    uri: Pkcs11Uri
    state: TokenState
    fresh: bool
    """False: it was there already, and opened with its PIN."""
    notes: tuple[str, ...]


class _Place(NamedTuple):
    slot_id: int
    flags: int
    state: TokenState
    limits: Limits


def initialise(
    uri: Pkcs11Uri, label: str, sources: Sources, ask: Ask | None, state_dir: Path | None
) -> Initialised:
    """Give `label` and PINs to the one uninitialised token that `uri` may mean. Exists where there
    is none left, or `uri` means one in use; Misconfigured where there are several."""
    where = replace(uri, token=label, object=None, id=None, slot_id=None, pin_source=sources.pin)
    if uri.token not in (None, label):
        raise Misconfigured(f"the URI says token={uri.token}, and --label says {label!r}")
    module = module_at(uri.module_path, uri.parameters)
    with _held(module):
        profile = profile_for(module.library.manufacturer_id, module.library.library_description)
        if profile.name == "yubihsm":
            raise Unsupported("a YubiHSM 2 is not initialised through PKCS#11", hint=_YUBIHSM)
        places = _places(module, uri)
        ours = [one for one in places if _initialised(one) and one.state.label == label]
        if not ours:
            place = _free(module, places, uri, label)
            pins = _new_pins(place, sources)
            init_token(module.library, place.slot_id, pins.so, label)
            fresh = True
        else:
            place = _one(ours, module, label)
            where = replace(where, serial=place.state.serial or None)
            fresh = not place.flags & TokenFlag.USER_PIN_INITIALIZED
            if fresh:
                pins = _pins_again(place, sources, ask)
            else:
                _check_pin_is_there(place, sources.pin)
    if fresh:
        _set_user_pin(module, where, pins, sources.so_pin, state_dir)
    state = _opens(where, (lambda _: pins.user) if fresh else ask, state_dir)
    return Initialised(exact(where, state), state, fresh, NOTES.get(profile.name, ()))


@contextmanager
def _held(module: Module) -> Iterator[None]:
    """The module up and ours; stopped at the end, since an initialisation numbers the slots anew,
    and a small TPM has room for few loaded objects."""
    with module.held():
        try:
            module.start()
            yield
        except pkcs11.PKCS11Error as error:
            said = f"{type(error).__name__}: {error}".rstrip(": ")
            raise VaultError(
                f"the token in {module.path} refused this: {said}",
                hint="nothing that was in use was changed; the same command goes on from there",
            ) from error
        finally:
            module.stop()


# --- which token


def _places(module: Module, uri: Pkcs11Uri) -> list[_Place]:
    found = []
    for slot in module.library.get_slots(token_present=True):
        with suppress(pkcs11.PKCS11Error):  # a slot that does not answer counts as empty
            token = slot.get_token()
            sizes = limits(module.library, slot.slot_id)
            found.append(_Place(slot.slot_id, token.flags, state_of(token), sizes))
    pairs = ("serial", "manufacturer", "model")
    return [
        one
        for one in found
        if uri.slot_id in (None, one.slot_id)
        and all(getattr(uri, name) in (None, getattr(one.state, name)) for name in pairs)
    ]


def _initialised(place: _Place) -> bool:
    return bool(place.flags & TokenFlag.TOKEN_INITIALIZED)


def _one(ours: list[_Place], module: Module, label: str) -> _Place:
    if len(ours) > 1:
        uris = [
            replace(Pkcs11Uri(module.path), token=label, serial=one.state.serial or None)
            for one in ours
        ]
        raise Misconfigured(
            f"{len(ours)} tokens are labelled {label!r}: {_listed(uris)}",
            hint="say which one by its URI",
        )
    return ours[0]


def _free(module: Module, places: list[_Place], uri: Pkcs11Uri, label: str) -> _Place:
    free = [one for one in places if not _initialised(one)]
    if len(free) == 1:
        return free[0]
    if free:
        uris = [replace(uri, token=None, slot_id=one.slot_id, pin_source=ASK) for one in free]
        raise Misconfigured(
            f"{len(free)} tokens in {module.path} are not initialised: {_listed(uris)}",
            hint="say which one by its URI",
        )
    if places:
        used = ", ".join(named(one.state) for one in places)
        raise Exists(
            f"in {module.path} there is {used}, initialised already: that is never done again",
            hint="use it as it is (ockam-edge hsm create-key), or empty it with its vendor's tool",
        )
    raise NotFound(
        f"there is no token in {module.path} to be given the label {label!r}",
        hint="plug it in; ockam-edge hsm list shows what there is",
    )


def _listed(uris: list[Pkcs11Uri]) -> str:
    return "".join(f"\n    '{unparse(one)}'" for one in uris)


# --- the PINs


def _check_pin_is_there(place: _Place, source: str) -> None:
    if source.startswith("file:") and not os.path.lexists(source.removeprefix("file:")):
        raise Exists(
            f"{named(place.state)} is initialised already, and its PIN is not in "
            + source.removeprefix("file:"),
            hint="name the file that has its PIN, or choose another label; a token is never "
            "initialised twice",
        )


class _Pins(NamedTuple):
    so: str
    user: str


def _new_pins(place: _Place, sources: Sources) -> _Pins:
    """Both PINs exist, fit the token and are safe on the disk. The token is not touched before."""
    return _Pins(
        _new(sources.so_pin, "a new SO PIN for the token", place.limits, sources),
        _new(sources.pin, "a new PIN for the token", place.limits, sources),
    )


def _new(source: str, prompt: str, sizes: Limits, sources: Sources) -> str:
    if sources.generate and source.startswith("file:"):
        path = Path(source.removeprefix("file:"))
        if not os.path.lexists(path):
            pinfile.make(path, pinfile.random_pin(sizes.shortest_pin, sizes.longest_pin))
    pin = obtain(source, sources.ask_new, prompt)
    shortest, longest = sizes.shortest_pin, sizes.longest_pin or 255
    if not shortest <= len(pin.encode()) <= longest:
        raise Misconfigured(
            f"the token takes PINs of {shortest} to {longest} bytes; {prompt} has another length",
            hint="nothing was done; give a PIN of that length",
        )
    return pin


def _pins_again(place: _Place, sources: Sources, ask: Ask | None) -> _Pins:
    """The PINs of a token whose initialisation broke off."""
    name = named(place.state)
    if place.flags & (TokenFlag.SO_PIN_LOCKED | TokenFlag.SO_PIN_FINAL_TRY):
        raise Locked(
            f"{name} has no user PIN, and its SO PIN is locked or has one try left",
            hint="finish the initialisation with the vendor's tool",
        )
    so_pin = obtain(sources.so_pin, ask, f"the SO PIN of {name}")
    return _Pins(so_pin, _new(sources.pin, f"a new PIN for {name}", place.limits, sources))


def _set_user_pin(
    module: Module, where: Pkcs11Uri, pins: _Pins, so_source: str, state_dir: Path | None
) -> None:
    with _held(module):
        found = [one for one in _places(module, where) if one.state.label == where.token]
        place = _one([one for one in found if _initialised(one)], module, where.token or "")
        slots = module.library.get_slots(token_present=True)
        token = next(one for one in slots if one.slot_id == place.slot_id).get_token()
        # The SO PIN has its marker too: it locks as well, and nothing can unlock it.
        officer = place.state._replace(label=f"{place.state.label} (SO)")
        pin = Pin(replace(where, pin_source=so_source), lambda _: pins.so, state_dir)
        with pin.attempt(officer, f"{named(place.state)}, as security officer,") as so_pin:
            try:
                session = token.open(rw=True, so_pin=so_pin.reveal())
            except (pkcs11.PinIncorrect, pkcs11.PinInvalid, pkcs11.PinLenRange) as error:
                raise WrongPin(type(error).__name__) from None
        session.init_pin(pins.user)


def _opens(where: Pkcs11Uri, ask: Ask | None, state_dir: Path | None) -> TokenState:
    """The proof: one login with the user PIN."""
    login = TokenLogin(where, ask, state_dir)
    try:
        with login.logged_in():
            return login.state
    finally:
        login.close()
