"""Which modules and tokens there are, found without a PIN.

A module is foreign code that may crash, hang or print. Each is loaded in a process of its own, which
answers in JSON; what happens to that process is what is said of the module."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vault_backends.pkcs11.paths import check_path, registered_modules
from vault_backends.pkcs11.profiles import GENERIC, ROWS
from vault_backends.uri import Pkcs11Uri, unparse
from vault_backends.vault import VaultError

PATIENCE = 20.0
"""Seconds for a module to start and name its tokens."""
_ROOT = str(Path(__file__).parents[2])
_CHILD = "import sys; sys.path.insert(0, sys.argv.pop(1)); from {0} import child; child()"


@dataclass(frozen=True)
class Slot:
    """A token as it shows itself without a PIN, initialised or not."""

    slot_id: int
    initialised: bool
    label: str
    serial: str
    manufacturer: str
    model: str
    pin: tuple[str, ...]
    """The PIN flags in words; empty where there is nothing to say."""
    claims: tuple[str, ...]
    """What the mechanism list says it can do; `hsm probe` finds out what is true."""
    sessions: int | None = None
    max_sessions: int | None = None


@dataclass(frozen=True)
class Found:
    """A module, with the reason where it did not load, and its tokens where it did."""

    path: str
    profile: str = ""
    maker: str = ""
    version: str = ""
    error: str = ""
    slots: tuple[Slot, ...] = ()
    parameters: str | None = field(default=None, repr=False)

    def uri(self, slot: Slot) -> Pkcs11Uri:
        """As short as names this token and no other of the module."""
        uri = Pkcs11Uri(self.path, parameters=self.parameters)
        if not slot.initialised:
            return replace(uri, slot_id=slot.slot_id)
        uri = replace(uri, token=slot.label or None)
        if sum(matches(uri, one) for one in self.slots) > 1 or not slot.label:
            uri = replace(uri, serial=slot.serial or None)
        if sum(matches(uri, one) for one in self.slots) > 1:
            uri = replace(uri, slot_id=slot.slot_id)
        return uri


def matches(uri: Pkcs11Uri, slot: Slot) -> bool:
    """Whether `uri` may mean this slot; what it does not say matches anything."""
    pairs = (
        (uri.token, slot.label),
        (uri.serial, slot.serial),
        (uri.manufacturer, slot.manufacturer),
        (uri.model, slot.model),
        (uri.slot_id, slot.slot_id),
    )
    return all(wanted is None or wanted == has for wanted, has in pairs)


def candidates(found: Iterable[Found]) -> list[tuple[Found, Slot]]:
    """The initialised tokens."""
    return [(module, slot) for module in found for slot in module.slots if slot.initialised]


def listed(pairs: Iterable[tuple[Found, Slot]]) -> str:
    """The URIs to choose from, one a line, ready for a shell."""
    return "".join(f"\n    '{unparse(module.uri(slot))}'" for module, slot in pairs)


def usual_modules() -> list[str]:
    """The libraries that are there: the usual places of the rows, and what p11-kit is told of."""
    paths: dict[str, str] = {}
    for _, path in registered_modules():
        paths.setdefault(os.path.realpath(path), path)
    return list(paths.values())


# --- asking them


def survey(modules: Iterable[tuple[str, str | None]] | None = None) -> list[Found]:
    """What is behind these modules (path, x-parameters), by default all the usual ones."""
    asked = [(path, None) for path in usual_modules()] if modules is None else list(modules)
    with ThreadPoolExecutor(max_workers=4) as pool:
        return list(pool.map(_examine, asked))


def _examine(asked: tuple[str, str | None]) -> Found:
    path, parameters = asked
    try:
        check_path(path)
        said = in_child(__name__, [path, *([parameters] if parameters else [])])
    except VaultError as error:
        return Found(path, error=str(error), parameters=parameters)
    if "error" in said:
        return Found(path, error=said["error"], parameters=parameters)
    said["slots"] = tuple(
        Slot(**one | {"pin": tuple(one["pin"]), "claims": tuple(one["claims"])})
        for one in said["slots"]
    )
    return Found(path, parameters=parameters, **said)


def in_child(module: str, arguments: list[str], *, stdin: str = "") -> dict[str, Any]:
    """What `child()` of the Python module `module` prints. VaultError says how it died."""
    command = [sys.executable, "-I", "-c", _CHILD.format(module), _ROOT, *arguments]
    try:
        done = subprocess.run(
            command, input=stdin.encode(), capture_output=True, timeout=PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        raise VaultError(f"it did not answer within {PATIENCE:.0f} s") from None
    if done.returncode < 0:
        raise VaultError(f"it crashed ({signal.Signals(-done.returncode).name})")
    try:
        said: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise VaultError(f"it ended without an answer: {last[:200]}") from None
    return said


def answer_with(said: dict[str, Any], out: int) -> None:
    with os.fdopen(out, "w") as stream:
        json.dump(said, stream)


def private_output() -> int:
    """Standard output, taken away from a module that may print."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out = os.dup(1)
    os.dup2(2, 1)
    return out


def child() -> None:
    """Load one module and say what is there. Runs in a process of its own."""
    out = private_output()
    try:
        said = _ask(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
    except VaultError as error:
        said = {"error": _short(str(error), sys.argv[1])}
    answer_with(said, out)


def _short(error: str, path: str) -> str:
    """The path stands beside it already."""
    return error.replace(f"the PKCS#11 module {path} ", "it ").replace(f"{path} ", "it ", 1)


def _ask(path: str, parameters: str | None) -> dict[str, Any]:
    import pkcs11  # noqa: PLC0415  (the parent needs none)

    from vault_backends.pkcs11.module import module_at  # noqa: PLC0415
    from vault_backends.pkcs11.profiles import profile_for  # noqa: PLC0415

    module = module_at(path, parameters)
    try:
        with module.held():
            module.start()
            library = module.library
            profile = profile_for(library.manufacturer_id, library.library_description)
            slots = [asdict(slot) for slot in _slots(library, profile.name)]
            major, minor = library.library_version
            return {
                "profile": profile.name,
                "maker": library.manufacturer_id,
                "version": f"{major}.{minor}",
                "slots": slots,
            }
    except pkcs11.PKCS11Error as error:
        said = f"{type(error).__name__}: {error}".rstrip(": ")
        return {"error": f"it does not name its tokens ({said})"}
    finally:
        module.stop()


def _slots(library: Any, profile: str) -> Iterator[Slot]:
    import pkcs11  # noqa: PLC0415

    for slot in library.get_slots(token_present=True):
        try:
            yield _slot(library, slot, profile)
        except pkcs11.PKCS11Error:  # SoftHSM lists the slot of a token whose files are gone
            continue


def _slot(library: Any, slot: Any, profile: str) -> Slot:
    from pkcs11 import TokenFlag  # noqa: PLC0415

    from vault_backends.pkcs11.raw import limits  # noqa: PLC0415
    from vault_backends.pkcs11.which import state_of  # noqa: PLC0415

    token = slot.get_token()
    state, sizes = state_of(token), limits(library, slot.slot_id)
    return Slot(
        slot_id=slot.slot_id,
        initialised=bool(token.flags & TokenFlag.TOKEN_INITIALIZED),
        label=state.label,
        serial=state.serial,
        manufacturer=state.manufacturer,
        model=state.model,
        pin=pin_words(token.flags),
        claims=_claims(slot.get_mechanisms(), token.flags, profile),
        sessions=sizes.sessions,
        max_sessions=sizes.max_sessions,
    )


def pin_words(flags: int) -> tuple[str, ...]:
    """The PIN flags of an initialised token in words, the worst first."""
    from pkcs11 import TokenFlag  # noqa: PLC0415

    if not flags & TokenFlag.TOKEN_INITIALIZED:
        return ()
    told = (
        (flags & TokenFlag.USER_PIN_LOCKED, "user PIN locked"),
        (flags & TokenFlag.USER_PIN_FINAL_TRY, "one try of the user PIN left"),
        (flags & TokenFlag.USER_PIN_COUNT_LOW, "a wrong user PIN was entered"),
        (not flags & TokenFlag.USER_PIN_INITIALIZED, "no user PIN set"),
        (flags & TokenFlag.USER_PIN_TO_BE_CHANGED, "the user PIN is to be changed"),
        (flags & TokenFlag.SO_PIN_LOCKED, "SO PIN locked"),
        (flags & TokenFlag.SO_PIN_FINAL_TRY, "one try of the SO PIN left"),
        (flags & TokenFlag.SO_PIN_COUNT_LOW, "a wrong SO PIN was entered"),
        (not flags & TokenFlag.LOGIN_REQUIRED, "needs no PIN"),
        (flags & TokenFlag.PROTECTED_AUTHENTICATION_PATH, "has its own PIN pad"),
    )
    return tuple(text for flag, text in told if flag)


def _claims(mechanisms: set[Any], flags: int, profile: str) -> tuple[str, ...]:
    from pkcs11 import Mechanism, TokenFlag  # noqa: PLC0415

    from vault_backends.pkcs11.objects import kinds_of  # noqa: PLC0415
    from vault_backends.vault import Kind  # noqa: PLC0415

    row = next((one for one in ROWS if one.name == profile), GENERIC)
    kinds = kinds_of(mechanisms) & row.kinds
    derive = Mechanism.ECDH1_DERIVE in mechanisms
    # python-pkcs11 has no name for EC_MONTGOMERY_KEY_PAIR_GEN; SoftHSM makes X25519 as Edwards.
    x25519 = 0x1056 in mechanisms or (profile == "softhsm" and Kind.ED25519 in kinds)
    told = (
        (Kind.ED25519 in kinds, "Ed25519"),
        (Kind.P256 in kinds, "P-256"),
        (derive and x25519, "X25519"),
        (derive and Mechanism.EC_KEY_PAIR_GEN in mechanisms, "seal ecdh-p256"),
        (Mechanism.RSA_PKCS_OAEP in mechanisms, "seal rsa-oaep"),
        (flags & TokenFlag.RNG, "random"),
    )
    return tuple(text for flag, text in told if flag)
