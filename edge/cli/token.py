"""Which token a command of `hsm` means, and which identities of this machine live in it."""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from edge.cli import local
from edge.errors import ConfigError
from vault_backends.uri import Pkcs11Uri, check_source, parse, unparse

if TYPE_CHECKING:
    from edge.node.store import Store
    from vault_backends.vault import TokenState

SEAL_LABEL = "ockam-seal"  # as in pkcs11/sealing.py, which is not loaded for this
_LIST = "ockam-edge hsm list shows the tokens, with the URI to type for each"


def wanted(named: str | None, pin_source: str | None = None) -> Pkcs11Uri:
    """The token that NAMED means: a URI, the name of a vault, or without it the vault of the default
    identity, else the only token there is. ConfigError where that is not one."""
    source = check_source("--pin-source", pin_source) if pin_source else None
    with local.store() as store:
        uri = _uri(store, named)
    found = by_path(uri)
    return replace(found, pin_source=source) if source else found


def by_path(uri: Pkcs11Uri) -> Pkcs11Uri:
    """A URI whose module is named by its path."""
    if uri.module_path:
        return uri
    from vault_backends.pkcs11.paths import find_module  # noqa: PLC0415

    return replace(uri, module_path=find_module(uri.module_name or ""), module_name=None)


def _uri(store: "Store", named: str | None) -> Pkcs11Uri:
    if named is None:
        default = store.default_identity()
        text = store.vault(default.vault).uri if default else ""
        return _token(text) if text.startswith("pkcs11:") else _only()
    if ":" not in named:
        return _token(store.vault(named).uri, f"the vault {named}")
    return _token(named)


def _token(text: str, what: str = "the URI") -> Pkcs11Uri:
    if text.startswith("pkcs11:") and not re.search("module-(path|name)=", text):
        return _found_by(text)
    parsed = parse(text)
    if not isinstance(parsed, Pkcs11Uri):
        raise ConfigError(f"{what} names a file, not a token", hint=_LIST)
    return parsed


def _found_by(text: str) -> Pkcs11Uri:
    """A URI without module-path: the token is looked for in all the usual modules."""
    from vault_backends.pkcs11.survey import candidates, listed, matches, survey  # noqa: PLC0415

    joint = "&" if "?" in text else "?"
    parsed = parse(f"{text}{joint}module-path=/")
    assert isinstance(parsed, Pkcs11Uri)
    found = [pair for pair in candidates(survey()) if matches(parsed, pair[1])]
    if len(found) == 1:
        module, slot = found[0]
        # What was typed stays; what only the module knows is added.
        return replace(parsed, module_path=module.path, slot_id=module.uri(slot).slot_id)
    if found:
        raise ConfigError(f"several tokens match {text}:{listed(found)}", hint="name one of them")
    raise ConfigError(f"no token matches {text}", hint=_LIST)


def _only() -> Pkcs11Uri:
    from vault_backends.pkcs11.survey import candidates, listed, survey  # noqa: PLC0415

    found = candidates(survey())
    if len(found) == 1:
        module, slot = found[0]
        return module.uri(slot)
    if found:
        raise ConfigError(f"there are several tokens:{listed(found)}", hint="name one of them")
    raise ConfigError(
        "there is no initialised token",
        hint="ockam-edge hsm list shows what there is; ockam-edge hsm init initialises one",
    )


# --- identities in a token


def users(store: "Store", uri: Pkcs11Uri, state: "TokenState", label: str) -> list[str]:
    """What on this machine would lose its key with the key `label` of this token."""
    vaults = {
        vault.name for vault in store.vaults() if _same_token(_quietly(vault.uri), uri, state)
    }
    named = [
        f"identity {one.name}"
        for one in store.identities()
        if one.vault in vaults and one.label == label
    ]
    named += [
        f"identity {one.identity}"
        for one in store.unsettled()
        if one.vault in vaults and one.label == label
    ]
    if label == SEAL_LABEL:
        named += [f"vault {vault.name}" for vault in store.vaults() if "sealed-by=" in vault.uri]
        named += [
            f"the secrets at rest of identity {one.name}"
            for one in store.identities()
            if one.vault in vaults and _sealed_there(store, one.identifier)
        ]
    return named


def _sealed_there(store: "Store", identifier: str) -> bool:
    """Whether the vault of the identity seals its data key, and no other one does."""
    found = store.data_key(identifier)
    return found is not None and found.uri is None


def _quietly(text: str) -> Pkcs11Uri | None:
    parsed = parse(text) if text.startswith("pkcs11:") else None
    return parsed if isinstance(parsed, Pkcs11Uri) else None


def _same_token(vault: Pkcs11Uri | None, uri: Pkcs11Uri, state: "TokenState") -> bool:
    """Whether a vault means the token in `state`, reached through the module of `uri`."""
    if vault is None:
        return False
    vault = by_path(vault)
    if os.path.realpath(vault.module_path) != os.path.realpath(uri.module_path):
        return False
    pairs = (
        (vault.token, state.label),
        (vault.serial, state.serial),
        (vault.manufacturer, state.manufacturer),
        (vault.model, state.model),
    )
    return all(said is None or said == has for said, has in pairs)


# --- PINs that are not in use yet


def ask_new() -> Callable[[str], str | None]:
    """Asks the person at the terminal twice; once per prompt and command."""

    @cache
    def answer(prompt: str) -> str | None:
        first = local.ask(prompt)
        if first is not None and local.ask("the same again") != first:
            raise ConfigError("the two answers differ", hint="nothing was done; start again")
        return first

    return answer


def shown(uri: Pkcs11Uri) -> str:
    """A URI as one types it."""
    return f"'{unparse(uri)}'"
