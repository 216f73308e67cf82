"""Tokens to test with: each a throwaway in a folder of its own, reached through its real module.

To add one: subclass Environment, say what it holds and how it goes away, and name it in `cells.ALL`."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self
from urllib.parse import quote

from tests.tokens.processes import run
from vault_backends.vault import Kind

SO_PIN = "so-87654321"


@dataclass(frozen=True)
class Outage:
    """One way in which the token goes away, and how it comes back."""

    name: str
    away: Callable[[], None]
    back: Callable[[], None]

    @contextmanager
    def gone(self) -> Iterator[None]:
        """Away for the length of a `with`, and back however that ends."""
        self.away()
        try:
            yield
        finally:
            self.back()


class Environment:
    """One token, from `with` to its end. Subclasses make it in `set_up` and end it in `tear_down`."""

    name: ClassVar[str]
    """The row of the matrix."""
    slug: ClassVar[str]
    """The same in the names of tests."""
    about: ClassVar[str]
    """What is real in it and what is not, in a line."""
    kinds: ClassVar[frozenset[Kind]]
    packages: ClassVar[tuple[str, ...]]
    """Debian packages it needs."""
    module: ClassVar[Path]
    label: str = "edge"
    pin: str
    variables: dict[str, str]
    """For the environment of whoever loads the module."""
    parameters: str | None = None
    """For C_Initialize (x-parameters in the URI)."""
    has_tool: ClassVar[bool] = True
    """Whether pkcs11-tool can start the module."""
    tool_usage: ClassVar[tuple[str, ...]] = ()
    """What pkcs11-tool must say to make a key here."""
    pair_is_one: ClassVar[bool] = False
    """Whether the public key goes with the private one when that is deleted."""
    crowded: ClassVar[bool] = False
    """Whether the device runs out of room when one process uses many keys."""
    keeps_loaded_keys: ClassVar[bool] = False
    """Whether a key that is loaded can be used after another process deleted it."""
    prefix: tuple[str, ...] = ()
    """Before each command that loads the module: `chroot`, where it needs another system than ours.
    Such a system must see this folder, the sources, and the temporary folder under the same names."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        self.pin = f"pin-{secrets.token_hex(6)}"
        self.pin_file = folder / "pin"
        self.variables = {}
        self.write_pin(self.pin)

    def __enter__(self) -> Self:
        try:
            self.set_up()
        except BaseException:
            self.tear_down()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.tear_down()

    @classmethod
    def missing(cls) -> str:
        """Why it cannot be tried here, or nothing."""
        if cls.module.exists():
            return ""
        return f"{cls.module} IS NOT INSTALLED (apt-get install {' '.join(cls.packages)})"

    def set_up(self) -> None:
        raise NotImplementedError

    def tear_down(self) -> None:
        """End the processes; called also after half a set_up."""

    @property
    def outages(self) -> Mapping[str, Outage]:
        """The ways in which this token can go away."""
        return {}

    outage_names: ClassVar[tuple[str, ...]] = ()
    """The keys of `outages`."""

    @property
    def parts(self) -> tuple[str, ...]:
        """What pkcs11-tool must delete to delete a key."""
        return ("privkey",) if self.pair_is_one else ("privkey", "pubkey")

    def clean(self) -> None:
        """Free what killed processes left in the device."""

    def add_token(self, label: str) -> None:
        """Another token in the same module."""
        raise NotImplementedError

    def write_pin(self, pin: str) -> None:
        self.pin_file.write_text(f"{pin}\n")
        self.pin_file.chmod(0o600)

    def wrong_pin(self) -> str:
        """One of the form that the token takes."""
        return self.pin[:-1] + ("0" if self.pin[-1] != "0" else "1")

    def uri(
        self,
        path: str | None = None,
        *,
        module: Path | None = None,
        pin_source: str | None = None,
        **attributes: str,
    ) -> str:
        """The vault's URI. `path` replaces token=…, `attributes` are added to it; `module` is the
        shim in front of the real one."""
        parts = [f"token={quote(self.label)}" if path is None else path]
        parts += [f"{name.replace('_', '-')}={quote(text)}" for name, text in attributes.items()]
        query = f"module-path={module or self.module}"
        query += f"&pin-source={pin_source or f'file:{self.pin_file}'}"
        if self.parameters is not None:
            query += f"&x-parameters={quote(self.parameters)}"
        return f"pkcs11:{';'.join(part for part in parts if part)}?{query}"

    def tool(self, *arguments: str, login: bool = True, pin: str | None = None) -> str:
        """pkcs11-tool on this token, with the PIN by the environment."""
        command = ["pkcs11-tool", "--module", str(self.module), "--token-label", self.label]
        if login:
            command += ["--login", "--pin", "env:TOOL_PIN"]
        variables = {**self.variables, "TOOL_PIN": pin or self.pin}
        return run([*self.prefix, *command, *arguments], variables).stdout


class SoftHsm(Environment):
    name = "SoftHSM 2"
    slug = "softhsm"
    about = "SoftHSM 2.6 of Debian 12, keys in files"
    kinds = frozenset(Kind)
    packages = ("softhsm2", "opensc")
    module = Path("/usr/lib/softhsm/libsofthsm2.so")
    outage_names = ("files moved",)

    def set_up(self) -> None:
        self.files = self.folder / "tokens"
        self.files.mkdir(mode=0o700)
        conf = self.folder / "softhsm2.conf"
        conf.write_text(
            f"directories.tokendir = {self.files}\nobjectstore.backend = file\nlog.level = ERROR\n"
        )
        self.variables["SOFTHSM2_CONF"] = str(conf)
        self.add_token(self.label)

    def add_token(self, label: str) -> None:
        command = ["softhsm2-util", "--init-token", "--free", "--label", label]
        run([*command, "--so-pin", SO_PIN, "--pin", self.pin], self.variables)

    @property
    def outages(self) -> Mapping[str, Outage]:
        return {
            "files moved": Outage("files moved", self._unplug, self._plug),
        }

    def _unplug(self) -> None:
        (self.folder / "away").mkdir()
        for one in list(self.files.iterdir()):
            shutil.move(one, self.folder / "away" / one.name)

    def _plug(self) -> None:
        for one in (self.folder / "away").iterdir():
            shutil.move(one, self.files / one.name)
        (self.folder / "away").rmdir()


class Nss(Environment):
    name = "NSS softokn"
    slug = "nss"
    about = "NSS 3.87 of Debian 12, keys in an SQLite file"
    kinds = frozenset({Kind.P256})
    packages = ("libnss3", "libnss3-tools")
    module = Path("/usr/lib/x86_64-linux-gnu/libsoftokn3.so")
    label = "NSS Certificate DB"
    has_tool = False

    def set_up(self) -> None:
        database = self.folder / "nss"
        database.mkdir(mode=0o700)
        run(["certutil", "-N", "-d", f"sql:{database}", "-f", self.pin_file])
        self.parameters = (
            f"configdir='sql:{database}' certPrefix='' keyPrefix='' secmod='secmod.db'"
        )
