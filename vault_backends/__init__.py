"""Key stores. Importable alone; knows keys, and nothing of Ockam."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from vault_backends.uri import parse
from vault_backends.vault import Vault

__all__ = ["open_vault"]

# Scheme of the URI -> the module whose `open` makes the vault. Imported when such a vault is
# opened: a device without a token never loads PKCS#11, and one without keys in a file never loads
# libsodium.
SCHEMES = {
    "software": "vault_backends.software",
    "pkcs11": "vault_backends.pkcs11.vault",
}


def open_vault(
    uri: str,
    ask: Callable[[str], str | None] | None = None,
    *,
    state_dir: Path | None = None,
    allow_pin_value: bool = False,
    apart: bool = False,
) -> Vault:
    """The vault that `uri` names. `ask` is called with a prompt when a secret is needed that the
    URI does not locate; `state_dir` is where a PIN that was refused is remembered across
    restarts. `allow_pin_value` takes a PIN that stands in the URI itself; no command does. `apart`
    keeps the code of a token in a process of its own; a software vault is in this one in any
    case."""
    parsed = parse(uri, allow_pin_value=allow_pin_value)
    if apart and parsed.scheme == "pkcs11":
        from vault_backends.apart.vault import ApartVault  # noqa: PLC0415

        return ApartVault(uri, ask, state_dir=state_dir)
    vault: Vault = import_module(SCHEMES[parsed.scheme]).open(parsed, ask, state_dir)
    return vault
