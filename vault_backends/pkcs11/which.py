"""Which token a vault URI means, and what tokens say of themselves."""

from dataclasses import replace
from typing import Any

from pkcs11 import TokenFlag

from vault_backends.uri import Pkcs11Uri, unparse
from vault_backends.vault import Misconfigured, TokenState


def state_of(token: Any) -> TokenState:
    """What a token says of itself, its padding stripped."""
    flags = token.flags
    return TokenState(
        present=True,
        # Padding differs: spaces by the standard, NUL with tpm2-pkcs11.
        label=token.label.rstrip("\0 "),
        serial=token.serial.rstrip(b"\0 ").decode(errors="replace"),
        manufacturer=token.manufacturer_id.rstrip("\0 "),
        model=token.model.rstrip("\0 "),
        pin_tried=bool(flags & TokenFlag.USER_PIN_COUNT_LOW),
        pin_final_try=bool(flags & TokenFlag.USER_PIN_FINAL_TRY),
        pin_locked=bool(flags & TokenFlag.USER_PIN_LOCKED),
    )


def named(state: TokenState) -> str:
    return f"token {state.label!r} (serial {state.serial})"


def wanted(uri: Pkcs11Uri) -> str:
    """What `uri` asks for, in words."""
    parts = {
        "label": uri.token, "serial": uri.serial, "manufacturer": uri.manufacturer,
        "model": uri.model, "slot": uri.slot_id,
    }  # fmt: skip
    said = ", ".join(f"{name} {value!r}" for name, value in parts.items() if value is not None)
    return f"token with {said}" if said else "token"


def matching(uri: Pkcs11Uri, tokens: list[Any]) -> list[Any]:
    return [token for token in tokens if _matches(uri, token)]


def _matches(uri: Pkcs11Uri, token: Any) -> bool:
    state = state_of(token)
    pairs = (
        (uri.token, state.label),
        (uri.serial, state.serial),
        (uri.manufacturer, state.manufacturer),
        (uri.model, state.model),
        (uri.slot_id, token.slot.slot_id),
    )
    return all(wanted is None or wanted == has for wanted, has in pairs)


def ambiguous(uri: Pkcs11Uri, found: list[Any], where: str) -> Misconfigured:
    """Several tokens match; says what to type for each."""
    uris = "".join(f"\n  {unparse(_narrowed(uri, token, found))}" for token in found)
    return Misconfigured(
        f"{len(found)} tokens match the vault URI. In {where}: "
        + "; ".join(named(state_of(token)) for token in found),
        hint=f"name one of them:{uris}",
    )


def _narrowed(uri: Pkcs11Uri, token: Any, found: list[Any]) -> Pkcs11Uri:
    state = state_of(token)
    exact = replace(uri, token=state.label or None, serial=state.serial or None)
    if len(matching(exact, found)) > 1:  # all TPMs have one serial number
        exact = replace(exact, slot_id=token.slot.slot_id)
    return exact
