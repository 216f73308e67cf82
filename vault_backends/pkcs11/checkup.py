"""Is this token fit for an identity: a list of findings, each with what to do about it.

Signs texts that are no message of any protocol, and changes nothing in the token."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pkcs11 import TokenFlag

from vault_backends.pkcs11 import admin
from vault_backends.pkcs11.raw import limits
from vault_backends.pkcs11.survey import pin_words
from vault_backends.pkcs11.vault import Pkcs11Vault
from vault_backends.vault import Key, Kind, NotFound, Seals, VaultError

OK, WARNING, FAIL = "ok", "warning", "fail"
SLOW = 2.0
"""Seconds for one signature, above which renewing an attestation is felt."""
_CREATE = "make one: ockam-edge hsm create-key --label LABEL"


@dataclass(frozen=True)
class Finding:
    check: str
    result: str
    said: str
    hint: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)


def checkup(vault: Pkcs11Vault, *, count: int) -> Iterator[Finding]:
    """One finding after the other; the first failure that makes the rest pointless ends it."""
    try:
        yield from _without_pin(vault)
        yield from _with_pin(vault, count)
    except VaultError as error:
        yield Finding("token", FAIL, str(error), error.hint)


def _without_pin(vault: Pkcs11Vault) -> Iterator[Finding]:
    login = vault.login
    with login.token() as token:
        flags, slot = token.flags, token.slot.slot_id
        sizes = limits(login.module.library, slot)
        state = login.state
    yield Finding(
        "token",
        OK,
        f"{login.name}, {state.model.strip()}, as {login.profile.name}",
        numbers={"serial": state.serial, "profile": login.profile.name},
    )
    yield _pin(flags)
    yield _sessions(sizes.sessions, sizes.max_sessions)
    yield _tried("random", partial(_random, vault))


def _pin(flags: int) -> Finding:
    words = pin_words(flags)
    text = ", ".join(words) or "no wrong PIN is counted"
    numbers = {"flags": list(words)}
    if flags & TokenFlag.USER_PIN_LOCKED:
        return Finding("pin", FAIL, text, "reset it with the SO PIN: the vendor's tool", numbers)
    if not flags & TokenFlag.USER_PIN_INITIALIZED and flags & TokenFlag.LOGIN_REQUIRED:
        hint = "finish it: ockam-edge hsm init with the same label and SO PIN"
        return Finding("pin", FAIL, text, hint, numbers)
    if flags & TokenFlag.USER_PIN_FINAL_TRY:
        hint = "log in once with the vendor's tool: this program does not use up the last try"
        return Finding("pin", FAIL, text, hint, numbers)
    if flags & TokenFlag.USER_PIN_COUNT_LOW:
        return Finding("pin", WARNING, text, "who tried? A login resets the count", numbers)
    if flags & TokenFlag.USER_PIN_TO_BE_CHANGED:
        return Finding("pin", WARNING, text, "change it: ockam-edge hsm change-pin", numbers)
    if not flags & TokenFlag.LOGIN_REQUIRED:
        return Finding("pin", WARNING, text, "whoever reaches the token may use its keys", numbers)
    return Finding("pin", OK, text, numbers=numbers)


def _sessions(used: int | None, most: int | None) -> Finding:
    numbers = {"used": used, "max": most}
    text = f"{'?' if used is None else used} in use, {most or 'no limit'}"
    if used is not None and most is not None and most - used < 2:
        return Finding("sessions", FAIL, text, "end the programs that hold sessions", numbers)
    return Finding("sessions", OK, text.replace(f", {most}", f" of {most}"), numbers=numbers)


def _random(vault: Pkcs11Vault) -> Finding:
    """Two draws that differ; that the device answers at all without a PIN is the point."""
    vault.login.probe()
    with vault.login.token() as token:
        if not token.flags & TokenFlag.RNG:
            return Finding("random", OK, "the token has no generator; keys need none of ours")
        session = token.open()
        try:
            first, second = session.generate_random(256), session.generate_random(256)
        finally:
            session.close()
    if first == second or len(first) != 32:
        return Finding("random", FAIL, "the generator repeats itself", "do not use this token")
    return Finding("random", OK, "64 bytes, drawn without a PIN")


def _with_pin(vault: Pkcs11Vault, count: int) -> Iterator[Finding]:
    vault.reopen()
    yield Finding("login", OK, "the PIN is right, one login")
    records = [one for one in admin.keys(vault.login) if one.usable]
    if not records:
        yield Finding("keys", WARNING, "there is no key for an identity here", _CREATE)
    for one in records:
        if vault.login.profile.one_generation:
            vault.reopen()  # a TPM without resource manager has room for few loaded keys
        key = Key(Kind(one.kind), one.label)
        yield _tried(f"sign {one.label}", partial(_signing, vault, key, count))
    if isinstance(vault, Seals):
        yield _tried("seal", partial(_sealing, vault))


def _signing(vault: Pkcs11Vault, key: Key, count: int) -> Finding:
    """Each signature is verified in software, by the vault; VaultError where one is bad."""
    vault.public(key)
    times = []
    for number in range(count):
        data = b"ockam-edge hsm test, no message\0" + bytes([number % 256]) + os.urandom(32)
        start = time.perf_counter()
        vault.sign(key, data)
        times.append(time.perf_counter() - start)
    times.sort()
    p50, p99 = times[len(times) // 2], times[min(len(times) - 1, len(times) * 99 // 100)]
    numbers = {"count": count, "p50_ms": _ms(p50), "p99_ms": _ms(p99)}
    text = f"{count} {key.kind} signatures verified, p50 {_ms(p50)} ms, p99 {_ms(p99)} ms"
    said = vault.describe(key)
    if said["extractable"] or said["sensitive"] is False:
        return Finding(f"sign {key.label}", FAIL, "the key can be read out", _CREATE, numbers)
    if p99 > SLOW:
        hint = "an identity signs rarely and can live with it; an authority cannot"
        return Finding(f"sign {key.label}", WARNING, text, hint, numbers)
    if said["local"] is False:
        text += "; the token does not mark the key as made in it"
        hint = "was it imported, somebody may have a copy (NSS marks none of its keys)"
        return Finding(f"sign {key.label}", WARNING, text, hint, numbers)
    return Finding(f"sign {key.label}", OK, text, numbers=numbers)


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 2)


def _sealing(vault: Seals) -> Finding:
    secret = os.urandom(32)
    try:
        blob = vault.seal(secret, b"hsm test")
    except NotFound:
        return Finding("seal", OK, "no seal key; ockam-edge vault seal makes one")
    if vault.unseal(blob, b"hsm test") != secret:
        return Finding("seal", FAIL, "what was sealed came back as something else")
    try:
        vault.unseal(blob, b"something else")
    except VaultError:
        return Finding("seal", OK, "sealed and opened; refused for another purpose")
    return Finding("seal", FAIL, "a sealed secret opened for another purpose than its own")


def _tried(check: str, work: Callable[[], Finding]) -> Finding:
    try:
        return work()
    except VaultError as error:
        return Finding(check, FAIL, str(error), error.hint)
